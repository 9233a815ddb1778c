"""The confusion matrix of an evaluation as a picture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from numpy.typing import NDArray

from flt.core.files import write_atomically
from flt.inference.metrics import Scores

MOST_CLASSES, WRITTEN = 50, 25
"""Largest number of classes of a matrix, and of a matrix whose numbers are written into it."""
WORST = 25
"""Number of confusions that are shown instead of a larger matrix."""
LONGEST = 24
"""Largest number of characters of a class's name."""


def confusion_figure(scores: Scores, title: str) -> Figure:
    """Draws the confusion matrix: a row for each true class, a column for each predicted class.

    The colour is the share of the row's examples. With more than ``MOST_CLASSES`` classes, bars show the most frequent
    confusions instead.

    Args:
        scores: Scores of a classifier.
        title: Title of the picture.
    """
    matrix = np.array(scores.confusion)
    names = labels([one.name for one in scores.classes])
    if len(matrix) > MOST_CLASSES:
        return _worst(matrix, names, title)
    side = max(3.6, min(16.0, 1.6 + 0.42 * len(matrix)))
    figure = Figure((side + 0.09 * max(map(len, names)) + 0.8, side + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(short(title, 80), fontsize=10)
    for row, column in np.argwhere(matrix > 0) if len(matrix) <= WRITTEN else ():
        colour = "white" if shares[row, column] > 0.55 else "black"
        axes.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return figure


def _worst(matrix: NDArray, names: list[str], title: str) -> Figure:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = [place for place in np.argsort(-wrong, axis=None, kind="stable")[:WORST] if wrong.flat[place]]
    pairs = [divmod(int(place), len(matrix)) for place in order]
    figure = Figure((9, 1.6 + 0.27 * max(len(pairs), 1)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    counts = [int(wrong[pair]) for pair in pairs]
    bars = axes.barh(range(len(pairs)), counts, color="#2171b5")
    axes.bar_label(bars, fontsize=8, padding=2)
    axes.set_yticks(range(len(pairs)), [f"{names[true]} as {names[other]}" for true, other in pairs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("examples")
    what = f"the {len(pairs)} most frequent confusions of {len(matrix)} classes"
    figure.suptitle(f"{short(title, 60)}: {what}", fontsize=10)
    return figure


def labels(names: Sequence[str]) -> list[str]:
    """Returns the names of classes for a picture.

    They have their numbers before them if two of them look alike after they were cut, or if the font lacks a character,
    such as a Chinese one, which becomes a box.
    """
    font = get_font(findfont(FontProperties()))
    found = [short(name) for name in names]
    if len(set(found)) == len(found) and all(font.get_char_index(ord(c)) for name in found for c in name):
        return found
    return [f"{number}: {name}" for number, name in enumerate(found, start=1)]


def short(name: str, longest: int = LONGEST) -> str:
    """Returns a name for a picture: of at most ``longest`` characters, printable, without matplotlib's mathematics."""
    shown = name if len(name) <= longest else f"{name[: longest - 3]}..."
    return "".join(c if c.isprintable() else "?" for c in shown).replace("$", r"\$")


def write_picture(figure: Figure, folder: Path, *names: str) -> Path:
    """Writes a picture as a PNG file. Returns its path, such as ``confusion_test.png``.

    Args:
        figure: The picture.
        folder: Folder, which must exist.
        names: Parts of the file's name, such as the name of the data and of the task.
    """
    parts = [re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] for name in names]
    path = folder / ("_".join(["confusion", *filter(None, parts)]) + ".png")
    data = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # such as those of a Chinese name
        figure.savefig(data, format="png", bbox_inches="tight")
    write_atomically(path, data.getvalue())
    return path
