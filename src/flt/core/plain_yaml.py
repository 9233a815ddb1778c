"""YAML from files that aren't trusted. A few lines with aliases or interpolations can stand for gigabytes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LARGEST, MOST, DEEPEST = 1 << 22, 1 << 19, 30
"""Largest number of bytes, of values and of nested levels.

OmegaConf needs up to a minute and a gigabyte for so many values. A run with 250,000 ``ranks`` has half as many.
"""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's reader, where PyYAML has it, because it is faster."""
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MARK = re.compile(r"(\\*)\$\{")


def read(path: Path) -> str:
    """Returns the text of a YAML file that has passed :func:`check`.

    Raises:
        OSError: The file can't be read.
        ValueError: The file is no text, or is refused by :func:`check`.
        yaml.YAMLError: The file is no YAML.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    _check_size(data)
    text = data.decode()
    check(text)
    return text


def front_matter(text: str) -> dict[str, Any]:
    """Returns the YAML between two lines ``---`` at the beginning of a Markdown text. Empty if there is none.

    Raises:
        ValueError: The YAML is refused by :func:`check`.
        yaml.YAMLError: What is between the lines is no YAML.
    """
    found = _FRONT.match(text)
    if found is None:
        return {}
    check(found[1])
    values = yaml.load(found[1], Loader=LOADER)
    return values if isinstance(values, dict) else {}


def check(text: str) -> None:
    """Checks that a YAML document is small, and has neither aliases nor interpolations. Keys aren't interpolated.

    Raises:
        ValueError: The document isn't so.
        yaml.YAMLError: The text is no YAML.
    """
    _check_size(text.encode())
    count, open_keys = 0, list[bool | None]()  # for each open mapping: whether its next node is a key; None for a list
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionEndEvent):
            open_keys.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        is_key = bool(open_keys) and open_keys[-1] is True
        if open_keys and open_keys[-1] is not None:
            open_keys[-1] = not is_key
        if isinstance(event, yaml.CollectionStartEvent):
            open_keys.append(True if isinstance(event, yaml.MappingStartEvent) else None)
        count += 1
        if isinstance(event, yaml.AliasEvent) or len(open_keys) > DEEPEST:
            raise ValueError(f"it contains aliases, or more than {DEEPEST} levels")
        if count > MOST:
            raise ValueError(f"it contains more than {MOST} values")
        if isinstance(event, yaml.ScalarEvent) and not is_key and _is_interpolated(event.value):
            raise ValueError("it contains interpolations")


def escaped(value: Any) -> Any:
    r"""Returns a text, or a container of texts, in which OmegaConf finds no interpolation and reads the given texts.

    Keys stay as they are, because OmegaConf doesn't interpolate them.

    Example:
        >>> print(escaped("pay ${amount}"))
        pay \${amount}
    """
    if isinstance(value, Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escaped(item) for item in value]
    return _MARK.sub(lambda found: f"{found[1] * 2}\\${{", value) if isinstance(value, str) else value


def unescaped(text: str) -> str:
    """Returns the text that OmegaConf reads in a text without interpolations. The inverse of :func:`escaped`."""
    return _MARK.sub(lambda found: f"{found[1][: len(found[1]) // 2]}${{", text)


def _is_interpolated(value: str) -> bool:
    return any(len(found[1]) % 2 == 0 for found in _MARK.finditer(value))


def _check_size(data: bytes) -> None:
    if len(data) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
