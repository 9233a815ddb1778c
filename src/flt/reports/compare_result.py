"""The result of ``flt.compare``: it shows, draws and writes the comparison."""

from __future__ import annotations

import dataclasses
import functools
import html
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flt.core.errors import InputError
from flt.core.files import expand_user, reported, write_atomically
from flt.reports.compare_differences import own_differences, problems_grid, settings_grid
from flt.reports.compare_runs import Problem
from flt.reports.compare_tables import (
    DOUBLE,
    SINGLE,
    Grid,
    View,
    difference_grid,
    records,
    run_records,
    summary_grid,
    target_grid,
    title_of,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from rich.console import Console

NARROWEST, WIDEST = 2.0, 20.0
"""Smallest and largest width of a figure, in inches."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs that were compared. Each problem has tables and figures of its own.

    Attributes:
        views: The problems with their methods, and what is compared.
        notes: Lines about runs that were left out, and about limits of the comparison.
    """

    views: tuple[View, ...]
    notes: tuple[str, ...]

    @property
    def problems(self) -> list[Problem]:
        """The problems. Methods are compared only within a problem."""
        return [view.problem for view in self.views]

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """A row for each method of each problem: means, standard deviations, and differences from the baseline."""
        import pandas as pd

        return pd.DataFrame(records(self.views)).set_index(["problem", "method"])

    @functools.cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run: method, seed, folder, and the figures that the means are made of."""
        import pandas as pd

        return pd.DataFrame(run_records(self.views)).set_index(["problem", "method", "seed"])

    @functools.cached_property
    def settings(self) -> pd.DataFrame:
        """A row for each setting in which the methods or the problems differ, a column for each method."""
        import pandas as pd

        from flt.reports.compare_settings import differing, named, values_of, without_consequences

        methods = [(number, method) for number, view in enumerate(self.views, 1) for method in view.methods]
        settings = [method.settings for _, method in methods]
        keys = without_consequences(differing(settings, "problem") + differing(settings, "method"), settings)
        columns = pd.MultiIndex.from_tuples([(n, method.label) for n, method in methods], names=["problem", "method"])
        rows = [values_of(key, settings) for key in keys]
        return pd.DataFrame(rows, pd.Index([named(key) for key in keys], name="setting"), columns)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures of methods and runs, and the notes, in types that JSON has. What is unknown is None."""
        methods, runs = ([_finite(row) for row in rows(self.views)] for rows in (records, run_records))
        names = [view.problem.name for view in self.views]
        return {"problems": names, "methods": methods, "runs": runs, "notes": list(self.notes)}

    def to_csv(self, path: str | Path | None = None) -> str:
        """Returns the table as csv, with a row for each method. Writes it to a file if a path is given.

        Raises:
            InputError: The file can't be written.
        """
        from flt.reports.compare_text import to_csv

        return _written(to_csv(records(self.views)), path)

    def to_latex(self, path: str | Path | None = None) -> str:
        r"""Returns a LaTeX table for each problem, for ``\usepackage{booktabs}``. Writes a file if a path is given.

        Raises:
            InputError: The file can't be written.
        """
        from flt.reports.compare_text import to_latex

        return _written(to_latex(self.views), path)

    def figure(self, kind: str = "all", width: float | str | None = None, problem: int = 1) -> Figure:
        """Draws a figure.

        Args:
            kind: ``rounds`` for the curve over the rounds, ``bytes`` for the curve over the bytes sent, ``final`` for
                the values of all seeds at the end, or ``all`` for the three beside each other.
            width: Width in inches, ``single`` (3.3 inches) or ``double`` (6.8 inches) for the columns of a paper.
                None: double for ``all``, else single.
            problem: Number of the problem, from 1.

        Raises:
            InputError: There is no such figure or problem, or the width isn't allowed.
        """
        from flt.reports import compare_figures  # imports matplotlib, which takes half a second

        if kind not in compare_figures.KINDS:
            raise InputError.of("kind", kind, compare_figures.KINDS)
        if not 1 <= problem <= len(self.views):
            raise InputError.of("problem", problem, f"an integer from 1 to {len(self.views)}")
        return compare_figures.figure(self.views[problem - 1], kind, check_width(width))

    def save(self, out: str | Path, width: float | str | None = None) -> list[Path]:
        """Writes ``table.csv``, ``runs.csv``, ``table.tex``, and each figure as png, pdf and svg.

        With several problems, the figures' names end with the number of the problem.

        Args:
            out: Folder, which is created if it is missing.
            width: As in :meth:`figure`.

        Returns:
            The files.

        Raises:
            InputError: The width isn't allowed, or the folder can't be written.
        """
        folder = expand_user(out)
        check_width(width)
        with reported("out", out, "a folder that can be written"):
            folder.mkdir(parents=True, exist_ok=True)
            files = dict(self._files(width))  # all of them are made before one is written
            for name, data in files.items():
                write_atomically(folder / name, data)
        return [folder / name for name in files]

    def _files(self, width: float | str | None) -> Iterator[tuple[str, bytes]]:
        from flt.reports import compare_figures
        from flt.reports.compare_text import to_csv

        yield "table.csv", self.to_csv().encode()
        yield "runs.csv", to_csv(run_records(self.views)).encode()
        yield "table.tex", self.to_latex().encode()
        for number in range(1, len(self.views) + 1):
            for kind in compare_figures.KINDS:
                made = self.figure(kind, width, number)
                name = f"{'compare' if kind == 'all' else kind}{f'_{number}' if len(self.views) > 1 else ''}"
                for form in compare_figures.FORMATS:
                    yield f"{name}.{form}", compare_figures.save(made, form)

    def print(self, console: Console | None = None) -> None:
        """Prints the tables, and the notes below them.

        Args:
            console: Console to print to. None: standard output.
        """
        from rich.console import Console
        from rich.text import Text

        from flt.reports.compare_text import to_rich

        console = console or Console(highlight=False)
        for part in self._parts():
            console.print(to_rich(part) if isinstance(part, Grid) else Text(part))

    def _parts(self) -> Iterator[Grid | str]:
        """Yields the tables and lines that are shown, in their order."""
        runs = sum(len(method.runs) for view in self.views for method in view.methods)
        count = f"{runs} run{'s' * (runs > 1)}"
        yield count if len(self.views) > 1 else f"{count}: {self.views[0].problem.name}"
        differ = problems_grid(self.views)
        if differ is not None:
            yield "warning: these runs solve different problems, so each problem has its own table"
        for number, view in enumerate(self.views, 1):
            if len(self.views) > 1:
                yield f"problem {number}: {view.problem.name}"
            for grid in (summary_grid(view), difference_grid(view), target_grid(view), settings_grid(view)):
                if grid is not None:
                    yield grid
            if own := own_differences(view):
                yield own
        if differ is not None:
            yield differ
        yield from (f"note: {note}" for note in self.notes)

    def __repr__(self) -> str:
        """Returns the number of runs, and the mean of each method, in one line."""
        said = []
        for view in self.views:
            grid, name = summary_grid(view), title_of(view.at.columns[0], view.at)
            column = grid.header.index(name)
            said.append(", ".join(f"{row[0].text} {row[column].text}" for row in grid.rows) + f" ({name})")
        return f"Comparison({'; '.join(said)})"

    def _repr_html_(self) -> str:
        from flt.reports.compare_text import to_html

        parts = (to_html(part) if isinstance(part, Grid) else f"<p>{html.escape(part)}</p>" for part in self._parts())
        return f"<div>{''.join(parts)}</div>"


def check_width(width: float | str | None) -> float | None:
    """Returns the width of a figure in inches.

    Raises:
        InputError: The width is neither a number in the allowed range, nor ``single`` or ``double``.
    """
    if width is None:
        return None
    named = {"single": SINGLE, "double": DOUBLE}
    try:
        inches = named.get(str(width)) or float(width)
    except ValueError:
        inches = math.nan
    if not NARROWEST <= inches <= WIDEST:
        raise InputError.of("width", width, f"single, double, or inches from {NARROWEST:g} to {WIDEST:g}")
    return inches


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        with reported("path", path, "a file that can be written"):
            write_atomically(expand_user(path), text.encode())
    return text


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
