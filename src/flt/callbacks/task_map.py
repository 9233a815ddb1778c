"""Map of the clusters: where their adapters are, and how similar their changes are."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flt.algorithm.grouping import features
from flt.callbacks.clusters import principal
from flt.core.files import write_atomically
from flt.protocol.messages import JobId
from flt.server.callback import FedCallback
from flt.server.federator import Federator

FILE = "task_map.csv"
MOST = 50
"""Largest number of clusters in a map. Of more clusters, those with most jobs are shown."""


class TaskMap(FedCallback):
    """Writes the map of the clusters at the end of a run that has at least two, see :func:`task_map`.

    The file has a line for each cluster, with the columns ``group``, ``jobs``, ``task``, ``task_share``, ``length``,
    ``x``, ``y`` and, for each cluster n, ``cosine_n``.

    Args:
        folder: Folder of the run, in which the file is written.
        tasks: Job -> its task.
    """

    def __init__(self, folder: Path, tasks: Mapping[JobId, str]) -> None:
        self.folder, self.tasks = folder, tasks

    def on_fit_end(self, federator: Federator) -> None:
        """Writes the file."""
        if rows := task_map(federator, self.tasks):
            write_atomically(self.folder / FILE, as_csv(rows).encode())


def task_map(federator: Federator, tasks: Mapping[JobId, str]) -> list[dict[str, Any]]:
    """Returns what is known of each cluster after a round, from the server's state. Empty with fewer than two clusters.

    The change of a cluster is its adapter, without the head, minus v0, the adapter of the home group.

    - ``group``: id of the cluster.
    - ``jobs``: number of jobs that are assigned to it.
    - ``task``, ``task_share``: the true task of most of these jobs, and the share of the jobs that have it.
    - ``length``: Euclidean length of the cluster's change.
    - ``x``, ``y``: coordinates of the change along the first two principal components of all clusters' changes.
    - ``cosines``: cosine of the cluster's change and the change of each cluster, in the order of the list.

    Args:
        federator: Federator with the state after the round.
        tasks: Job -> its task. They are used only to name the clusters.
    """
    state = federator.state
    sizes = Counter(state.assignment.values())
    shown = sorted(sorted(set(state.clusters) - {state.home}, key=lambda gid: (-sizes[gid], gid))[:MOST])
    view = federator.server.view(state)
    names = features.names(view.layout, "lora")
    if len(shown) < 2 or not names:
        return []
    weights = features.groups(view, names)
    changes = np.stack([weights[gid] for gid in shown]).astype(np.float64) - features.home(view, names)
    directions, (points, _) = features.unit(changes), principal(changes)
    cosines, rows = directions @ directions.T, []
    for place, gid in enumerate(shown):
        members = Counter(tasks[job] for job, at in state.assignment.items() if at == gid)
        task, most = min(members.items(), key=lambda item: (-item[1], item[0])) if members else ("", 0)
        rows.append({
            "group": gid, "jobs": sizes[gid], "task": task, "task_share": most / max(1, sizes[gid]),
            "length": float(np.linalg.norm(changes[place])), "x": float(points[place, 0]), "y": float(points[place, 1]),
            "cosines": [float(value) for value in cosines[place]],
        })  # fmt: skip
    return rows


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Returns the text of the file."""
    text = io.StringIO()
    plain = [key for key in rows[0] if key != "cosines"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*plain, *(f"cosine_{row['group']}" for row in rows)])
    for row in rows:
        writer.writerow([_short(row[key]) for key in plain] + [_short(value) for value in row["cosines"]])
    return text.getvalue()


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file that :class:`TaskMap` has written; empty if there is none."""
    if not path.is_file():
        return []
    found = []
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            cosines = [float(value) for key, value in line.items() if key.startswith("cosine_")]
            counts = {key: int(line[key]) for key in ("group", "jobs")}
            numbers = {key: float(line[key]) for key in ("task_share", "length", "x", "y")}
            found.append({**counts, "task": line["task"], **numbers, "cosines": cosines})
    return found


def _short(value: Any) -> Any:
    return f"{round(value, 9) + 0.0:.6g}" if isinstance(value, float) else value
