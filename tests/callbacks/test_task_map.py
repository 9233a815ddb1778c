"""Map of the clusters, against NumPy, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from methods import METHODS, TASKS, clients_of
from toys import toy_federator

from flt.callbacks.task_map import FILE, TaskMap, as_csv, read_csv, task_map


def test_the_numbers_are_those_of_the_clusters_changes(tmp_path: Path) -> None:
    federator = toy_federator(METHODS["fl_tac"][0], clients_of(3, jobs=2), rounds=2)
    federator.callbacks = [*federator.callbacks, TaskMap(tmp_path, TASKS)]
    federator.fit()
    rows, state = task_map(federator, TASKS), federator.state
    assert [row["group"] for row in rows] == [1, 2]
    start = state.groups[0].weights
    names = [name for name in sorted(start) if "lora" in name]
    change = [
        np.concatenate([(state.groups[gid].weights[name] - start[name]).numpy().ravel() for name in names])
        for gid in (1, 2)
    ]
    lengths = [np.linalg.norm(each) for each in change]
    assert [row["length"] for row in rows] == pytest.approx(lengths, rel=1e-5)
    assert rows[0]["cosines"][1] == pytest.approx(change[0] @ change[1] / (lengths[0] * lengths[1]), abs=1e-5)
    apart = np.hypot(rows[0]["x"] - rows[1]["x"], rows[0]["y"] - rows[1]["y"])
    assert apart == pytest.approx(np.linalg.norm(change[0] - change[1]), rel=1e-5)  # two points lie on one axis
    for row in rows:
        tasks = [TASKS[job] for job, gid in state.assignment.items() if gid == row["group"]]
        assert row["jobs"] == len(tasks)
        assert row["task_share"] == tasks.count(row["task"]) / len(tasks) == max(map(tasks.count, tasks)) / len(tasks)
    read = read_csv(tmp_path / FILE)
    assert [row["task"] for row in read] == [row["task"] for row in rows]
    np.testing.assert_allclose([row["cosines"] for row in read], [row["cosines"] for row in rows], atol=1e-5)


def test_a_run_without_clusters_has_no_map(tmp_path: Path) -> None:
    federator = toy_federator(METHODS["fedit"][0], rounds=1)
    federator.callbacks = [*federator.callbacks, TaskMap(tmp_path, {})]
    federator.fit()
    assert not (tmp_path / FILE).exists()
    assert read_csv(tmp_path / FILE) == []


def test_names_with_commas_and_quotes_are_read_back(tmp_path: Path) -> None:
    numbers = {"task_share": 0.5, "length": 1.0, "x": 0.0, "y": 0.0}
    row = {"group": 1, "jobs": 2, "task": 'a, "b"', **numbers, "cosines": [1.0]}
    (tmp_path / FILE).write_text(as_csv([row]))
    assert read_csv(tmp_path / FILE) == [row]
