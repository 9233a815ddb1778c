"""The command, or line of Python, that starts a run with a given configuration, for readers on other machines."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flt.core.files import expand_user, is_path, last_name
from flt.data.suffixes import suffix_of
from flt.run.conf_groups import choices
from flt.run.overrides import difference, hydra_value
from flt.run.stored import OWN, StoredRun

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig  # imports torch

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


def local_command(command: str, stored: StoredRun) -> str:
    """Returns the command of a run with paths that work in the current folder, in place of the paths' last parts.

    A path that was given relative to the working folder of the run is looked for there. A path that isn't found is
    written as it was given.

    Args:
        command: Command as :func:`command_of` returns it. A line of Python stays as it is.
        stored: The run.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # of a record that another program wrote
        return command
    if words[:2] != ["flt", "train"]:
        return command
    return shlex.join([*words[:2], *(_local(word, stored) for word in words[2:])])


def _local(word: str, stored: StoredRun) -> str:
    """Returns an override with the path of the run's configuration, if it names the last part of one."""
    key, _, said = word.partition("=")
    name = f"{key}.path" if key in ("data", "model") else key
    given = stored.setting(name)
    if not isinstance(given, str) or not (name.endswith("path") or is_path(given)):
        return word
    place = Path(os.path.normpath(_working_folder(stored) / expand_user(given)))
    if said not in (hydra_value(place.name), hydra_value(f"./{place.name}")):
        return word
    if not os.path.exists(place):
        return f"{key}={hydra_value(given)}" if is_path(given) else word
    here = Path.cwd()
    shown = str(place.relative_to(here)) if place.is_relative_to(here) else str(place)
    return f"{key}={hydra_value(f'./{shown}' if place.is_dir() and not os.path.isabs(shown) else shown)}"


def _working_folder(stored: StoredRun) -> Path:
    """Returns the folder in which a run was started; the current one if nothing says it, as after a move of the run."""
    folder, root = stored.folder.absolute(), Path(str(stored.setting("root", "")))
    inner = (root / str(stored.setting("name", "")) / folder.name).parts
    if root.is_absolute() or folder.parts[-len(inner) :] != inner:
        return Path.cwd()
    return Path(*folder.parts[: -len(inner)])


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
