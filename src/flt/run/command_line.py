"""The command, or line of Python, that starts a run with a given configuration, to be shown to others."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from typing import Any

from flt.core.files import expand_user, is_path, last_name
from flt.data.suffixes import suffix_of
from flt.run.conf_groups import choices, groups
from flt.run.overrides import chosen_parts, difference, hydra_value
from flt.run.schema import TrainConfig
from flt.run.stored import OWN

LEFT_OUT = ("name", "root", "resume", "threads", "engine.jobs", "checkpoint.keep", "cache.max_gb", "cache.keep")
"""Keys that say where and how a run is computed, and change nothing that it computes apart from rounding."""
ARGUMENTS = ("rounds", "seed", "batch_size")
"""Keys that are arguments of ``flt.fit``."""
PATHS = ("data.path", "model.path")
"""Keys whose value may be a folder, which is written as ``./name``."""
GENERAL = ("file", "hub")
"""Choices of data and models whose key ``path`` says which they are."""


def command_of(cfg: TrainConfig) -> str:
    """Returns the command that starts a run with this configuration, ready to be copied into a shell.

    For a run of ``flt.fit``, the result is a line of Python. Of paths, only the last part is written. The result is
    empty if the recipe isn't one of conf/algo.
    """
    if cfg.algo not in choices("algo"):
        return ""
    if cfg.data.get("name") != OWN:
        return shlex.join(["flt", "train", *portable_overrides(cfg)])
    keys = [text for text in portable_overrides(cfg)[1:] if not text.startswith(("data", "model"))]
    given = [text for text in keys if text.partition("=")[0] in ARGUMENTS]
    further = [text for text in keys if text not in given]
    more = [f"overrides={json.dumps(further)}"] if further else []
    words = [f"{cfg.model['name']}()", "clients", f'algo="{cfg.algo}"', *given, *more]
    return f"flt.fit({', '.join(words)})"


def portable_overrides(cfg: TrainConfig) -> list[str]:
    """Returns the overrides that make a configuration, apart from the keys of LEFT_OUT and from folders of paths.

    :func:`flt.run.overrides.overrides_of` leaves nothing out.
    """
    settings = dataclasses.asdict(cfg)
    for group in ("data", "model"):
        if path := settings[group].get("path"):
            settings[group]["path"] = _portable(path)
    left_out = (*groups(), *LEFT_OUT)
    differing = {key: value for key, value in difference(settings).items() if key not in left_out}
    shown = {key: value if key in PATHS else _last_names(value) for key, value in differing.items()}
    return _shortened([*chosen_parts(settings), *(f"{key}={hydra_value(value)}" for key, value in shown.items())])


def _portable(path: str) -> str:
    """Returns a path without the folders that only this machine has. A hub id stays as it is."""
    place = expand_user(path)
    if os.path.isdir(place) or (is_path(path) and not suffix_of(path)):
        return f"./{place.absolute().name}"
    return place.name if is_path(path) or suffix_of(path) else path


def _last_names(value: Any) -> Any:
    """Returns a setting in whose containers only the last parts of paths are kept."""
    if isinstance(value, dict):
        return {key: _last_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_last_names, value))
    return last_name(value)


def _shortened(overrides: list[str]) -> list[str]:
    """Writes ``data=file data.path=reviews.csv`` as ``data=reviews.csv``, and likewise models."""
    settings = dict(text.split("=", 1) for text in overrides)
    for group in ("data", "model"):
        path = settings.get(f"{group}.path", "")
        if settings.get(group) in GENERAL and ("/" in path or suffix_of(path)):
            settings[group] = settings.pop(f"{group}.path")
    return [f"{key}={value}" for key, value in settings.items()]
