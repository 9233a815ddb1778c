"""Files of conf/, in a checkout or in an installed wheel."""

from __future__ import annotations

import functools
from pathlib import Path

import flt

BASE = "_base"
"""Name of the file with the keys that all files of a group have in common."""


def choices(group: str) -> list[str]:
    """Returns the names of a group's files, each of which is a choice; a base file is none."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml") if path.stem != BASE)


@functools.cache
def config_folder() -> Path:
    """Returns the folder conf/: beside src/ in a checkout, inside the package in an installed wheel."""
    package = Path(flt.__file__).parent
    candidates = (package / "conf", package.parents[1] / "conf")
    return next(folder for folder in candidates if (folder / "train.yaml").is_file())


@functools.cache
def groups() -> list[str]:
    """Returns the names of conf/'s folders, each of which is a group of choices."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "__pycache__")
