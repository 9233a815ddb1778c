"""The files of conf/, in a checkout or in an installed wheel."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path


def choices(group: str) -> list[str]:
    """The files of a group of conf/."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


@functools.cache
def config_folder() -> Path:
    """Where conf/ is, in a checkout or in an installed wheel."""
    return Path(str(files("flt.conf").joinpath("train.yaml"))).parent


@functools.cache
def groups() -> list[str]:
    """Names of the folders of conf/."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "__pycache__")
