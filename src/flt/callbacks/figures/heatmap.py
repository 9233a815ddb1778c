"""Functions that draw heat maps without pyplot. All pictures of a federation use them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

DPI = 120
NARROW = 24
"""Largest number of rows for which panels are drawn one below the other. TensorBoard's cards are 350 pixels wide, so
that the text in a picture that is wider than five inches is hard to read there."""
ROOMY = 40
"""Largest number of rows or columns for which thin lines are drawn between the cells."""
NAMED = 30
"""Largest number of columns that are named."""
LONGEST = 24
"""Largest number of characters of the name of a column."""
COVERED: dict[str, Any] = {"facecolor": "#cfcfcf", "edgecolor": "#969696", "hatch": "/////", "linewidth": 0}


def new_figure(width: float, height: float, title: str) -> Figure:
    """Returns an empty figure of the given width and height in inches."""
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    figure.suptitle(title, fontsize=12)
    return figure


def row_height(rows: int) -> float:
    """Returns the height of one row in inches. The height is smaller if there are many rows."""
    return 0.27 if rows <= 24 else 0.18


def name_rows(axes: Axes, names: Sequence[str], what: str) -> None:
    """Labels the rows, with the first row at the top. Removes the tick marks in all panels that share the rows."""
    axes.set_yticks(range(len(names)), names, fontsize=9 if len(names) <= 24 else 8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_ylabel(what, fontsize=10)
    for other in (axes, *axes.get_shared_y_axes().get_siblings(axes)):
        other.tick_params(axis="y", which="both", length=0)


def name_columns(axes: Axes, names: Sequence[str]) -> None:
    """Labels the columns. Of more than NAMED columns, only some are labelled. Without names, nothing changes."""
    if not names:
        return
    each = -(-len(names) // NAMED)
    shown = [readable(name) for name in names[::each]]
    axes.set_xticks(range(0, len(names), each), shown, fontsize=9, rotation=90 if room_below(names) else 0)


def room_below(names: Sequence[str]) -> float:
    """Returns the additional height in inches that upright names of columns need. Names of two characters lie flat."""
    longest = max((len(readable(name)) for name in names), default=0)
    return 0.085 * longest if longest > 2 else 0.0


def readable(name: str) -> str:
    """Returns a name on one line, of at most LONGEST characters. matplotlib would read texts between $ as formulas.

    Example:
        >>> readable("a" + chr(10) + "b"), readable("x" * 50)
        ('a b', 'xxxxxxxxxxxxxxxxxxxxxxx…')
    """
    line = "".join(c if c.isprintable() else " " for c in name)
    line = " ".join(line.split())
    return (line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…").replace("$", r"\$")


def grid(axes: Axes, values: np.ndarray, colours: str | Colormap, scale: Normalize) -> AxesImage:
    """Draws a heat map, with thin lines between the cells if there is room for them."""
    image = axes.imshow(values, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    axes.spines[:].set_visible(False)
    axes.tick_params(labelsize=9)
    for axis, cells in ((axes.yaxis, values.shape[0]), (axes.xaxis, values.shape[1])):
        if cells <= ROOMY:
            axis.set_ticks(np.arange(cells + 1) - 0.5, minor=True)
            axis.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    return image


def annotate(axes: Axes, values: np.ndarray, text: Callable[[float], str], colour: Callable[[float], str]) -> None:
    """Writes the values into the cells."""
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(x, y, text(value), ha="center", va="center", fontsize=8, color=colour(value))


def cover(axes: Axes, cells: np.ndarray) -> None:
    """Covers the cells for which ``cells`` is True with grey. If the cells are large enough, they are also hatched."""
    grey = ListedColormap([COVERED["facecolor"]])
    axes.imshow(np.where(cells, 0.0, np.nan), cmap=grey, aspect="auto", interpolation="nearest")
    if max(cells.shape) <= ROOMY:
        for y, x in np.argwhere(cells):
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **COVERED))


def colour_bar(axes: Axes, image: AxesImage) -> Axes:
    """Draws a colour bar that is as high as the heat map. With matplotlib's own placement, the heights would differ."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = 0.12 / (axes.get_position().width * figure.get_figwidth())
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + width, 0, width, 1)))
    bar.ax.tick_params(which="both", labelsize=8, length=2)
    bar.outline.set_visible(False)
    return bar.ax


def legend(figure: Figure, handles: Sequence[Artist], where: Any, title: str = "") -> None:
    """Draws a legend beside the panels. ``where`` is passed to matplotlib as ``loc``."""
    shown = figure.legend(handles=list(handles), loc=where, fontsize=9, frameon=False, title=title)
    shown.get_title().set_fontsize(9)


def pixels(figure: Figure) -> np.ndarray:
    """Returns the picture as a uint8 array of shape (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from"
        )  # such as those of a Chinese name; boxes replace them
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def categories(count: int, then: str) -> list[Any]:
    """Returns ``count`` different colours, followed by ``then``. More than 20 colours are hard to tell apart."""
    if count <= 20:
        return [*(matplotlib.colormaps["tab10" if count <= 10 else "tab20"](i) for i in range(count)), then]
    return [*(matplotlib.colormaps["turbo"](i / (count - 1)) for i in range(count)), then]


def padded(rows: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Returns rows of unequal lengths as one array, filled up with NaN. Shape: (rows, length of the longest row)."""
    return np.array(list(zip_longest(*rows, fillvalue=np.nan)), dtype=float).T.reshape(len(rows), -1)
