"""Online clustering: which jobs stay, move and open a cluster, with known directions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from made import update_of, view_of

from flt.algorithm.grouping.online import OnlineGrouping, cosines_to
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import JobId, Update

SPREAD = 0.3


def directions(tasks: dict[JobId, int], spread: float = SPREAD) -> np.ndarray:
    """Centred features of length 1, shape (jobs, 5000). Jobs of one task share a direction, up to noise."""
    drawn = np.random.default_rng(0)
    centres = drawn.normal(size=(9, 5000))
    noise = drawn.normal(size=(len(tasks), 5000))
    rows = np.stack([centres[task] for task in tasks.values()]) + spread * noise
    rows -= rows.mean(axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grouped(
    tasks: dict[JobId, int], assignment: dict[JobId, int], spread: float = SPREAD, **settings: Any
) -> dict[int, set[JobId]]:
    """Group id -> jobs after a round with these features."""
    view: View = view_of(groups=(0, *sorted(set(assignment.values()) - {0})), assignment=assignment)
    updates: list[Update] = [update_of(view, job) for job in sorted(tasks)]
    described = directions({job: tasks[job] for job in sorted(tasks)}, spread)
    members = OnlineGrouping(**settings)._members(view, updates, described)
    return {gid: {update.job for update in its} for gid, its in members.items()}


def jobs(clients: range, task: int) -> dict[JobId, int]:
    return {(client, task): task for client in clients}


OLD = {**jobs(range(4), 0), **jobs(range(4), 1)}
KNOWN = {job: 1 + task for job, task in OLD.items()}


def test_the_first_round_is_clustered_from_scratch_without_a_number_of_clusters() -> None:
    three = {**OLD, **jobs(range(4), 2)}
    found = grouped(three, {})
    assert sorted(map(sorted, found.values())) == [sorted(jobs(range(4), task)) for task in range(3)]


def test_jobs_of_one_task_alone_form_one_cluster_in_every_round() -> None:
    one = jobs(range(8), 0)
    assert grouped(one, {}) == {0: set(one)}
    assert grouped(one, dict.fromkeys(one, 0)) == {0: set(one)}


def test_jobs_far_from_all_clusters_open_one_and_the_others_stay() -> None:
    new = jobs(range(3), 2)
    assert grouped({**OLD, **new}, KNOWN) == {1: set(jobs(range(4), 0)), 2: set(jobs(range(4), 1)), 3: set(new)}


def test_two_new_tasks_open_a_cluster_each() -> None:
    found = grouped({**OLD, **jobs(range(3), 2), **jobs(range(3), 3)}, KNOWN)
    assert found[3] | found[4] == {*jobs(range(3), 2), *jobs(range(3), 3)}
    assert {frozenset(found[3]), frozenset(found[4])} == {frozenset(jobs(range(3), task)) for task in (2, 3)}


def test_the_only_cluster_becomes_two_when_a_task_comes() -> None:
    old, new = jobs(range(5), 0), jobs(range(4), 1)
    found = grouped({**old, **new}, dict.fromkeys(old, 0))
    assert {frozenset(members) for members in found.values()} == {frozenset(old), frozenset(new)}
    assert 0 not in found  # the home group keeps v0 as soon as there are several clusters


def test_a_newcomer_of_a_known_task_joins_its_cluster() -> None:
    found = grouped({**OLD, (7, 5): 1}, KNOWN)
    assert found == {1: set(jobs(range(4), 0)), 2: {*jobs(range(4), 1), (7, 5)}}


def test_a_job_that_changes_to_a_known_task_moves_to_its_cluster() -> None:
    assert grouped({**OLD, (0, 0): 1}, KNOWN) == {1: {(1, 0), (2, 0), (3, 0)}, 2: {*jobs(range(4), 1), (0, 0)}}


def test_fewer_far_jobs_than_min_jobs_open_nothing() -> None:
    new = jobs(range(2), 2)
    assert set(grouped({**OLD, **new}, KNOWN, min_jobs=3)) == {1, 2}
    assert set(grouped({**OLD, **new}, KNOWN, min_jobs=2)) == {1, 2, 3}


def test_a_cluster_without_jobs_in_the_round_keeps_its_id() -> None:
    found = grouped({**jobs(range(4), 1), **jobs(range(3), 2)}, KNOWN)
    assert found == {2: set(jobs(range(4), 1)), 3: set(jobs(range(3), 2))}


@pytest.mark.parametrize("present", [{(0, 1): 1}, {(0, 1): 1, (0, 2): 2}], ids=["one", "two"])
def test_a_job_that_is_alone_of_its_cluster_in_a_round_stays(present: dict[JobId, int]) -> None:
    assignment = {**KNOWN, **{(client, 2): 3 for client in range(4)}}
    found = grouped({**jobs(range(4), 0), **present}, assignment)
    assert found == {1: set(jobs(range(4), 0)), **{1 + task: {job} for job, task in present.items()}}
    assert grouped({(0, 0): 0, **present}, assignment) == {1 + job[1]: {job} for job in [(0, 0), *present]}


def test_cosines_leave_a_job_out_of_its_own_cluster() -> None:
    points = directions(OLD)
    members = [np.array([job[1] == task for job in OLD]) for task in (0, 1)]
    found = cosines_to(points, members)
    for row in range(len(points)):
        for cluster, inside in enumerate(members):
            others = sum(points[i] for i in range(len(points)) if inside[i] and i != row)
            assert found[row, cluster] == pytest.approx(points[row] @ others / np.linalg.norm(others))


@pytest.mark.parametrize(
    ("key", "value"),
    [("new_cluster", -0.1), ("new_cluster", 1.0), ("min_jobs", 0), ("max_k", 1), ("min_silhouette", 1.0),
     ("features", "weights")],
)  # fmt: skip
def test_settings_without_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^grouping.{key}="):
        dataclasses.replace(OnlineGrouping(), **{key: value})
