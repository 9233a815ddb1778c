"""Contents of the recipes' files in conf/: the paper, and the keys that a recipe sets. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flt.run.conf_groups import choices, config_folder, head

PAPER = re.compile(r"arXiv (?P<id>\d{4}\.\d{4,5}(?:v\d+)?)")
"""Pattern of a paper's number in the opening comment of a recipe."""


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
