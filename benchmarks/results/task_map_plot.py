"""The picture of a task map: where the clusters of a run ended, and the cosines of their changes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def png(title: str, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, str | None]) -> bytes:
    """Draws the clusters along two principal components, and beside them the matrix of cosines with its numbers.

    Args:
        title: Above both parts.
        rows: The clusters, as :func:`flt.callbacks.task_map.task_map` returns them.
        metadata: Of the file.
    """
    from matplotlib.colors import Normalize

    from flt.callbacks.figures.heatmap import annotate, grid, name_rows, new_figure

    figure = new_figure(8.6, 4.0, title)
    left, right = figure.subplots(1, 2)
    names = [f"{row['task'] or 'all'} ({row['group']})" for row in rows]
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        left.scatter(row["x"], row["y"], s=20 + 12 * row["jobs"], color=f"C{number % 10}", edgecolors="white")
        left.annotate(name, (row["x"], row["y"]), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=8)
    far = 1.3 * max(max(abs(row["x"]), abs(row["y"])) for row in rows) or 1.0
    left.set(xlim=(-far, far), ylim=(-far, far))  # one scale, so that distances can be compared
    left.set_xlabel("principal component 1", fontsize=9)
    left.set_ylabel("principal component 2", fontsize=9)
    left.tick_params(labelsize=8)
    left.spines[["top", "right"]].set_visible(False)
    values = np.array([row["cosines"] for row in rows], dtype=float)
    others = np.where(np.eye(len(rows)) > 0, np.nan, values)  # a cluster's cosine with itself says nothing
    grid(right, others, "RdBu_r", Normalize(-1, 1))
    name_rows(right, names, "cluster: task of most jobs (group)")
    right.set_xticks(range(len(rows)), names, fontsize=8, rotation=30, ha="right")
    if len(rows) <= 16:
        annotate(right, others, lambda v: f"{round(v, 2) + 0.0:.2f}", lambda v: "white" if abs(v) > 0.6 else "black")
    right.set_title("cosines of the changes", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata=dict(metadata))
    return buffer.getvalue()
