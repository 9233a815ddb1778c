"""The groups of a run: the group of each job in each round, the map of tasks, and the agreement with the tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from flt.callbacks.record_format import evenly
from flt.reports.charts import COLOURS, TABLE, Chart, Series, Table, heatmap, lines, number, plain
from flt.reports.curves import points
from flt.reports.read import Recorded

FRAMES, COLUMNS = 40, 120
"""Largest number of rounds of the map of tasks, and of the map of groups."""
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
AGREEMENT = {"round/clustering_acc": "jobs in the group of their task", "cluster/rand": "adjusted Rand index"}
DISTANCES = {"cluster/between": "between clusters", "cluster/within": "within a cluster"}


def groups(recorded: Recorded) -> list[Chart]:
    """Returns the heat map of the group of each job in each round. Jobs of the same task stand together."""
    found = recorded.having("groups")
    if not found:
        return []
    shown = [found[i] for i in evenly(range(len(found)), COLUMNS)]
    head, tasks = recorded.head, recorded.head["tasks"]
    order = sorted(range(len(head["jobs"])), key=lambda place: (head["task"][place], place))
    ids = sorted({int(gid) for line in shown for gid in line["groups"]} - {-1})
    code = {gid: i for i, gid in enumerate(ids)}
    values = [[code.get(int(line["groups"][place])) for line in shown] for place in order]
    several = len(tasks) > 1
    rows = [f"{tasks[head['task'][i]]}  {recorded.jobs[i]}" if several else recorded.jobs[i] for i in order]
    texts = [["" if value is None else str(ids[value]) for value in row] for row in values]
    few = len(order) * len(shown) <= 400
    changes: dict[str, Any] = {
        "colorscale": "@groups", "zmin": -0.5, "zmax": max(COLOURS, len(ids)) - 0.5, "showscale": False, "text": texts,
        "texttemplate": "%{text}" if few else "", "hovertemplate": "%{customdata[0]}<br>round %{customdata[1]}<br>"
        "group %{text}<extra></extra>",
    }  # fmt: skip
    note = "Each row is a job; jobs of the same task stand together. The colour and number are those of its group."
    columns = [str(line["round"]) for line in shown]
    title, names = "Groups of jobs over rounds", ("job", "round", "group")
    chart = heatmap("chart-groups", title, values, rows, columns, names, note, **changes)
    kept = evenly(range(len(rows)), 100)
    cells = [[rows[i], *texts[i]] for i in kept]
    label = f"{title}: {len(rows)} jobs of {len(tasks)} tasks in groups {', '.join(map(str, ids))}; {_last(recorded)}"
    table = Table(title, ["job", *columns], cells)
    return [dataclasses.replace(chart, table=table, label=label)]


def task_map(recorded: Recorded) -> list[Chart]:
    """Returns the map of the clustered updates along two principal components, with a slider over the rounds."""
    found = recorded.having("points")
    if not found:
        return []
    shown = [found[i] for i in evenly(range(len(found)), FRAMES)]
    frames = [(f"round {line['round']}", _points(recorded, line["points"])) for line in shown]
    last, tasks = shown[-1], recorded.head["tasks"]
    shares = last["points"]["shares"]
    axes = [f"principal component {i + 1} ({float(share):.0%} of the variance)" for i, share in enumerate(shares)]
    title = "Task map: updates of each round"
    note = (
        "A point is the update of a job, along the first two principal components of the features that are clustered."
    )
    note += " Colours are true tasks, which the server doesn't see; shapes are groups."
    members = {gid: last["points"]["groups"].count(gid) for gid in sorted(set(last["points"]["groups"]))}
    sizes = ", ".join(f"{number(size)} in group {gid}" for gid, size in members.items())
    label = f"{title}. In round {last['round']}, {len(last['points']['jobs'])} updates of {len(tasks)} tasks: {sizes}."
    rows = [
        [recorded.jobs[job], tasks[recorded.head["task"][job]] or "all", str(gid), number(x), number(y)]
        for job, gid, x, y in zip(*(last["points"][key] for key in ("jobs", "groups", "x", "y")), strict=True)
    ]
    table = Table(f"{title}, round {last['round']}", ["job", "task", "group", "x", "y"],
                  [rows[i] for i in evenly(range(len(rows)), TABLE)], left=3)  # fmt: skip
    layout = {"xaxis": {"title": {"text": axes[0]}}, "yaxis": {"title": {"text": axes[1]}}, "hovermode": "closest"}
    return [Chart("chart-task-map", title, label, frames[-1][1], layout, table, note, 440, wide=True, frames=frames)]


def cluster_map(recorded: Recorded) -> list[Chart]:
    """Returns the clusters' adapters along two principal components, and the cosines of their changes, with numbers."""
    found = [line for line in recorded.having("points") if line["points"].get("clusters")]
    if not found:
        return []
    rows, round = found[-1]["points"]["clusters"], found[-1]["round"]
    names = [f"{row['group']}  {plain(str(row['task'] or 'all'))}" for row in rows]
    note = "The change of a cluster is its adapter minus the adapter with which the run began."
    note += " A cluster is named after the task of most of its jobs, which the server doesn't see."
    cosines = [[None if i == j else value for j, value in enumerate(row["cosines"])] for i, row in enumerate(rows)]
    similar = heatmap("chart-cosines", f"Cosines of the clusters' changes after round {round}", cosines, names, names,
                      ("cluster", "cluster", "cosine"), note, zmin=-1, zmax=1)  # fmt: skip
    trace = {
        "type": "scatter", "mode": "markers+text", "x": [row["x"] for row in rows], "y": [row["y"] for row in rows],
        "text": names, "textposition": "top center", "hovertemplate": "%{text}<extra></extra>", "showlegend": False,
        "marker": {"color": "@0", "size": 10},
    }  # fmt: skip
    title = f"Task map: adapters of the clusters after round {round}"
    columns = ["group", "task of most jobs", "jobs", "share of this task", "length of the change", "x", "y"]
    cells = [[str(row["group"]), str(row["task"] or "all"), str(row["jobs"]),
              *(number(row[key]) for key in ("task_share", "length", "x", "y"))] for row in rows]  # fmt: skip
    axis = {"title": {"text": "principal component 1"}}
    layout = {"xaxis": axis, "yaxis": {"title": {"text": "principal component 2"}}, "hovermode": "closest"}
    label = f"{title}: {len(rows)} clusters, each a point."
    table = Table(title, columns, cells[:TABLE], left=2)
    return [Chart("chart-cluster-map", title, label, [trace], layout, table, note, 440, wide=True), similar]


def agreement(recorded: Recorded) -> list[Chart]:
    """Returns the curves of the agreement of groups and tasks, and of the distances of updates."""
    charts = []
    for id, title, word, keys in (
        ("agreement", "Agreement of groups and tasks", "agreement", AGREEMENT),
        ("distances", "Mean distance of two updates", "distance", DISTANCES),
    ):
        series = [
            Series(name, *found, place, "dot" if place else "solid")
            for place, (key, name) in enumerate(keys.items())
            if (found := points(recorded.run, "round", key))[0]
        ]
        if series:
            charts.append(lines(f"chart-{id}", title, "round", word, series, yaxis={"rangemode": "tozero"}))
    return charts


def _points(recorded: Recorded, part: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a trace for each task and group of a round."""
    tasks, task = recorded.head["tasks"], recorded.head["task"]
    members: dict[tuple[int, int], list[int]] = {}
    for i, (job, gid) in enumerate(zip(part["jobs"], part["groups"], strict=True)):
        members.setdefault((int(task[job]), int(gid)), []).append(i)
    return [_trace(recorded, part, tasks[key[0]], *key, members[key]) for key in sorted(members)]


def _trace(
    recorded: Recorded, part: dict[str, Any], name: str, task: int, gid: int, members: Sequence[int]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{plain(name or 'all')}, group {gid}",
        "x": [part["x"][i] for i in members],
        "y": [part["y"][i] for i in members],
        "text": [recorded.jobs[part["jobs"][i]] for i in members],
        "hovertemplate": "job %{text}<extra>%{fullData.name}</extra>",
        "marker": {"color": f"@{task % COLOURS}", "symbol": SYMBOLS[gid % len(SYMBOLS)], "size": 9, "opacity": 0.85},
    }


def _last(recorded: Recorded) -> str:
    line = recorded.having("groups")[-1]
    sizes = {gid: line["groups"].count(gid) for gid in sorted(set(line["groups"]))}
    parts = [f"{size} in group {gid}" if gid >= 0 else f"{size} in none yet" for gid, size in sizes.items()]
    return f"in round {line['round']} there are {', '.join(parts)}."
