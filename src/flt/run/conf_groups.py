"""Groups of the configuration (the subfolders of conf/) and the choices of each group (the files in a subfolder)."""

from __future__ import annotations

import functools
from pathlib import Path

import flt

BASE = "_base"
"""Name of a group's base file, which contains keys that the other files of the group include."""


def choices(group: str) -> list[str]:
    """Returns the choices of a group: the names of its files, without the base file."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml") if path.stem != BASE)


@functools.cache
def config_folder() -> Path:
    """Returns the folder conf/. It is beside src/ in a checkout, and inside the package in an installed wheel."""
    package = Path(flt.__file__).parent
    candidates = (package / "conf", package.parents[1] / "conf")
    return next(folder for folder in candidates if (folder / "train.yaml").is_file())


@functools.cache
def groups() -> list[str]:
    """Returns the names of the groups: the subfolders of conf/."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "__pycache__")
