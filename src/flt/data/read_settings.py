"""Settings with which a file is read, and what is worth saying about the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from flt.core.errors import InputError
from flt.core.memory import available_memory

Choose = Callable[[Sequence[str]], list[str]]
"""Function that returns the columns to read, out of the names of all columns."""


@dataclass
class ReadSettings:
    """Settings with which a file is read, and the notes of the readers about what they have found.

    Attributes:
        choose: Function that returns the columns to read, out of the names of all columns.
        label: Column of the labels. None: not known.
        encoding: Encoding of a text file. None: it is found.
        delimiter: Character between the columns of a text file. None: it is found.
        quote: Quotes around texts: ``double``, ``single`` or ``none``. None: they are double, and a file in which it is
            in doubt where a quoted text ends is refused.
        only: Name of the single split that is read; empty for the usual one, see :func:`flt.data.reading.read`. None:
            all are read.
        notes: What a user should know about the file, such as its encoding if it isn't UTF-8.
        columns: Number of columns of the file, set once it has been read.
    """

    choose: Choose = list
    label: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    only: str | None = None
    notes: list[str] = field(default_factory=list)
    columns: int = 0

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Returns the columns to read, and keeps the number of all columns.

        Raises:
            InputError: A column that is needed doesn't exist.
        """
        self.columns = len(names)
        return self.choose(names)

    def note(self, text: str) -> None:
        """Adds a note, unless it has been made before."""
        if text not in self.notes:
            self.notes.append(text)


def room() -> int:
    """Returns the number of bytes of memory that are free."""
    return available_memory(torch.device("cpu"))


def check_size(path: object, size: int, free: int | None = None) -> None:
    """Checks that an amount of data fits into an amount of memory, by default into what is free now.

    Raises:
        InputError: It doesn't fit.
    """
    free = room() if free is None else free
    if size > free:
        why = f"it needs {size / 1e9:.1f} GB of memory"
        raise InputError.of("data.path", path, f"data that fit into the {free / 1e9:.1f} GB that are free", why)


def check_rows(path: object, held: int, read: int) -> None:
    """Compares the number of rows that a file holds with the number that were read.

    Raises:
        InputError: They differ.
    """
    if held != read:
        raise InputError.of(
            "data.path", path, "a file whose rows can all be read", f"it holds {held} rows, and {read} were read"
        )
