"""The rank-1 components of a run: which were trained, by how many clients and by which, and how important they are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flt.callbacks.record_format import evenly
from flt.reports.charts import POINTS, Chart, Series, heatmap, lines, plain
from flt.reports.curves import points
from flt.reports.read import Recorded

COLUMNS = 400
"""Largest number of components that have a column each in the map of clients. Of more, each layer has one column."""
DECADES = 4
"""Number of powers of ten that the colours of importance span."""


def trained(recorded: Recorded) -> list[Chart]:
    """Returns the heat map of how often each component was trained, summed over the recorded rounds."""
    found = recorded.having("trained")
    if not found:
        return []
    counts = [[0] * rank for rank in recorded.layers.values()]
    for line in found:
        for row, more in zip(counts, line["trained"], strict=True):
            for i, count in enumerate(more):
                row[i] += int(count)
    note = f"Number of local fits that trained a component, over {_rounds(found)}."
    names = ("layer", "component", "fits")
    return [_map("chart-trained", "Training of each component", counts, recorded, names, note)]


def importance(recorded: Recorded) -> list[Chart]:
    """Returns the heat maps of the importance of each component after the last recorded round, one for each group."""
    found = recorded.having("importance")
    if not found:
        return []
    line, charts = found[-1], []
    for gid, scores in line["importance"].items():
        positive = [value for layer in scores for value in layer if value is not None and value > 0]
        least = max(min(positive), max(positive) * 10**-DECADES)
        logs = [[None if v is None or v <= 0 else math.log10(max(v, least)) for v in layer] for layer in scores]
        several = len(line["importance"]) > 1
        title = f"Importance of each component{f' in group {int(gid)}' if several else ''}"
        note = f"After round {line['round']}, on a logarithmic scale."
        names = ("layer", "component", "log10 of importance")
        chart_id = f"chart-importance-{int(gid)}" if several else "chart-importance"
        values = [[None if v is None else round(v, 3) for v in row] for row in logs]
        charts.append(_map(chart_id, title, values, recorded, names, note, texttemplate=""))
    return charts


def by_client(recorded: Recorded) -> list[Chart]:
    """Returns the heat map of which client trained which component in which share of its rounds."""
    found = recorded.having("by_job")
    if not found:
        return []
    layers, jobs = recorded.layers, recorded.jobs
    total, size = sum(layers.values()), sum(layers.values()) <= COLUMNS
    counts = {int(place): [0] * total for place in recorded.head["shown"]}
    fits = dict.fromkeys(counts, 0)
    for line in found:
        for place, mask in line["by_job"].items():
            bits = int(mask, 16)
            if bits >> total:
                raise ValueError("by_job names a component that no layer has")
            fits[int(place)] += 1
            row = counts[int(place)]
            for i in range(total):
                row[i] += bits >> i & 1
    rows = {place: [count / fits[place] for count in row] for place, row in counts.items() if fits[place]}
    columns = [f"{name} · {i}" for name, rank in layers.items() for i in range(rank)]
    if not size:
        rows, columns = {place: _by_layer(row, list(layers.values())) for place, row in rows.items()}, list(layers)
    values = [[round(share, 3) for share in row] for row in rows.values()]
    note = f"Share of a client's fits that trained a {'component' if size else 'layer'}, over {_rounds(found)}."
    of = recorded.head["of"]
    note += f" {len(rows)} of {of} are recorded." if len(rows) < of else ""
    names = ("client", "component" if size else "layer", "share of fits")
    title = f"{'Components' if size else 'Layers'} by client"
    axis = _layer_ticks(layers) if size else {}
    return [heatmap("chart-by-client", title, values, [jobs[place] for place in rows], columns, names, note, axis,
                    texttemplate="", zmin=0, zmax=1)]  # fmt: skip


def budget(recorded: Recorded) -> list[Chart]:
    """Returns the curves of the rank budget, and the heat map of the active components of each layer."""
    run, charts = recorded.run, list[Chart]()
    curves = {
        "ranks/living": "mean over layers",
        "ranks/smallest": "smallest layer",
        "ranks/clients": "mean rank of clients",
    }
    series = [
        Series(name, *curve, place, "dot" if place else "solid")
        for place, (key, name) in enumerate(curves.items())
        if (curve := points(run, "round", key))[0]
    ]
    if series:
        axis = {"rangemode": "tozero"}
        curves_of = lines("chart-ranks", "Rank budget over rounds", "round", "active components", series, yaxis=axis)
        charts.append(dataclasses.replace(curves_of, wide=True))
    if found := recorded.having("active"):
        shown = [found[i] for i in evenly(range(len(found)), min(POINTS, 120))]
        values = [[int(line["active"][row]) for line in shown] for row in range(len(recorded.layers))]
        title, columns = "Active components of each layer", [str(line["round"]) for line in shown]
        names = ("layer", "round", "components")
        charts.append(heatmap("chart-active", title, values, list(recorded.layers), columns, names, zmin=0,
                              zmax=max(map(max, values))))  # fmt: skip
    return charts


def _map(
    id: str,
    title: str,
    values: Sequence[Sequence[Any]],
    recorded: Recorded,
    names: tuple[str, str, str],
    note: str,
    **changes: Any,
) -> Chart:
    """Returns a heat map with a row for each layer and a column for each component."""
    layers = recorded.layers
    widest = max(layers.values())
    padded = [[*row, *[None] * (widest - len(row))] for row in values]
    return heatmap(id, title, padded, list(layers), [str(i) for i in range(widest)], names, note, **changes)


def _layer_ticks(layers: dict[str, int]) -> dict[str, Any]:
    """Returns the settings of an axis of components with the name of each layer below the middle of its components."""
    middles, start = [], 0
    for rank in layers.values():
        middles.append(start + (rank - 1) / 2)
        start += rank
    kept = evenly(range(len(layers)), 8)
    names = list(layers)
    return {"tickvals": [middles[i] for i in kept], "ticktext": [plain(names[i], 20) for i in kept]}


def _by_layer(row: Sequence[float], ranks: Sequence[int]) -> list[float]:
    """Returns the mean over the components of each layer."""
    means, start = [], 0
    for rank in ranks:
        means.append(sum(row[start : start + rank]) / max(1, rank))
        start += rank
    return means


def _rounds(found: Sequence[dict[str, Any]]) -> str:
    first, last = found[0]["round"], found[-1]["round"]
    whole = len(found) == last - first + 1
    return f"rounds {first} to {last}" if whole else f"{len(found)} recorded rounds from {first} to {last}"
