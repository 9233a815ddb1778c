"""What is seen while cells run: a line for each finished one, and one for the whole."""

from __future__ import annotations

import time
from types import TracebackType

from benchmarks.results.cell import Cell, Record
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from flt.core.formatting import duration


class Progress:
    """Cells done of all, the time that passed and the time that is left.

    Args:
        console: Where to.
        cells: In all.
        jobs: Side by side.
    """

    def __init__(self, console: Console, cells: int, jobs: int) -> None:
        self.cells, self.jobs, self.done, self.began = cells, jobs, 0, time.perf_counter()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("cells"), TextColumn("{task.fields[time]}"))
        self.bar = Bar(*columns, console=console, transient=True)
        self.task = self.bar.add_task("", total=cells, time="")

    def __enter__(self) -> Progress:
        self.bar.start()
        self.bar.console.print(f"{self.cells} cells to run, {self.jobs} side by side", highlight=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()

    def finished(self, cell: Cell, answer: Record | str) -> None:
        """Shows how a cell came out, and what is left."""
        self.done += 1
        left = self.left()
        self.bar.update(self.task, completed=self.done, time=left)
        said = outcome(answer)
        self.bar.console.print(
            f"{self.done}/{self.cells}  {cell.name}  {said}  ({left})", highlight=False, markup=False, soft_wrap=True
        )

    def left(self) -> str:
        """Elapsed time, and about how much there is to come: pessimistic, since begun cells don't count."""
        elapsed = time.perf_counter() - self.began
        rest = (
            f", about {duration(elapsed / self.done * (self.cells - self.done))} left" if self.done < self.cells else ""
        )
        return f"{duration(elapsed)}{rest}"


def outcome(answer: Record | str) -> str:
    """Test accuracy and time of a record; or what went wrong."""
    if isinstance(answer, str):
        return f"FAILED\n{answer}\n"
    figures = [f"test/{key} {answer.test[key]:.4f}" for key in ("acc", "loss") if key in answer.test]
    return "  ".join([*figures, duration(answer.seconds)])
