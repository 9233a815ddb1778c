"""The command, or line of Python, that starts a run with a given configuration, for readers on other machines."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from typing import Any

from flt.core.files import expand_user, is_path, last_name
from flt.data.suffixes import suffix_of
from flt.run.conf_groups import choices
from flt.run.overrides import difference, hydra_value
from flt.run.schema import TrainConfig
from flt.run.stored import OWN

LEFT_OUT = (
    "name", "root", "resume", "threads", "engine.jobs", "checkpoint.keep", "cache.max_gb", "cache.keep", "logger",
    "report",
)  # fmt: skip
"""Keys that say where and how a run is computed, and change nothing that it computes apart from rounding."""
ARGUMENTS = ("rounds", "seed", "batch_size")
"""Keys that are arguments of ``flt.fit``."""
GENERAL = ("file", "hub")
"""Choices of data and models whose key ``path`` says which they are."""
PATHS = ("data.path", "model.path")


def command_of(cfg: TrainConfig) -> str:
    """Returns the command that starts a run with this configuration, ready to be copied into a shell.

    The keys of LEFT_OUT are left out, and of paths, only the last part is written. For a run of ``flt.fit``, the result
    is a line of Python. The result is empty if the recipe isn't one of conf/algo.
    """
    if cfg.algo not in choices("algo"):
        return ""
    differing = {key: _portable(key, value) for key, value in difference(dataclasses.asdict(cfg)).items()
                 if key not in LEFT_OUT}  # fmt: skip
    if cfg.data.get("name") == OWN:
        return _line_of_python(cfg, differing)
    for group in ("data", "model"):  # data=file data.path=reviews.csv can be written as data=reviews.csv
        path = differing.get(f"{group}.path") or ""
        if differing.get(group) in GENERAL and ("/" in path or suffix_of(path)):
            differing[group] = differing.pop(f"{group}.path")
    return shlex.join(["flt", "train", f"algo={cfg.algo}", *_written(differing)])


def _line_of_python(cfg: TrainConfig, differing: dict[str, Any]) -> str:
    keys = {key: value for key, value in differing.items() if key.partition(".")[0] not in ("data", "model")}
    given = _written({key: value for key, value in keys.items() if key in ARGUMENTS})
    further = _written({key: value for key, value in keys.items() if key not in ARGUMENTS})
    more = [f"overrides={json.dumps(further)}"] if further else []
    words = [f"{cfg.model['name']}()", "clients", f'algo="{cfg.algo}"', *given, *more]
    return f"flt.fit({', '.join(words)})"


def _written(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={hydra_value(value)}" for key, value in settings.items()]


def _portable(key: str, value: Any) -> Any:
    """Returns a value without the folders that only this machine has. A hub id stays as it is."""
    if key not in PATHS or value is None:
        return last_name(value)
    place = expand_user(value)
    if os.path.isdir(place) or (is_path(value) and not suffix_of(value)):
        return f"./{place.absolute().name}"
    return place.name if is_path(value) or suffix_of(value) else value
