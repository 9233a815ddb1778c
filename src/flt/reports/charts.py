"""Parts of a report: sections, tables, and charts as plain dictionaries, which Plotly draws in the browser.

A colour in a chart is a name that the page replaces by the colour of its theme: ``@0`` to ``@7`` are the colours of
series, ``@seq`` is the scale of heat maps, ``@groups`` that of groups, and ``@muted`` the colour of what is less
important.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flt.callbacks.record_format import evenly

COLOURS, DASHES = 8, ("solid", "dash", "dot", "dashdot")
POINTS, ROWS, TABLE = 500, 120, 250
"""Largest number of points of a curve, of rows of a heat map, and of rows of a table. Others are left out evenly."""
ANNOTATED = 360
"""Largest number of cells of a heat map in which the values are written."""

FEW = 10
"""Largest number of rounds that have a tick each."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts. ``caption`` says what it shows, and ``left`` how many of its columns are texts."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with everything that a reader without eyes, or without JavaScript, needs.

    Attributes:
        id: Id of the chart in the page.
        title: Title above the chart.
        label: One sentence with the figures of the chart, for screen readers.
        traces: Traces of Plotly.
        layout: Layout of Plotly, apart from what the theme sets.
        table: The data of the chart.
        note: Sentence below the title. Empty: none.
        height: Height in pixels.
        wide: Whether the chart takes the whole width of the page.
        frames: Traces of each round, between which a slider chooses. Pairs of a text and the traces.
    """

    id: str
    title: str
    label: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    note: str = ""
    height: int = 320
    wide: bool = False
    frames: Sequence[tuple[str, Sequence[dict[str, Any]]]] = ()


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to copy. ``caption`` says what they do."""

    caption: str
    text: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a report. Parts that are empty aren't shown.

    Attributes:
        id: Id of the section in the page.
        title: Title of the section.
        intro: Sentence below the title.
        charts: Charts of the section.
        tables: Tables that are always visible.
        folded: Tables that open on demand.
        codes: Lines to copy.
    """

    id: str
    title: str
    intro: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    codes: Sequence[Code] = ()

    @property
    def is_empty(self) -> bool:
        """True if there is nothing to show."""
        return not (self.charts or self.tables or self.folded or self.codes)


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve: its name, its points, the number of its colour, and whether it is drawn as the less important one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: str = "solid"

    @property
    def trace(self) -> dict[str, Any]:
        """Trace of Plotly."""
        kept = evenly(range(len(self.x)), POINTS)
        return {
            "type": "scatter",
            "name": self.name,
            "x": [self.x[i] for i in kept],
            "y": [finite(self.y[i]) for i in kept],
            "mode": "lines+markers" if len(kept) <= 30 else "lines",
            "line": {"color": f"@{self.colour % COLOURS}", "dash": self.dash, "width": 2},
            "marker": {"size": 5, "symbol": self.colour % COLOURS},
        }


def lines(
    id: str, title: str, x: str, y: str, series: Sequence[Series], note: str = "", **axes: dict[str, Any]
) -> Chart:
    """Returns a chart of curves.

    Args:
        id: Id of the chart.
        title: Title.
        x: Title of the horizontal axis. If it is ``round``, the axis has no ticks between two rounds.
        y: Title of the vertical axis.
        series: Curves. Points that aren't finite are gaps.
        note: Sentence below the title.
        axes: Further settings of ``xaxis`` and ``yaxis``.
    """
    layout: dict[str, Any] = {
        "xaxis": round_axis([at for s in series for at in s.x]) if x == "round" else {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
        "hovermode": "x unified" if len(series) <= COLOURS else "closest",
        "showlegend": len(series) > 1,
    }
    for axis, more in axes.items():
        layout[axis] |= more
    label = f"{title}. " + "; ".join(f"{s.name}: {_course(s.y)}" for s in series[:COLOURS]) + "."
    return Chart(id, title, label, [s.trace for s in series], layout, _table_of(title, x, series), note)


def round_axis(rounds: Sequence[float]) -> dict[str, Any]:
    """Returns the horizontal axis of a chart over these rounds. Few rounds have a tick each, and no tick in between."""
    each = {"dtick": 1} if max(rounds, default=0) - min(rounds, default=0) <= FEW else {}
    return {"title": {"text": "round"}, "tickformat": ",", **each}


def heatmap(
    id: str,
    title: str,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    names: tuple[str, str, str],
    note: str = "",
    xaxis: dict[str, Any] | None = None,
    **changes: Any,
) -> Chart:
    """Returns a heat map, of which at most ROWS rows are shown.

    Args:
        id: Id of the chart.
        title: Title.
        values: Values by row and column; None is an empty cell.
        rows: Names of the rows.
        columns: Names of the columns.
        names: What rows, columns and values are, such as ``("client", "class", "examples")``.
        note: Sentence below the title.
        xaxis: Changes of the horizontal axis.
        changes: Changes of the trace of Plotly.
    """
    kept = evenly(range(len(rows)), ROWS)
    shown, named = [values[i] for i in kept], [rows[i] for i in kept]
    cells = [value for row in shown for value in row if value is not None]
    row, column, value = names
    trace = {
        "type": "heatmap",
        "z": shown,
        "colorscale": "@seq",
        "hoverongaps": False,
        "xgap": 1 if len(columns) <= 60 else 0,
        "ygap": 1 if len(kept) <= 60 else 0,
        "hovertemplate": f"{row} %{{customdata[0]}}<br>{column} %{{customdata[1]}}<br>{value} %{{z}}<extra></extra>",
        "customdata": [[[plain(name), plain(other)] for other in columns] for name in named],
        "colorbar": {"title": {"text": value, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        **changes,
    }
    if len(shown) * len(columns) <= ANNOTATED and "texttemplate" not in changes:
        trace["texttemplate"] = "%{z}"
    axis = {"automargin": True, "ticks": "", "showgrid": False, "zeroline": False}
    layout = {
        "xaxis": {**axis, **ticks(columns, 24), "range": [-0.5, len(columns) - 0.5], "title": {"text": column}},
        "yaxis": {**axis, **ticks(named, 36), "range": [len(named) - 0.5, -0.5], "title": {"text": row}},
    }
    layout["xaxis"].update(xaxis or {})
    most = f"values from {number(min(cells))} to {number(max(cells))}" if cells else "no values"
    label = f"{title}: heat map of {value}, {len(rows)} rows ({row}) and {len(columns)} columns ({column}), {most}."
    cut = f" {len(kept)} of {len(rows)} rows are shown, evenly spaced." if len(kept) < len(rows) else ""
    body = [[name, *("" if v is None else number(v) for v in r)] for name, r in zip(named, shown, strict=True)]
    table = Table(title, [row, *columns], [body[i] for i in evenly(range(len(body)), _rows_for(len(columns)))])
    height = 130 + max(110, min(760, (24 if len(kept) <= 24 else 14 if len(kept) <= 60 else 7) * len(kept)))
    return Chart(id, title, label, [trace], layout, table, f"{note}{cut}".strip(), height, wide=True)


def ticks(names: Sequence[str], most: int) -> dict[str, Any]:
    """Returns the settings of an axis whose positions are named. Of many names, evenly spaced ones are written."""
    kept = evenly(range(len(names)), most)
    return {"tickmode": "array", "tickvals": kept, "ticktext": [plain(names[i]) for i in kept]}


def finite(value: float | None) -> float | None:
    """Returns the value, or None if it isn't finite: JSON has no such numbers."""
    return value if value is not None and math.isfinite(value) else None


def number(value: float | None) -> str:
    """Formats a number for reading.

    Example:
        >>> number(0.85562), number(1200345), number(3.2e-05), number(12)
        ('0.8556', '1,200,345', '3.2e-05', '12')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 0.001 else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def score(value: float | None) -> str:
    """Formats a metric such as an accuracy, always with its decimals.

    Example:
        >>> score(1.0), score(0.85562), score(None)
        ('1.0000', '0.8556', '–')
    """
    known = value is not None and math.isfinite(value) and 0.001 <= abs(value) < 100
    return f"{value:.4f}" if known or value == 0 else number(value)


def plain(text: str, most: int = 28) -> str:
    """Returns a text that Plotly shows as it is: Plotly reads HTML tags in texts, and line breaks.

    Example:
        >>> plain("<b>a</b>")
        '‹b›a‹/b›'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line if len(line) <= most else f"{line[: most - 1]}…"
    return line.replace("<", "‹").replace(">", "›").replace("&", "＆").replace("%{", "% {").replace("$", "＄")


def _course(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "no values"
    return f"from {score(known[0])} to {score(known[-1])}" if len(known) > 1 else score(known[0])


def _table_of(caption: str, x: str, series: Sequence[Series]) -> Table:
    """Returns a table with a row for each x. Curves over the same x share its row."""
    if len({tuple(s.x) for s in series}) == 1 or x == "round":
        xs = sorted({x for s in series for x in s.x})
        found = [dict(zip(s.x, s.y, strict=True)) for s in series]
        rows = [[number(x), *(score(values.get(x)) for values in found)] for x in xs]
        return Table(caption, [x, *(s.name for s in series)], [rows[i] for i in evenly(range(len(rows)), TABLE)])
    rows = [[s.name, number(a), score(b)] for s in series for a, b in zip(s.x, s.y, strict=True)]
    return Table(caption, ["run", x, "value"], [rows[i] for i in evenly(range(len(rows)), TABLE)])


def _rows_for(columns: int) -> int:
    """Returns the number of rows of a table with so many columns, so that no table has much more than 8000 cells."""
    return max(10, min(TABLE, 8000 // max(1, columns)))
