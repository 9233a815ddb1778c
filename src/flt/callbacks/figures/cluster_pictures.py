"""Draws a map of the updates, the cosines between clusters, and the clusters' metrics by round.

Like the functions in :mod:`flt.callbacks.figures.pictures`, the functions here are pure and turn values into
matplotlib figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flt.callbacks.clusters import Clustered
from flt.callbacks.figures.heatmap import ROOMY, annotate, categories, colour_bar, grid, legend, name_rows, new_figure
from flt.protocol.messages import JobId

MARKERS = "os^DvP*X<>ph"
"""Markers of the clusters. The markers repeat: the thirteenth cluster has the same marker as the first."""
ACCURACIES = {"round/clustering_acc": "share of jobs in their task's group", "cluster/rand": "adjusted Rand index"}
DISTANCES = {"cluster/between": "between clusters", "cluster/within": "within a cluster"}
_GREY = "#555555"


def task_map(clustered: Clustered, tasks: Mapping[JobId, str], rounds: int) -> Figure:
    """Draws the updates along their first two principal components. Colours show true tasks, and markers show groups.

    Args:
        clustered: Clustered updates of the round.
        tasks: Job -> its task.
        rounds: Number of finished rounds, for the title.
    """
    points, shares = clustered.principal
    names, gids = sorted({tasks[job] for job in clustered.jobs}), sorted(set(clustered.groups))
    colours = dict(zip(names, categories(len(names), then=_GREY), strict=False))
    markers = {gid: MARKERS[number % len(MARKERS)] for number, gid in enumerate(gids)}
    figure = new_figure(
        6.0, max(4.2, 1.6 + 0.25 * (len(names) + len(gids))), f"Updates of round {rounds}, by task and group"
    )
    axes = figure.subplots()
    for (x, y), job, gid in zip(points, clustered.jobs, clustered.groups, strict=True):
        axes.scatter(x, y, s=46, color=colours[tasks[job]], marker=markers[gid], edgecolors="white", linewidths=0.6,
                     alpha=0.9)  # fmt: skip
    for axis, number in ((axes.xaxis, 0), (axes.yaxis, 1)):
        axis.set_label_text(f"principal component {number + 1}  ({shares[number]:.0%} of the variance)", fontsize=10)
    axes.margins(0.08)
    _plain(axes)
    task_of = [tasks[job] for job in clustered.jobs]
    by_task = [_dot("o", colours[name], f"{name or 'all'}  ({task_of.count(name)})") for name in names]
    by_group = [_dot(markers[gid], _GREY, f"{gid}  ({clustered.groups.count(gid)})") for gid in gids]
    legend(figure, by_task, "outside right upper", "task  (updates)")
    legend(figure, by_group, "outside right lower", "group  (updates)")
    return figure


def cosine_matrix(gids: Sequence[int], values: np.ndarray, rounds: int) -> Figure:
    """Draws a heat map of the cosines between the changes of the clusters.

    The change of a cluster is its adapter minus v0, the adapter of the home group.

    Args:
        gids: Ids of the clusters, at least two.
        values: Cosines, as :func:`flt.callbacks.clusters.cosines` returns them. Shape: (clusters, clusters).
        rounds: Number of finished rounds, for the title.
    """
    side = min(8.0, max(2.4, 0.46 * len(gids)))
    figure = new_figure(side + 1.8, side + 1.3, f"Cosines of the groups' changes in {rounds} rounds")
    axes = figure.subplots()
    others = np.where(np.eye(len(gids)) > 0, np.nan, values)  # a group's cosine with itself says nothing
    image = grid(axes, others, "RdBu_r", Normalize(-1, 1))  # fixed, so that a colour means the same in all rounds
    name_rows(axes, [str(gid) for gid in gids], "group")
    axes.set_xticks(range(len(gids)), [str(gid) for gid in gids], fontsize=9 if len(gids) <= 24 else 7)
    axes.set_xlabel("group", fontsize=10)
    if len(gids) <= 16:
        annotate(axes, others, _cosine, lambda value: "white" if abs(value) > 0.6 else "black")
    colour_bar(axes, image)
    return figure


def curves(history: Sequence[Mapping[str, float]]) -> Figure | None:
    """Draws up to two plots over the rounds, one below the other.

    One plot shows the clusters' agreement with the true tasks, and the other the distances within and between clusters.

    Args:
        history: Metrics of all rounds.

    Returns:
        The figure, or None if the history contains none of these metrics.
    """
    panels = [keys for keys in (ACCURACIES, DISTANCES) if any(key in metrics for metrics in history for key in keys)]
    if not panels:
        return None
    figure = new_figure(5.0, 0.4 + 2.8 * len(panels), "Clusters by round")
    for axes, keys in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for key, label in keys.items():
            points = [(metrics["round"], metrics[key]) for metrics in history if key in metrics]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o" if len(points) <= ROOMY else None, markersize=3.5,
                          linewidth=1.6, label=label)  # fmt: skip
        if keys is ACCURACIES:
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.04)
            axes.set_title("agreement with the true tasks", fontsize=10)
        else:
            axes.set_ylim(bottom=0, top=1.08 * axes.get_ylim()[1])
            axes.set_title("mean distance between two updates", fontsize=10)
        axes.set_xlabel("round", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.grid(axis="y", color="#e6e6e6")
        axes.legend(fontsize=9, frameon=False, loc="best")
        _plain(axes)
    return figure


def _cosine(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # avoids -0.00


def _dot(marker: str, colour: object, label: str) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=6, label=label)  # type: ignore[arg-type]  # a colour map's tuple


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
