"""The tables of a comparison: what their cells say. :mod:`flt.reports.compare_text` writes them in several formats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from flt.core import formatting
from flt.reports import compare_settings as keys
from flt.reports.compare_runs import Method, Problem
from flt.reports.compare_statistics import (
    COSTS,
    DOWN,
    LEVEL,
    SECONDS,
    UP,
    Measure,
    Reached,
    Summary,
    difference,
    reached,
    summary,
    value,
)

SINGLE, DOUBLE = 3.3, 6.8
"""Widths of a paper's single and double column, in inches."""
NONE = "-"
WORDS = {"test": "test", "validation": "validation", "best": "best validation", "clients": "clients'"}
"""Source of the metrics -> the words before the metric's name."""
_COST_NAMES = {UP: "up", DOWN: "down", SECONDS: "time"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        title: Line above the table. Empty: none.
        header: Names of the columns.
        rows: Cells, row by row.
        caption: Lines below the table.
        names: Number of columns, from the left, that hold names. The others hold figures.
    """

    title: str
    header: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    names: int = 1


@dataclasses.dataclass(frozen=True)
class View:
    """One problem, and what is compared in it.

    Attributes:
        problem: The problem with its methods.
        at: Columns that are compared.
        baseline: Method from which the differences of the others are taken.
        target: Value whose rounds, bytes and time are compared. None: none.
    """

    problem: Problem
    at: Measure
    baseline: Method
    target: float | None = None

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods of the problem."""
        return self.problem.methods

    def seeds(self) -> str:
        """Returns the seeds in words, such as ``3 seeds each`` or ``2 to 3 seeds``."""
        counts = sorted({len(method.runs) for method in self.methods})
        each = " each" if len(self.methods) > 1 and len(counts) == 1 else ""
        return f"{counts[0]}{f' to {counts[-1]}' * (len(counts) > 1)} seed{'s' * (counts[-1] > 1)}{each}"


def title_of(column: str, at: Measure) -> str:
    """Returns the name of a column in words.

    Example:
        >>> title_of("test/acc", Measure("test", ("test/acc",), None))
        'test accuracy'
    """
    if column not in at.columns or at.source not in WORDS:
        return _COST_NAMES.get(column, keys.plain(column))
    name = keys.plain(column.rpartition("/")[2].removeprefix("val_"))
    return f"{WORDS[at.source]} {'accuracy' if name == 'acc' else name}"


def curve_title(column: str) -> str:
    """Returns the name of a column that is drawn over the rounds.

    Example:
        >>> curve_title("round/val_acc"), curve_title("clients/val_loss"), curve_title("ranks/changed")
        ('validation accuracy', "clients' loss", 'ranks/changed')
    """
    source = {"round": "validation", "clients": "clients"}.get(column.partition("/")[0], "")
    return title_of(column, Measure(source, (column,), column))


def summary_grid(view: View) -> Grid:
    """Returns the table of means and deviations over the seeds. The best mean of each column is marked."""
    columns = [*view.at.columns, *COSTS]
    found = {column: [summary(method, column, view.at) for method in view.methods] for column in columns}
    found = {column: values for column, values in found.items() if any(v.values for v in values)}
    cells = {column: _cells(column, values) for column, values in found.items()}
    header = ["method", *(title_of(column, view.at) for column in cells)]
    rows = [[Cell(m.label), *(cells[column][row] for column in cells)] for row, m in enumerate(view.methods)]
    counts = [len(method.runs) for method in view.methods]
    if len(set(counts)) > 1:
        header.insert(1, "seeds")
        rows = [[row[0], Cell(str(count)), *row[1:]] for row, count in zip(rows, counts, strict=True)]
    caption = f"{view.seeds()}. ± is their standard deviation (n - 1). Bytes and time are means."
    return Grid("", header, rows, caption if max(counts) > 1 else "")


def _cells(column: str, values: Sequence[Summary]) -> list[Cell]:
    text = _cost(column) if column in COSTS else _figures(values)
    texts = [text(found) if found.values else NONE for found in values]
    known = [found.mean for found in values if not math.isnan(found.mean)]
    if len(known) < 2:
        return [Cell(said) for said in texts]
    best = (min if column in COSTS or formatting.lower_is_better(column) else max)(known)
    winners = {said for said, found in zip(texts, values, strict=True) if found.mean == best}
    short = {said.partition(" ±")[0] for said in winners}  # means that look the same are equally good
    marked = [said.partition(" ±")[0] in short for said in texts]
    return [Cell(said, mark and not all(marked)) for said, mark in zip(texts, marked, strict=True)]


def _cost(column: str) -> Callable[[Summary], str]:
    form = formatting.duration if column == SECONDS else formatting.size
    return lambda found: form(found.mean) if math.isfinite(found.mean) else str(found.mean)


def _figures(values: Sequence[Summary]) -> Callable[[Summary], str]:
    decimals = _decimals([found.mean for found in values])

    def text(found: Summary) -> str:
        spread = "" if math.isnan(found.deviation) else f" ± {found.deviation:.{decimals}f}"
        return f"{found.mean:.{decimals}f}{spread}"

    return text


def _decimals(values: Sequence[float]) -> int:
    """Returns the number of decimals with which the values have at least four significant digits, but at most three."""
    largest = max((abs(number) for number in values if math.isfinite(number)), default=0.0)
    return 3 if largest < 10 else 2 if largest < 100 else 1 if largest < 1000 else 0


def difference_grid(view: View) -> Grid | None:
    """Returns the table of paired differences from the baseline. None if there is no other method."""
    others = [method for method in view.methods if method is not view.baseline]
    base = {column: summary(view.baseline, column, view.at) for column in view.at.columns}
    if not others or not any(found.values for found in base.values()):
        return None
    rows = []
    for method in others:
        pairs = difference(summary(method, view.at.columns[0], view.at), base[view.at.columns[0]]).pairs
        texts = [difference_text(view, method, column) for column in view.at.columns]
        rows.append([Cell(method.label), Cell(str(pairs)), *map(Cell, texts)])
    title = f"difference from {view.baseline.label}, with its {LEVEL:.0%} interval".replace("%", " %")
    caption = "Pairs are runs of the same seed. Each interval (Student's t) stands alone: it isn't widened for the"
    caption += " number of methods."
    return Grid(title, ["method", "pairs", *(title_of(column, view.at) for column in view.at.columns)], rows, caption)


def difference_text(view: View, method: Method, column: str) -> str:
    """Returns a method's difference from the baseline with its interval, such as ``+0.012 [-0.003, 0.027]``."""
    base, found = (summary(m, column, view.at) for m in (view.baseline, method))
    gap, decimals = difference(found, base), _decimals([base.mean, found.mean])
    if not gap.pairs:
        return NONE
    mean, low, high = (f"{number:+z.{decimals}f}" for number in (gap.mean, gap.low, gap.high))  # z: no -0.000
    return mean if math.isnan(gap.low) else f"{mean} [{low}, {high}]"


def target_grid(view: View) -> Grid | None:
    """Returns the table of what the methods needed to reach the target. None if there is no target."""
    if view.target is None or view.at.curve is None:
        return None
    found = [reached(method, view.at.curve, view.target) for method in view.methods]
    rounds = _column([each.rounds for each in found], found, lambda s: f"{s.mean:.1f}")
    sent = _column([each.bytes for each in found], found, lambda s: formatting.size(s.mean))
    time = _column([each.seconds for each in found], found, lambda s: formatting.duration(s.mean))
    rows = [
        [Cell(method.label), Cell(f"{len(each.rounds.values)} of {each.runs}"), r, s, t]
        for method, each, r, s, t in zip(view.methods, found, rounds, sent, time, strict=True)
    ]
    sign = "at most" if formatting.lower_is_better(view.at.curve) else "at least"
    title = f"until {curve_title(view.at.curve)} is {sign} {view.target:g}"
    caption = "Means over seeds, where all seeds reached it. Bytes are up and down."
    return Grid(title, ["method", "reached by", "rounds", "bytes", "time"], rows, caption)


def _column(values: Sequence[Summary], found: Sequence[Reached], text: Callable[[Summary], str]) -> list[Cell]:
    """Returns the means of methods all of whose runs reached the target: the mean of a part would flatter a method."""
    whole = [len(v.values) == each.runs for v, each in zip(values, found, strict=True)]
    texts = [text(v) if all_ else NONE for v, all_ in zip(values, whole, strict=True)]
    known = [v.mean for v, all_ in zip(values, whole, strict=True) if all_]
    best = text(Summary(min(known), math.nan, {})) if len(known) > 1 else None
    alike = all(said == best for said in texts)
    return [Cell(said, said == best and not alike) for said in texts]


def records(views: Sequence[View]) -> list[dict[str, Any]]:
    """Returns the figures of each method, unrounded, for csv, JSON and DataFrames."""
    return [_record(number, view, method) for number, view in enumerate(views, 1) for method in view.methods]


def _record(number: int, view: View, method: Method) -> dict[str, Any]:
    row: dict[str, Any] = {"problem": number, "method": method.label, "recipe": keys.plain(method.recipe)}
    row |= {"runs": len(method.runs), "seeds": " ".join(map(str, method.seeds))}
    for column in (*view.at.columns, *COSTS):
        found, base = (summary(m, column, view.at) for m in (method, view.baseline))
        row |= {f"{column} mean": found.mean, f"{column} std": found.deviation}
        if column in view.at.columns:
            gap = difference(found, base)
            row |= {f"{column} difference": gap.mean, f"{column} low": gap.low, f"{column} high": gap.high}
            row["pairs"] = gap.pairs
    row["baseline"] = view.baseline.label
    if view.target is not None and view.at.curve is not None:
        found_target = reached(method, view.at.curve, view.target)
        row |= {"target": view.target, "reached": len(found_target.rounds.values)}
        row |= {f"{what} to target": getattr(found_target, what).mean for what in ("rounds", "bytes", "seconds")}
    return row


def run_records(views: Sequence[View]) -> list[dict[str, Any]]:
    """Returns the figures of each run."""
    return [
        {"problem": number, "method": method.label, "seed": seed, "run": keys.plain(run.label)}
        | {column: value(run, column, view.at) for column in (*view.at.columns, *COSTS)}
        for number, view in enumerate(views, 1)
        for method in view.methods
        for seed, run in method.runs.items()
    ]
