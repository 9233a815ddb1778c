"""Draws the labels of each client, the training and importance of rank-1 components, and the groups of jobs.

All functions are pure and turn values into matplotlib figures. They don't use pyplot, which has a global state, and are
therefore thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flt.callbacks.figures.heatmap import (
    COVERED,
    NARROW,
    annotate,
    categories,
    colour_bar,
    cover,
    grid,
    legend,
    name_columns,
    name_rows,
    new_figure,
    padded,
    room_below,
    row_height,
)
from flt.data.clients import ClientSpec, JobData
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Update
from flt.protocol.state import ServerState

ROWS, COLUMNS, PANELS = 50, 300, 3
"""Limits of the pictures. ``partition`` shows at most ROWS jobs, ``assignment`` at most COLUMNS jobs of each task, and
``rank_map`` at most PANELS groups."""
ANNOTATED = 30
"""Largest number of columns for which numbers are written into the cells."""
EMPTY = "#f0f0f0"


def partition(clients: Mapping[int, ClientSpec]) -> Figure:
    """Draws a heat map with the number of training examples of each job and label, and a bar with each job's total.

    If the labels weren't counted, only the bars are drawn. The columns have the names of the classes, if there are any.
    """
    shown = _first_clients(clients)
    jobs = [data for client in shown for data in client.data]
    several = len({data.task for data in jobs}) > 1
    names = [f"{c.id}  {data.task}" if several else str(c.id) for c in shown for data in c.data]
    counts, classes = class_counts(jobs)
    labels = counts.shape[1]
    wide, total = min(8.0, max(1.8, 0.31 * labels)), sum(d.examples for c in clients.values() for d in c.data)
    title = f"{total:,} training examples, {len(clients)} clients"
    title += f", the first {len(shown)} shown" if len(shown) < len(clients) else ""
    figure = new_figure(2.3 + wide, 1.4 + room_below(classes) + row_height(len(jobs)) * len(jobs), title)
    if labels:
        first, last = figure.subplots(1, 2, sharey=True, width_ratios=[wide, 1.0])
        _label_counts(first, counts)
        name_columns(first, classes)
    else:
        first = last = figure.subplots()
    _sizes(last, [len(data.train) for data in jobs])
    name_rows(first, names, "client and task" if several else "client")
    return figure


def rank_map(layout: Layout, state: ServerState, updates: Sequence[Update]) -> Figure:
    """Draws heat maps of the number of clients that trained each component and of each component's importance.

    A row is a layer, and a column is a component. Each group has its own heat map of importances, up to PANELS groups.
    Groups whose importance scores weren't measured yet are left out. Pruned components are hatched.

    Args:
        layout: Names and ranks of the layers.
        state: State after the round.
        updates: Updates of the round.
    """
    scores = {gid: values for gid in state.clusters if np.nanmax(values := _scores(layout, state, gid)) > 0}
    scores = dict(list(scores.items())[:PANELS])
    layers, rank = len(layout.layers), max(layer.rank for layer in layout.layers.values())
    below, beside = (1 + len(scores), 1) if layers <= NARROW else (1, 1 + len(scores))
    width = 1.8 + (min(6.0, max(2.2, 0.2 * rank)) + 0.8) * beside
    height = 0.7 + (1.0 + row_height(layers) * layers) * below
    figure = new_figure(width, height, f"Rank-1 components after round {state.rounds}")
    pruned = _pruned(layout, state)
    panels = figure.subplots(below, beside, sharey=True, squeeze=False).flat
    _trained(panels[0], _clients_per_component(layout, updates))
    for axes, (gid, values) in zip(panels[1:], scores.items(), strict=True):
        _importance(axes, values, "importance" if len(scores) == 1 else f"importance in group {gid}")
    for axes in panels:
        cover(axes, pruned)
        axes.set_xlabel("component", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    for axes in panels[:below]:
        name_rows(axes, short_names(list(layout.layers)), "layer")
    if pruned.any():
        legend(figure, [Patch(label="pruned", **COVERED)], "outside lower right")
    return figure


def components_differ(layout: Layout, state: ServerState, updates: Sequence[Update]) -> bool:
    """Returns whether :func:`rank_map` shows anything: a component that is pruned, more important, or not trained."""
    if not layout.layers:
        return False
    partly = any(components != state.active[layer] for u in updates for layer, components in u.kept.items())
    measured = any(bool((scores > 0).any()) for gid in state.clusters for scores in state.groups[gid].scores.values())
    return partly or measured or bool(_pruned(layout, state).any())


def assignment(state: ServerState, tasks: Mapping[JobId, str]) -> Figure:
    """Draws one row per task. Each cell is a job of the task and has the colour of the job's group.

    If a row has a single colour, all jobs of the task are in the same group.

    Args:
        state: State after the round.
        tasks: Job -> its task.
    """
    names, gids = list(dict.fromkeys(tasks[job] for job in sorted(tasks))), state.clusters
    rows = [[state.group_of(job) for job in sorted(tasks) if tasks[job] == name][:COLUMNS] for name in names]
    codes = padded([[gids.index(gid) if gid in gids else len(gids) for gid in row] for row in rows])
    columns = codes.shape[1]
    size = (2.5 + min(8.0, max(2.0, 0.24 * columns)), max(1.7 + 0.34 * len(names), 1.2 + 0.24 * len(gids)))
    figure = new_figure(*size, f"Groups of jobs after round {state.rounds}")
    axes = figure.subplots()
    colours = ListedColormap(categories(len(gids), then=EMPTY))
    grid(axes, codes, colours, Normalize(-0.5, len(gids) + 0.5))
    if columns <= ANNOTATED:
        annotate(axes, codes, lambda code: str(gids[int(code)]) if code < len(gids) else "", lambda code: "white")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    only = f" (the first {COLUMNS})" if columns == COLUMNS else ""
    axes.set_xlabel(f"jobs, ordered by client{only}", fontsize=10)
    name_rows(axes, [name or "all" for name in names], "task")
    legend(figure, _group_patches(state, tasks, gids, colours), "outside right upper", "group  (jobs)")
    return figure


def short_names(names: Sequence[str]) -> list[str]:
    """Returns dotted names without the words that all names have in common.

    Example:
        >>> short_names(["bert.layer.0.attention.query", "bert.layer.1.attention.value"])
        ['0.query', '1.value']
        >>> short_names(["vit.layer.0.query", "vit.layer.0.mlp.up"])
        ['query', 'mlp.up']
    """
    parts = [name.split(".") for name in names]
    if len(names) < 2:
        return [words[-1] for words in parts]
    if len({len(words) for words in parts}) == 1:
        shared = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
        return [".".join(p for p, same in zip(words, shared, strict=True) if not same) for words in parts]
    shortest = min(map(len, parts)) - 1  # keeps at least one word of each name
    start = next((i for i in range(shortest) if len({words[i] for words in parts}) > 1), shortest)
    return [".".join(words[start:]) for words in parts]


def _first_clients(clients: Mapping[int, ClientSpec]) -> list[ClientSpec]:
    ordered = [clients[client] for client in sorted(clients)]
    jobs = np.cumsum([len(client.data) for client in ordered])
    return ordered[: max(1, int((jobs <= ROWS).sum()))]


def _clients_per_component(layout: Layout, updates: Sequence[Update]) -> np.ndarray:
    """Returns the number of clients that trained each component. Shape: (layers, largest rank), filled up with NaN."""
    sets = {
        (u.job[0], layer, component)
        for u in updates
        for layer, components in u.kept.items()
        for component in components
    }
    counts = {name: np.zeros(layer.rank) for name, layer in layout.layers.items()}
    for _, layer, component in sets:
        counts[layer][component] += 1
    return padded(list(counts.values()))


def _scores(layout: Layout, state: ServerState, gid: int) -> np.ndarray:
    """Returns a group's importance scores. Shape: (layers, largest rank), filled up with NaN."""
    return padded([state.groups[gid].scores[name].numpy() for name in layout.layers])


def _pruned(layout: Layout, state: ServerState) -> np.ndarray:
    """Returns a mask that is True for pruned components. Shape: (layers, largest rank)."""
    active = [np.isin(np.arange(layer.rank), state.active[name]) for name, layer in layout.layers.items()]
    return padded(active) == 0


def class_counts(jobs: Sequence[JobData]) -> tuple[np.ndarray, list[str]]:
    """Returns the number of training examples of each job and class, and the names of the classes.

    Jobs whose classes have other names than those of other jobs get columns of their own. The array has the shape
    (jobs, columns), and is filled up with NaN.
    """
    widths: dict[tuple[str, ...], int] = {}
    for job in jobs:
        widths[job.label_names] = max(widths.get(job.label_names, 0), len(job.label_counts))
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    rows = [[np.nan] * starts[job.label_names] + list(job.label_counts) for job in jobs]
    named = [name for names, width in widths.items() for name in [*names, *map(str, range(len(names), width))][:width]]
    return padded(rows), named if any(widths) else []


def _label_counts(axes: Axes, counts: np.ndarray) -> None:
    colours = ListedColormap(matplotlib.colormaps["magma_r"](np.linspace(0, 0.85, 256)))  # small counts are light
    most = np.nanmax(counts)
    image = grid(axes, counts, colours, Normalize(0, most))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
    axes.set_xlabel("label", fontsize=10)
    if counts.shape[1] <= ANNOTATED:
        annotate(axes, counts, lambda count: f"{count:.0f}", lambda count: "white" if count > 0.45 * most else "black")
    else:
        colour_bar(axes, image)


def _sizes(axes: Axes, sizes: Sequence[int]) -> None:
    axes.tick_params(labelsize=9)
    axes.barh(range(len(sizes)), sizes, height=0.75, color="#5b7fa6")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes.set_xlabel("examples", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _trained(axes: Axes, counts: np.ndarray) -> None:
    most = max(1, int(np.nanmax(counts)))
    colours = matplotlib.colormaps["viridis"].resampled(most + 1) if most < 12 else "viridis"
    image = grid(axes, counts, colours, Normalize(-0.5, most + 0.5))
    axes.set_title("clients per component", fontsize=10)
    colour_bar(axes, image).yaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))


def _importance(axes: Axes, scores: np.ndarray, title: str) -> None:
    """Draws importance scores on a logarithmic scale.

    The scores of different layers differ by orders of magnitude. With a linear scale, the components of a layer with
    small scores would all look alike.
    """
    most = np.nanmax(scores)
    least = max(np.min(scores[scores > 0]), most * 1e-4)
    scale = LogNorm(min(least, most / 2), most)
    image = grid(axes, np.where(scores > 0, scores, np.nan), "magma", scale)
    axes.set_title(title, fontsize=10)
    colour_bar(axes, image)


def _group_patches(state: ServerState, tasks: Mapping[JobId, str], gids: list[int], colours: Colormap) -> list[Patch]:
    sizes = [sum(state.group_of(job) == gid for job in tasks) for gid in gids]
    patches = [Patch(color=colours(i), label=f"{gid}  ({sizes[i]})") for i, gid in enumerate(gids)]
    waiting = len(tasks) - sum(sizes)
    return patches + ([Patch(color=EMPTY, label=f"none yet  ({waiting})")] if waiting else [])
