"""Names of the outputs of a head that one or several tasks use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST = 1000
"""Largest number of characters of the name of an output. A longer name is cut."""


def output_names(tasks: Iterable[Sequence[str]]) -> list[str]:
    """Returns a name for each output of a head that one or several tasks use.

    Args:
        tasks: Names of the classes of each task.

    Example:
        >>> output_names([["ham", "spam"], ["bad", "good", "great"]])
        ['ham / bad', 'spam / good', 'great']
    """
    own = list(dict.fromkeys(map(tuple, tasks)))
    width = max(map(len, own), default=0)
    found = [dict.fromkeys(names[i] for names in own if i < len(names)) for i in range(width)]
    return [" / ".join(names)[:LONGEST] for names in found]
