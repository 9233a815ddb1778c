"""The picture of a task map on a page of results."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.results import plot
from benchmarks.results.cell import Record, to_json
from benchmarks.results.table import Plot

NUMBERS = {"jobs": 3, "task_share": 1.0, "length": 1.0, "y": 0.0}
CLUSTERS = [{"group": 1, "task": "a", "x": -1.0, "cosines": [1.0, 0.2], **NUMBERS},
            {"group": 2, "task": "b", "x": 1.0, "cosines": [0.2, 1.0], **NUMBERS}]  # fmt: skip
SHOWN = Plot("map", "cluster/ratio", ["none", "some"], "Two clusters", kind="task_map")
TABLE: Any = SimpleNamespace(name="table")


def record(clusters: list[dict[str, Any]]) -> Record:
    return Record("table", "some", 0, [], "", {}, {}, {}, "", 1, 1.0, clusters)


def test_the_first_run_with_clusters_is_drawn_once(tmp_path: Path) -> None:
    records = {"none": [record([])], "some": [record(CLUSTERS)]}
    assert plot.task_map(SHOWN, records) == CLUSTERS
    (path,) = plot.publish(TABLE, SHOWN, records, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot.publish(TABLE, SHOWN, records, tmp_path) == []
    moved = [{**CLUSTERS[0], "x": -2.0}, CLUSTERS[1]]
    assert plot.publish(TABLE, SHOWN, {"some": [record(moved)]}, tmp_path) == [path]


def test_without_clusters_nothing_is_drawn_and_records_stay_as_they_were(tmp_path: Path) -> None:
    assert plot.publish(TABLE, SHOWN, {"none": [record([])]}, tmp_path) == []
    assert "task_map" not in to_json(record([]))
    assert "task_map" in to_json(record(CLUSTERS))
