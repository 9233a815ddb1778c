"""Figures of a comparison for papers: curves over rounds and over bytes, and the final values of all seeds.

All functions are pure. They don't use pyplot, which has a global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from flt.core import formatting
from flt.reports.compare_statistics import Curve, curve, summary
from flt.reports.compare_tables import DOUBLE, SINGLE, View, curve_title, title_of

FORMATS = ("png", "pdf", "svg")
KINDS = ("all", "rounds", "bytes", "final")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Colours of Okabe and Ito, which are safe for the colour-blind. Their yellow is left out, being too pale for lines."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vP"
FONT, SMALL = 8, 7
"""Sizes of the text in points, at the width at which a figure is printed."""
BANDS = 5
"""More methods than these are drawn without bands, which would cover one another."""
WIDE = 20
"""Ratio of the largest to the smallest number of bytes above which their axis is logarithmic."""
MARKED = 12
"""Curves of at most this number of points have markers."""
ROUND = (1, 2, 5, 10)
"""Distances of ticks, times a power of ten. All that are below 1 lead to a tick at 1."""
LONGEST = 34
"""Largest number of characters of a method's name in a figure."""


def figure(view: View, kind: str = "all", width: float | None = None) -> Figure:
    """Draws a figure.

    Args:
        view: Problem with its methods.
        kind: ``rounds``, ``bytes``, ``final``, or ``all`` for these three in one figure.
        width: Width in inches. None: the double column for ``all``, else the single column.
    """
    width = width or (DOUBLE if kind == "all" else SINGLE)
    draw = {"rounds": _rounds, "bytes": _bytes, "final": _final}
    kinds = ["rounds", "bytes", "final"] if kind == "all" else [kind]
    if view.at.curve is None:
        kinds = ["final"]
    in_a_row = len(kinds) if width > 1.5 * SINGLE else 1
    legend_rows = math.ceil(len(view.methods) / _legend_columns(view, width)) if kinds != ["final"] else 0
    heights = [_height(view, name, width / in_a_row) for name in kinds]
    height = (max(heights) if in_a_row > 1 else sum(heights)) + 0.17 * legend_rows
    made = Figure((width, height), dpi=300, layout=ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.03, wspace=0.04))
    shape = (1, len(kinds)) if in_a_row > 1 else (len(kinds), 1)
    axes = made.subplots(*shape, squeeze=False, height_ratios=None if in_a_row > 1 else heights).ravel()
    for at, name in zip(axes, kinds, strict=True):
        _style(at)
        draw[name](at, view)
    if len(kinds) > 1:
        for at, letter in zip(axes, "abc", strict=True):
            at.set_title(f"({letter})", fontsize=FONT, loc="left")
    if in_a_row > 1 and len(kinds) > 1:
        axes[1].sharey(axes[0])
        axes[1].set_ylabel("")
    if legend_rows:
        _legend(made, axes[0], view, width)
    return made


def _height(view: View, kind: str, width: float) -> float:
    """Returns the height of a panel in inches. In ``final``, each method has a row."""
    rows = len(view.methods)
    return 0.5 + rows * (0.3 if rows < 7 else 0.2) if kind == "final" else min(2.2, max(1.6, 0.68 * width))


def _rounds(axes: Axes, view: View) -> None:
    _curves(axes, view, [curve(method, view.at.curve or "") for method in view.methods])
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=ROUND, min_n_ticks=1))


def _bytes(axes: Axes, view: View) -> None:
    curves = [curve(method, view.at.curve or "", over_bytes=True) for method in view.methods]
    _curves(axes, view, curves)
    axes.set_xlabel("MB sent, up and down")
    ends = [drawn.x[-1] for drawn in curves if drawn.x]
    if ends and max(ends) > WIDE * min(ends) > 0:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _curves(axes: Axes, view: View, curves: Sequence[Curve]) -> None:
    for number, (method, drawn) in enumerate(zip(view.methods, curves, strict=True)):
        if not drawn.x:  # there is no global model, or the metric isn't measured
            continue
        marker = MARKERS[number % len(MARKERS)] if len(drawn.x) <= MARKED else None
        look: dict[str, Any] = {"color": _colour(number), "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
        axes.plot(drawn.x, drawn.mean, linewidth=1.2, marker=marker, markersize=2.5, label=_name(method.label), **look)
        if len(view.methods) <= BANDS and np.isfinite(drawn.deviation).any():
            low, high = np.subtract(drawn.mean, drawn.deviation), np.add(drawn.mean, drawn.deviation)
            axes.fill_between(drawn.x, low, high, color=_colour(number), alpha=0.15, linewidth=0)
    if view.target is not None:
        axes.axhline(view.target, color="#666666", linewidth=0.7, linestyle=(0, (1, 2)))
    axes.set_ylabel(curve_title(view.at.curve or ""))
    # By default, matplotlib draws only two ticks in a panel that is this low.
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=ROUND))
    lines = [number for drawn in curves for number in drawn.mean]
    axes.set_ylim(_limits(view.at.curve or "", [*lines, *filter(None, [view.target])], axes.get_ylim()))


def _final(axes: Axes, view: View) -> None:
    """Draws the value of each seed as a point, and the mean with its deviation below. The first method is on top."""
    column, names = view.at.columns[0], list[str]()
    for number, method in enumerate(view.methods):
        found = summary(method, column, view.at)
        values, row = list(found.values.values()), len(names)
        if not values:
            continue
        names.append(_name(method.label))
        colour, marker = _colour(number), MARKERS[number % len(MARKERS)]
        axes.plot(values, [row] * len(values), marker, color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        if len(values) > 1:
            axes.errorbar(
                found.mean, row + 0.25, xerr=found.deviation, fmt="|", color=colour, markersize=6, capsize=2,
                elinewidth=1, markeredgewidth=1.2,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(title_of(column, view.at))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=ROUND))
    points = [number for method in view.methods for number in summary(method, column, view.at).values.values()]
    axes.set_xlim(_limits(column, points, axes.get_xlim()))
    axes.tick_params(axis="y", length=0)


def _limits(column: str, values: Sequence[float], limits: tuple[float, float]) -> tuple[float, float]:
    """Returns the limits of an axis. That of an accuracy ends close to 0 and 1, and has no tick beyond them."""
    low, high = limits
    if not formatting.accuracy([column]) or not values or not 0 <= min(values) <= max(values) <= 1:
        return limits
    margin = 0.02 * (min(high, 1) - max(low, 0))  # so that a point at the end isn't cut
    return max(low, -margin), min(high, 1 + margin)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL, width=0.6, length=2.5)
    axes.xaxis.label.set_fontsize(FONT)
    axes.yaxis.label.set_fontsize(FONT)
    axes.grid(color="#e5e5e5", linewidth=0.5)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)


def _legend(made: Figure, axes: Axes, view: View, width: float) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = _legend_columns(view, width)
    made.legend(
        handles, labels, loc="outside upper center", ncols=columns, fontsize=SMALL, frameon=False, handlelength=2.2,
        columnspacing=1.2, borderpad=0.1,
    )  # fmt: skip


def _legend_columns(view: View, width: float) -> int:
    """Returns the number of names that fit beside each other: a character is 0.06 inches wide, a line half an inch."""
    longest = max(len(_name(method.label)) for method in view.methods)
    return max(1, min(len(view.methods), int((width - 0.2) / (0.06 * longest + 0.5))))


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _name(label: str) -> str:
    """Returns a method's name. matplotlib would read texts between $ as formulas, and leave out _names of legends."""
    short = label if len(label) <= LONGEST else f"{label[: LONGEST - 1]}…"
    return (f" {short}" if short.startswith("_") else short).replace("$", r"\$")


def save(made: Figure, form: str) -> bytes:
    """Returns the figure as a file. The same figure gives the same bytes. Text stays text in pdf and svg.

    Args:
        made: The figure.
        form: ``png``, ``pdf`` or ``svg``.
    """
    FigureCanvasAgg(made)
    buffer = io.BytesIO()
    dates: dict[str, dict[str, str | None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    # Only rc settings choose how fonts are embedded. Publishers refuse Type 3, matplotlib's default in pdf files.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "flt"}):
        made.savefig(buffer, format=form, metadata=dates.get(form))
    return buffer.getvalue()
