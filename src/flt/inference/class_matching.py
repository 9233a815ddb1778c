"""Matching of the classes of data with those of a model, by name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.formatting import printable
from flt.data.random_splits import Positions

MOST_SHOWN = 50
"""Largest number of classes that an error's line names."""
_log = logging.getLogger(__name__)


def by_task(
    names: Sequence[str],
    labels: NDArray[np.int64],
    classes: Mapping[str, Sequence[str]],
    merges: Mapping[str, Mapping[str, Sequence[str]]],
) -> list[tuple[str, Positions, NDArray[np.int64]]]:
    """Divides examples among the tasks that know their classes.

    Args:
        names: Name of each class of the data.
        labels: Class of each example, shape (n,).
        classes: Task -> names of the model's classes.
        merges: Task -> new class -> classes of the data that it replaces.

    Returns:
        Task, positions of its examples, and their labels as positions among the model's classes.
    """
    present = [int(k) for k in np.unique(labels)]
    maps = {task: _positions([names[k] for k in present], own, merges[task]) for task, own in classes.items()}
    whole = [task for task, found in maps.items() if (found >= 0).all()]
    if len(whole) > 1 or (np.stack(list(maps.values())) >= 0).sum(axis=0).max(initial=0) > 1:
        raise InputError.of("task", None, classes, "the classes of the data fit several tasks")
    if not whole and (unknown := [k for i, k in enumerate(present) if all(found[i] < 0 for found in maps.values())]):
        numbered = _as_numbers(names, present, classes)
        if numbered is None:
            model = named_shortly([name for own in classes.values() for name in own])
            data = named_shortly([names[k] for k in present])
            why = f"the model doesn't know this class; the data have {data}"
            raise InputError.of("data.label", names[unknown[0]], f"the model's classes: {model}", why)
        maps, whole = numbered, list(numbered)
    lookups = {}
    for task, found in maps.items():
        lookup = np.full(len(names), -1)
        lookup[present] = found
        lookups[task] = lookup[labels]
    kept = {task: np.flatnonzero(numbers >= 0) for task, numbers in lookups.items() if not whole or task in whole}
    return [(task, rows, lookups[task][rows]) for task, rows in kept.items() if len(rows)]


def _positions(names: Sequence[str], classes: Sequence[str], merged: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Returns the position of each name among the model's classes. A name that the model doesn't know gets -1."""
    place = {name: number for number, name in enumerate(classes)}

    def position(name: str) -> int:
        if name in place:
            return place[name]
        new = next((new for new, old in merged.items() if any(fnmatchcase(name, pattern) for pattern in old)), None)
        return place.get(new, -1) if new is not None else -1

    return np.array([position(name) for name in names], dtype=np.int64)


def _as_numbers(
    names: Sequence[str], present: Sequence[int], classes: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.int64]] | None:
    """Reads labels such as 0 and 1 as the numbers of the model's classes, if no name of a class is a number.

    A line says so. Returns None if the labels aren't such numbers, or if several tasks could be meant.
    """
    if len(classes) != 1:
        return None
    ((task, own),) = classes.items()
    numbers = [int(names[k]) if names[k].isdecimal() else -1 for k in present]
    if any(not 0 <= number < len(own) for number in numbers) or any(name.lstrip("-").isdecimal() for name in own):
        return None
    read = ", ".join(f"{number} is {own[number]}" for number in numbers[:8])
    _log.warning("the labels are read as numbers of the model's classes: %s", printable(read))
    return {task: np.array(numbers, dtype=np.int64)}


def named_shortly(names: Sequence[str]) -> str:
    """Returns names with commas between them, and how many there are beyond ``MOST_SHOWN``."""
    shown = ", ".join(names[:MOST_SHOWN])
    return shown if len(names) <= MOST_SHOWN else f"{shown} and {len(names) - MOST_SHOWN} more"
