"""A progress bar on standard error, so that standard output can be piped elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Move = Callable[[int, int | None, str], None]
"""Function that moves a bar: (done, all if that is known, name of what is worked on)."""


@contextlib.contextmanager
def bar(unit: str) -> Iterator[Move]:
    """Shows a bar on a terminal, which disappears at the end. Elsewhere, nothing is printed.

    Args:
        unit: What is counted, such as ``rows``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    console = Console(stderr=True)
    shown = console.is_terminal and not console.is_dumb_terminal
    console.quiet = not shown  # rich 14 ends a disabled bar with an empty line
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown) as progress:
        only = progress.add_task("", total=None)

        def move(done: int, total: int | None, name: str) -> None:
            progress.update(only, completed=done, total=total, description=name)

        yield move
