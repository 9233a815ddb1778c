"""Jobs that no grouping has met, once there are clusters."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from clusters import around, jobs_in, moved
from made import update_of, view_of

from flt.algorithm.grouping.density import DbscanGrouping
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.protocol.messages import JobId, Update

MET = [(client, index) for client in range(3) for index in range(2)]
NEAREST: dict[str, Any] = {"newcomers": "nearest"}


def view_with_groups(gids: tuple[int, ...] = (1, 2)) -> View:
    """Groups at the centres of ``around``; job (c, i) is in the i-th."""
    view = view_of()
    groups = dict(view.state.groups)
    for centre, gid in enumerate(gids):
        groups[gid] = dataclasses.replace(groups[0], weights=update_of(view, (900 + centre, 0)).tensors)
    assignment = {(client, index): gids[index] for client, index in MET}
    state = dataclasses.replace(view.state, groups=groups, assignment=assignment, rounds=1)
    return dataclasses.replace(view, state=state)


def first_step(view: View, job: JobId, centre: int) -> Update:
    """From v0, a tenth of the way to a centre."""
    home, to = view.state.groups[0].weights, around(view, job, centre, 0.01)
    return dataclasses.replace(to, tensors={name: home[name] + 0.1 * (to.tensors[name] - home[name]) for name in home})


@pytest.mark.parametrize("features", ["weights", "changes"])
def test_a_newcomer_finds_its_cluster_and_is_not_averaged(features: str) -> None:
    view = view_with_groups()
    first, step = (around, around) if features == "weights" else (moved, first_step)
    met = [first(view, job, job[1]) for job in MET]
    late = [step(view, (client, 0), client % 2) for client in range(5, 9)]
    found = KMeansGrouping(2, features=features, **NEAREST)(view, [*met, *late])
    assert jobs_in(found) == {1: {j for j in MET if j[1] == 0}, 2: {j for j in MET if j[1] == 1}}
    assert found.joining == {update.job: 1 + update.job[0] % 2 for update in late}


@pytest.mark.parametrize("features", ["weights", "changes"])
def test_a_cohort_of_newcomers_alone_changes_no_group(features: str) -> None:
    view = view_with_groups()
    step = around if features == "weights" else first_step
    found = KMeansGrouping(2, features=features, **NEAREST)(view, [step(view, (5, 0), 1)])
    assert found.members == {}
    assert found.joining == {(5, 0): 2}


def test_by_default_newcomers_are_clustered_like_all_others() -> None:
    view = view_with_groups()
    updates = [around(view, job, job[1]) for job in [*MET, (5, 0)]]
    found = KMeansGrouping(2)(view, updates)
    assert found.joining == {}
    assert (5, 0) in jobs_in(found)[1]


def test_before_there_are_clusters_all_are_clustered() -> None:
    view = view_of()
    found = KMeansGrouping(2, **NEAREST)(view, [around(view, job, job[1]) for job in MET])
    assert found.joining == {}
    assert sorted(jobs_in(found)) == [1, 2]


def test_without_cannot_link_all_jobs_of_a_client_may_join_one_group() -> None:
    """Client 7 has more jobs than there are groups; all are nearest to group 1."""
    view = view_with_groups()
    met = [around(view, job, job[1], 0.01) for job in MET]
    late = [around(view, (7, index), 0, 0.01) for index in range(3)]
    for grouping in (KMeansGrouping(2, **NEAREST), DbscanGrouping(**NEAREST)):
        assert grouping(view, [*met, *late]).joining == {(7, 0): 1, (7, 1): 1, (7, 2): 1}


def test_cannot_link_holds_for_newcomers_too() -> None:
    """Client 0's third job and both of client 7's are nearest to group 1."""
    view = view_with_groups((1, 2, 3))
    met = [around(view, job, job[1]) for job in MET]
    late = [around(view, job, 0, 0.01) for job in ((0, 2), (7, 0), (7, 1))]
    found = KMeansGrouping(3, cannot_link=True, **NEAREST)(view, [*met, *late])
    assert found.joining[0, 2] not in {gid for gid, jobs in jobs_in(found).items() if {(0, 0), (0, 1)} & jobs}
    assert found.joining[7, 0] != found.joining[7, 1]
    assert 1 in {found.joining[7, 0], found.joining[7, 1]}


def test_a_client_that_would_run_out_of_clusters_has_its_newcomers_clustered() -> None:
    view = view_with_groups((1, 2))
    updates = [around(view, job, job[1]) for job in [*MET, (0, 2)]]
    found = KMeansGrouping(3, cannot_link=True, **NEAREST)(view, updates)
    assert found.joining == {}
    assert len({gid for gid, jobs in jobs_in(found).items() for job in jobs if job[0] == 0}) == 3


def test_the_oracles_newcomers_join_their_task_where_it_has_a_group() -> None:
    view = view_with_groups()
    tasks = {job: "ab"[job[1]] for job in MET} | {(5, 0): "b", (6, 0): "c"}
    found = OracleGrouping(**NEAREST).with_tasks(tasks)(view, [update_of(view, job) for job in sorted(tasks)])
    assert found.joining == {(5, 0): 2}
    assert jobs_in(found)[3] == {(6, 0)}


def test_the_server_starts_a_newcomer_from_its_cluster_the_next_time() -> None:
    from toys import toy_clients, toy_federator

    federator = toy_federator(
        Recipe(Mean("uniform"), grouping=KMeansGrouping(2, **NEAREST)), toy_clients(4, jobs=2), rounds=2, lr=0.1
    )
    federator.sampler = lambda ids, seed, round: ids[: 3 + round]
    federator._round()
    known = {gid: group.weights for gid, group in federator.state.groups.items()}
    federator._round()
    joined = {job: gid for job, gid in federator.state.assignment.items() if job[0] == 3}
    assert len(joined) == 2
    assert set(joined.values()) <= {1, 2}
    rest = [update for update in federator.updates if update.job[0] < 3]
    for gid in (1, 2):  # the mean of those that were met, without the newcomers
        its = [u.tensors["head.bias"].double() for u in rest if federator.state.assignment[u.job] == gid]
        mean = torch.stack(its).mean(0).float() if its else known[gid]["head.bias"]
        assert torch.allclose(federator.state.groups[gid].weights["head.bias"], mean, atol=1e-7)
    for job in federator.cohort[-2:]:
        payload = federator.server.broadcast(federator.state, job, federator.cohort)
        assert torch.equal(payload.tensors["head.bias"], federator.state.groups[joined[job.id]].weights["head.bias"])
