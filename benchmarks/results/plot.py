"""The pictures of a table: curves over the rounds or over the bytes that have crossed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import task_map_plot
from benchmarks.results.cell import Record, rounded, write
from benchmarks.results.reduce import CROSSED, MB, curve
from benchmarks.results.table import Plot, Row, Table

DEFAULTS = {"ends": False, "kind": "curves"}
"""Settings that are newer than pictures which show the same without them."""
FORMAT = 4
"""Changes when the same curves come to look otherwise."""
INPUTS = "Inputs"
"""Entry of a PNG with the digest of what it shows: another matplotlib's bytes differ, and aren't a reason to draw."""
WIDE = 30
"""How many times the bytes of the cheapest row the dearest may have on a linear axis."""
BANDS = 4
"""More rows than these are drawn without the bands of their seeds: the bands would cover one another."""
MARKERS = "os^DvPX*<>"
"""Of points."""
MARKED = 8
"""Curves of so many points, or fewer, have them marked: what lies between them wasn't measured."""


ACROSS = {"bytes": (CROSSED, MB), "hours": ("time/simulated_hours", 1.0)}
"""What a horizontal axis may show besides rounds -> metric, and what it is multiplied by."""
AXES = {"round": "round", "bytes": "MB up and down, all clients", "hours": "simulated hours"}
"""What a horizontal axis shows -> its label."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One row's curve; the lists have one entry for each round that has a value.

    Attributes:
        label: In the legend.
        style: Matplotlib's short form, such as ``C0--``.
        x: Round, or MB.
        mean: Over the seeds.
        low: Least of the seeds.
        high: Greatest of them.
    """

    label: str
    style: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def publish(table: Table, plot: Plot, records: Mapping[str, Sequence[Record]], folder: Path) -> list[Path]:
    """Draws a plot, unless the file shows the same already.

    Args:
        table: Whose plot it is.
        plot: What to show.
        records: Row id -> its runs.
        folder: Of the page.

    Returns:
        What was written.
    """
    path = folder / file_of(table, plot)
    if plot.kind == "task_map":
        return _publish_map(table, plot, records, path)
    shown = lines(table, plot, records)
    target = table.target if plot.y == table.target_key else None
    settings = {
        key: value for key, value in dataclasses.asdict(plot).items() if key not in DEFAULTS or value != DEFAULTS[key]
    }
    said = json.dumps([FORMAT, settings, target, [dataclasses.asdict(line) for line in shown]])
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    if not shown or _inputs(path) == digest:
        return []
    write(path, png(plot, shown, target, digest))
    return [path]


def task_map(plot: Plot, records: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """The clusters of the first run that has any; empty without one, and for plots of curves."""
    if plot.kind != "task_map":
        return []
    return next((record.task_map for row in plot.rows for record in records.get(row, ()) if record.task_map), [])


def _publish_map(table: Table, plot: Plot, records: Mapping[str, Sequence[Record]], path: Path) -> list[Path]:
    clusters = task_map(plot, records)
    digest = hashlib.sha256(json.dumps([FORMAT, dataclasses.asdict(plot), clusters]).encode()).hexdigest()[:16]
    if not clusters or _inputs(path) == digest:
        return []
    write(path, task_map_plot.png(plot.title, clusters, {"Software": None, INPUTS: digest}))
    return [path]


def file_of(table: Table, plot: Plot) -> str:
    """Name of the picture."""
    return f"{table.name}-{plot.file}.png"


def lines(table: Table, plot: Plot, records: Mapping[str, Sequence[Record]]) -> list[Line]:
    """The curves of the rows that have any, in the plot's order; rows of one label are told apart by their headings."""
    kinds = MARKERS if plot.ends else ("-", "--", ":")
    turns = [(n + n // 10 if plot.ends else n // 10) % len(kinds) for n in range(len(plot.rows))]
    styles = plot.styles or [f"C{n % 10}{kinds[turn]}" for n, turn in enumerate(turns)]
    rows = [table.row(id) for id in plot.rows]
    often = Counter(row.label for row in rows)
    named = [dataclasses.replace(r, label=f"{r.label}, {r.group}") if often[r.label] > 1 else r for r in rows]
    of_row = _end if plot.ends else _line
    made = (of_row(row, style, plot, records.get(row.id, ())) for row, style in zip(named, styles, strict=True))
    return [line for line in made if line.x]


def _line(row: Row, style: str, plot: Plot, records: Sequence[Record]) -> Line:
    curves = [found for record in records if (found := curve(record, plot.y))]
    key, unit = ACROSS.get(plot.x, ("", 1.0))
    across = _across([curve(record, key) for record in records]) if key else {}
    values = _across(curves)
    return Line(
        row.label,
        style,
        [_short(statistics.fmean(across[n]) * unit) if across else float(n) for n in values],
        *([_short(summary(found)) for found in values.values()] for summary in (statistics.fmean, min, max)),
    )


def _end(row: Row, style: str, plot: Plot, records: Sequence[Record]) -> Line:
    """Where a row's runs end: one point, and the deviation over the seeds below and above it."""
    key = plot.y.removeprefix("test/")
    values = [record.test[key] for record in records if key in record.test]
    if not values:
        return Line(row.label, style, [], [], [], [])
    key, unit = ACROSS.get(plot.x, ("", 1.0))
    spent = [curve(record, key)[-1] or 0.0 for record in records] if key else []
    x = statistics.fmean(spent) * unit if spent else float(len(curve(records[0], CROSSED)))
    mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    return Line(row.label, style, [_short(x)], *([_short(y)] for y in (mean, mean - spread, mean + spread)))


def banded(shown: Sequence[Line]) -> bool:
    """Whether the picture has the seeds' bands."""
    return len(shown) <= BANDS


def marked(shown: Sequence[Line]) -> bool:
    """Whether the points of the curves are marked."""
    return max(len(line.x) for line in shown) <= MARKED


def logarithmic(plot: Plot, shown: Sequence[Line]) -> bool:
    """Whether rows differ so much in what they send that on a linear axis the cheap ones would be one vertical line."""
    ends = [line.x[-1] for line in shown]
    return plot.x == "bytes" and bool(ends) and max(ends) > WIDE * min(ends) > 0


def _short(value: float) -> float:
    return rounded(value) or 0.0


def _across(curves: Sequence[Sequence[float | None]]) -> dict[int, list[float]]:
    """Round -> the values of all seeds, where all have one."""
    columns = enumerate(zip(*curves, strict=False), 1)
    return {n: known for n, values in columns if len(known := [v for v in values if v is not None]) == len(values)}


def _inputs(path: Path) -> str | None:
    """The digest that a picture carries."""
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get(INPUTS)


def png(plot: Plot, shown: Sequence[Line], target: float | None, digest: str) -> bytes:
    """The picture; the same bytes each time, with the same matplotlib."""
    from matplotlib.ticker import MaxNLocator

    from flt.callbacks.figures.heatmap import new_figure

    figure = new_figure(8.6, 4.0, "")
    axes = figure.subplots()
    axes.set_title(plot.title, fontsize=10)  # over the curves only: a figure's title would meet the legend
    for line in shown:
        if plot.ends:
            _draw_end(axes, line)
        else:
            _draw_line(axes, line, shown)
    if target is not None and math.isfinite(target):
        axes.axhline(target, color="grey", linewidth=0.8, linestyle=(0, (1, 3)))
    axes.set_xlabel(AXES[plot.x], fontsize=9)
    axes.set_ylabel(plot.label or plot.y, fontsize=9)
    axes.tick_params(labelsize=8)
    if logarithmic(plot, shown):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=plot.x == "round"))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None, INPUTS: digest})
    return buffer.getvalue()


def _draw_line(axes: Any, line: Line, shown: Sequence[Line]) -> None:
    marker = "o" if marked(shown) else None
    (drawn,) = axes.plot(line.x, line.mean, line.style, linewidth=1.6, marker=marker, markersize=3.5, label=line.label)
    if banded(shown):
        axes.fill_between(line.x, line.low, line.high, color=drawn.get_color(), alpha=0.1, linewidth=0)


def _draw_end(axes: Any, line: Line) -> None:
    (x,), (y,), (low,) = line.x, line.mean, line.low
    axes.errorbar(x, y, yerr=y - low, fmt=line.style, markersize=5, elinewidth=0.8, capsize=2, label=line.label)
