"""Groups of the configuration (the subfolders of conf/) and the choices of each group (the files in a subfolder)."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import flt

BASE = "_base"
"""Name of a group's base file, which contains keys that the other files of the group include."""

COMMAND = re.compile(r"\s*(make|flt) \w+")
"""Pattern of the lines in an opening comment that contain a command to copy."""
SENTENCE = re.compile(r"(?<!\bal)(?<!e\.g)\.(?=\s+[A-Z]|$)")


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


@functools.cache
def head(path: Path) -> tuple[str, ...]:
    """Returns the lines of a file's opening comment, without the marks ``#`` and without Hydra's ``@package`` line."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").removeprefix(" "))
    return tuple(lines)


def summary(group: str, choice: str) -> str:
    """Returns the first sentence of the opening comment in a choice's file.

    Example:
        >>> summary("engine", "serial")
        'One client after another on one resident model.'
    """
    lines: list[str] = []
    for line in head(config_folder() / group / f"{choice}.yaml"):
        if not line.strip() or COMMAND.match(line):
            break
        lines.append(line.strip())
    text = " ".join(lines)
    end = SENTENCE.search(text)
    return text[: end.end()] if end else text
