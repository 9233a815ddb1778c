"""The command, or line of Python, that starts a run with a given configuration."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from typing import Any

from flt.core.files import expand_user, is_path
from flt.core.plain_yaml import escaped
from flt.data.suffixes import suffix_of
from flt.run.compose import flat, load_config
from flt.run.conf_groups import choices, groups
from flt.run.schema import TrainConfig
from flt.run.stored import OWN

LEFT_OUT = ("name", "root", "resume", "threads", "engine.jobs", "checkpoint.keep", "cache.max_gb", "cache.keep")
"""Keys that say where and how a run is computed, and change nothing that it computes apart from rounding."""
ARGUMENTS = ("rounds", "seed", "batch_size")
"""Keys that are arguments of ``flt.fit``."""
GENERAL = ("file", "hub")
"""Choices of data and models whose key ``path`` says which they are."""
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_./@%+-]*")


def command_of(cfg: TrainConfig) -> str:
    """Returns the command that starts a run with this configuration, ready to be copied into a shell.

    For a run of ``flt.fit``, the result is a line of Python. Of paths, only the last part is written. The result is
    empty if the recipe isn't one of conf/algo.
    """
    if cfg.algo not in choices("algo"):
        return ""
    if cfg.data.get("name") != OWN:
        return shlex.join(["flt", "train", *overrides_of(cfg)])
    keys = [text for text in overrides_of(cfg)[1:] if not text.startswith(("data", "model"))]
    given = [text for text in keys if text.partition("=")[0] in ARGUMENTS]
    further = [text for text in keys if text not in given]
    more = [f"overrides={json.dumps(further)}"] if further else []
    words = [f"{cfg.model['name']}()", "clients", f'algo="{cfg.algo}"', *given, *more]
    return f"flt.fit({', '.join(words)})"


def overrides_of(cfg: TrainConfig) -> list[str]:
    """Returns the overrides with which the command line composes a configuration, apart from the keys of LEFT_OUT."""
    found = [f"algo={cfg.algo}"]
    plain = load_config(found)
    for group in (name for name in groups() if isinstance(getattr(plain, name, None), dict)):
        name = getattr(cfg, group).get("name")
        if name != getattr(plain, group).get("name") and name in choices(group):
            found.append(f"{group}={name}")
    defaults = flat(load_config(found))
    differing = {key: value for key, value in flat(cfg).items() if defaults.get(key, ...) != value}
    for group in ("data", "model"):
        path = getattr(cfg, group).get("path")
        if f"{group}.path" in differing:
            differing[f"{group}.path"] = _portable(path)
    settings = [f"{key}={spelt(value)}" for key, value in differing.items() if key not in LEFT_OUT]
    return _shortened([*found, *settings])


def _portable(path: str) -> str:
    """Returns a path without the folders that only this machine has. A hub id stays as it is."""
    place = expand_user(path)
    if os.path.isdir(place) or (is_path(path) and not suffix_of(path)):
        return f"./{place.absolute().name}"
    return place.name if is_path(path) or suffix_of(path) else path


def _shortened(overrides: list[str]) -> list[str]:
    """Writes ``data=file data.path=reviews.csv`` as ``data=reviews.csv``, and likewise models."""
    settings = dict(text.split("=", 1) for text in overrides)
    for group in ("data", "model"):
        path = settings.get(f"{group}.path", "")
        if settings.get(group) in GENERAL and ("/" in path or suffix_of(path)):
            settings[group] = settings.pop(f"{group}.path")
    return [f"{key}={value}" for key, value in settings.items()]


def spelt(value: Any) -> str:
    r"""Returns a value as Hydra's command line reads it.

    Example:
        >>> spelt([1, None, "it's", {"a": True}])
        "[1,null,'it\\'s',{a:true}]"
    """
    if isinstance(value, dict):
        return f"{{{','.join(f'{spelt(key)}:{spelt(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelt, value))}]"
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    quoted = re.sub(r"(\\*)'", lambda found: f"{found[1] * 2}\\'", str(escaped(value)))
    tail = quoted[len(quoted.rstrip("\\")) :]  # backslashes before a quote are doubled
    return f"'{quoted}{tail}'"
