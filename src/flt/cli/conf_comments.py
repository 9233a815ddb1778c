"""Reads the config keys from the YAML files in conf/, with their defaults and the comments that explain them.

A config group is a folder of conf/, such as ``algo``. Each file in the folder is a choice of the group, except
``_base.yaml``, which contains keys that the choices have in common.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

from flt.run.conf_groups import BASE, choices, config_folder, groups
from flt.run.conf_groups import head as head
from flt.run.conf_groups import summary as summary
from flt.run.conf_heads import settings as settings

RECIPES = ("algo", "experiment")
"""Config groups whose files only set keys of other config groups."""
GENERAL = "hub"
"""Choice of the config group ``model``. The comments in its file explain the keys of all models."""
LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?:\s+(?P<rest>.*))?")
COMMENT = re.compile(r"(?:^|\s+)#\s+")
BLOCK = "{...}"
"""Text that is shown as the default of a key whose value is a mapping over several lines."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Key that can be set on the command line.

    Attributes:
        name: Dotted name, such as ``local.lr``.
        default: Default value, as text in YAML.
        meaning: Comment beside the key; empty if there is none.
        choices: Choices of the config group that have this key. Set only by :func:`group_keys`, otherwise empty.
    """

    name: str
    default: str
    meaning: str
    choices: tuple[str, ...] = ()


@functools.cache
def defaults() -> dict[str, str]:
    """Returns config group -> default choice, in the order of conf/train.yaml. A missing default is "null"."""
    found = re.findall(r"^  - (\w+): (\w+)", (config_folder() / "train.yaml").read_text(), re.MULTILINE)
    order = {group: choice for group, choice in found if group in groups()}
    return {**order, **{group: "null" for group in groups() if group not in order}}


@functools.cache
def sections() -> dict[str, tuple[Key, ...]]:
    """Returns section of conf/train.yaml -> its keys. Keys outside of all sections are under the empty name."""
    found: dict[str, list[Key]] = {"": []}
    parents: dict[str, str] = {}
    for indent, name, default, meaning in _entries(config_folder() / "train.yaml"):
        if indent:
            (section,) = parents
            found.setdefault(section, []).append(Key(f"{section}.{name}", default, meaning))
        elif default:
            found[""].append(Key(name, default, meaning))
        else:
            parents = {name: meaning}
    return {section: tuple(keys) for section, keys in found.items() if section != "defaults"}


def section_meaning(section: str) -> str:
    """Returns the comment beside the name of a section of conf/train.yaml; empty if there is none."""
    entries = _entries(config_folder() / "train.yaml")
    return next((meaning for indent, name, _, meaning in entries if not indent and name == section), "")


@functools.cache
def group_keys(group: str) -> tuple[Key, ...]:
    """Returns the keys of all choices of a config group. The keys of the default choice come first.

    If several choices have the same key, the default comes from the first of these choices. The explanation comes from
    the choice GENERAL, or, if GENERAL doesn't explain the key, from the first choice that does.
    """
    default = defaults()[group]
    order = sorted(choices(group), key=lambda choice: choice != default)
    found: dict[str, list[tuple[str, Key]]] = {}
    for choice in order if group not in RECIPES else ():
        for key in choice_keys(group, choice):
            found.setdefault(key.name, []).append((choice, key))
    return tuple(_merged(name, holders) for name, holders in found.items())


def choice_keys(group: str, choice: str) -> Iterator[Key]:
    """Yields the keys of one choice, including the keys in the ``_base.yaml`` of its config group, if it exists."""
    folder = config_folder() / group
    own, base = (_top_keys(folder / f"{name}.yaml") for name in (choice, BASE))
    for name in dict.fromkeys([*base, *own]):
        default, meaning = own.get(name, base.get(name, ("", "")))
        yield Key(f"{group}.{name}", default or BLOCK, base.get(name, ("", ""))[1] or meaning)


@functools.cache
def _top_keys(path: Path) -> dict[str, tuple[str, str]]:
    """Returns key -> its value and comment, for all keys that aren't indented, except ``name`` and ``defaults``.

    The result is empty if the file doesn't exist.
    """
    entries = _entries(path) if path.is_file() else ()
    hidden = ("name", "defaults")
    return {name: (value, meaning) for indent, name, value, meaning in entries if not indent and name not in hidden}


def all_keys() -> list[Key]:
    """Returns every key of the command line. The names of the config groups aren't included."""
    return [
        *(key for keys in sections().values() for key in keys),
        *(key for group in defaults() for key in group_keys(group)),
    ]


def _merged(name: str, holders: list[tuple[str, Key]]) -> Key:
    general_first = sorted(holders, key=lambda holder: holder[0] != GENERAL)
    meaning = next((key.meaning for _, key in general_first if key.meaning), "")
    return Key(name, holders[0][1].default, meaning, tuple(sorted(choice for choice, _ in holders)))


def _entries(path: Path) -> Iterator[tuple[bool, str, str, str]]:
    """Yields a tuple for each key of a YAML file: True if the key is indented, the name, the value, and the comment."""
    for line in path.read_text().splitlines():
        if found := LINE.fullmatch(line):
            value, *comment = COMMENT.split(found["rest"] or "", maxsplit=1)
            yield bool(found["indent"]), found["name"], value.strip().replace(", ", ","), "".join(comment).strip()
