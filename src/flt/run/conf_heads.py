"""Reads the opening comments of the YAML files in conf/, and what a recipe sets. Nothing here imports torch.

An opening comment begins with a sentence that says what the choice is. That of a recipe names its paper.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flt.run.conf_groups import choices, config_folder

COMMAND = re.compile(r"\s*(make|flt) \w+")
"""Pattern of the lines in an opening comment that contain a command to copy."""
SENTENCE = re.compile(r"(?<!\bal)(?<!e\.g)\.(?=\s+[A-Z]|$)")
PAPER = re.compile(r"arXiv (?P<id>\d{4}\.\d{4,5}(?:v\d+)?)")
"""Pattern of a paper's number in the opening comment of a recipe."""


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


def paper(recipe: str) -> str:
    """Returns the arXiv number of the paper that a recipe follows. Empty if it follows none, or is no recipe of conf/.

    Example:
        >>> paper("hafl"), paper("central")
        ('2411.06581', '')
    """
    if recipe not in choices("algo"):
        return ""
    found = PAPER.search(" ".join(head(config_folder() / "algo" / f"{recipe}.yaml")))
    return found["id"] if found else ""


def settings(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each key that a recipe or an experiment sets, and the value in the form of a command-line argument.

    Choices of config groups come first.

    Example:
        >>> dict(settings(config_folder() / "algo" / "hafl.yaml"))["ranks"]
        '[2,4,8]'
    """
    file = yaml.safe_load(path.read_text())
    for part in file.pop("defaults", []):
        yield from ((group.removeprefix("override /"), choice) for group, choice in part.items())
    yield from _flat(file, "")


def _flat(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":")).replace('"', "")
            yield f"{prefix}{name}", text
