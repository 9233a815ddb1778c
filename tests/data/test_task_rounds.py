"""Jobs that appear and vanish between rounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import in_empty_folder, metrics, train
from methods import METHODS, clients_of
from toys import assert_same, toy_federator, weights_of

from flt.callbacks.clusters import clustering_accuracy
from flt.callbacks.evaluate import task_groups
from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.data.task_rounds import with_task_rounds
from flt.protocol.messages import JobId, encode
from flt.protocol.state import GroupState, ServerState
from flt.server.client_sampling import FixedSize
from flt.server.federator import Federator


def dynamic(rounds: dict[str, list[int | None]], clients: int = 3) -> dict[int, ClientSpec]:
    made = with_task_rounds(list(clients_of(clients, jobs=2).values()), rounds)
    return {client.id: client for client in made}


def jobs_by_round(federator: Federator) -> list[list[JobId]]:
    cohorts = []
    while federator.state.rounds < federator.rounds:
        federator._round()
        cohorts.append([job.id for job in federator.cohort])
    return cohorts


def test_a_job_takes_part_in_its_rounds_alone() -> None:
    given: dict[str, Any] = {"clients": dynamic({"task0": [1, 2], "task1": [2, None]}, clients=2), "rounds": 4}
    assert jobs_by_round(toy_federator(METHODS["fl_tac"][0], **given)) == [
        [(0, 0), (1, 0)],
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [(0, 1), (1, 1)],
        [(0, 1), (1, 1)],
    ]


def test_a_client_without_a_job_in_the_round_is_not_drawn() -> None:
    clients = clients_of(4)
    late = with_task_rounds([clients[0], clients[2]], {"task0": [3, None]})
    federator = toy_federator(clients={**clients, 0: late[0], 2: late[1]}, rounds=6, cohort=2)
    cohorts = jobs_by_round(federator)
    assert cohorts[:2] == [[(1, 0), (3, 0)]] * 2
    assert {job[0] for cohort in cohorts[2:] for job in cohort} & {0, 2}
    assert all(len(cohort) == 2 for cohort in cohorts)


def test_a_cohort_is_smaller_where_fewer_clients_are_there() -> None:
    assert FixedSize(3)([4, 7], seed=0, round=0) == [4, 7]
    assert FixedSize(3)([], seed=0, round=0) == []


@pytest.mark.parametrize("name", ["fedit", "fl_tac", "fl_tac, unlocked", "scaffold", "flora", "hafl freeze"])
def test_a_round_without_any_job_changes_no_weight(name: str) -> None:
    recipe, settings = METHODS[name]
    clients = dynamic({"task0": [1, 1], "task1": [1, 1]})
    federator = toy_federator(recipe, clients, **{**settings, "rounds": 2})
    federator._round()
    before = {gid: dict(group.weights) for gid, group in federator.state.groups.items()}
    federator._round()
    assert federator.cohort == []
    assert federator.state.rounds == 2
    for gid, weights in before.items():
        assert_same(weights_of(federator, gid), weights)


MEMORIES = ["fl_tac, unlocked", "fl_tac, agglomerative", "fl_tac, dbscan"]  # sum, projection, the last rounds


@pytest.mark.parametrize("name", ["fl_tac", *MEMORIES, "fl_tac, hdbscan"])
def test_going_on_from_a_state_with_jobs_that_come_and_go_changes_no_bit(name: str) -> None:
    given = {"clients": dynamic({"task0": [1, 3], "task1": [2, None]}), "cohort": 2, "steps": 2}
    whole, half, rest = (toy_federator(METHODS[name][0], **given, rounds=rounds) for rounds in (4, 2, 4))  # type: ignore[arg-type]
    whole.fit()
    half.fit()
    rest.state, rest.client_states = half.state, half.client_states
    rest.fit()
    assert encode(rest.state) == encode(whole.state)


def test_jobs_that_are_always_there_change_no_bit() -> None:
    federators = [toy_federator(METHODS["fl_tac"][0], clients, rounds=2)
                  for clients in (clients_of(3, jobs=2), dynamic({"task0": [1, None], "task1": [1, 9]}))]  # fmt: skip
    for federator in federators:
        federator.fit()
    assert encode(federators[0].state) == encode(federators[1].state)


def test_a_task_that_has_not_appeared_is_evaluated_by_v0_and_one_that_vanished_by_its_group() -> None:
    tasks = {(client, index): "abc"[index] for client in range(3) for index in range(3)}
    assignment = {(client, index): 1 + index for client in range(3) for index in range(2)}
    groups = {gid: GroupState({}, {}) for gid in range(4)}
    state = ServerState(5, groups, {}, assignment)
    assert task_groups(state, tasks) == {"a": 1, "b": 2}
    assert clustering_accuracy(state, tasks) == 1.0


@pytest.mark.parametrize("name", ["fl_tac", "fl_tac, oracle"])
def test_a_task_that_comes_late_starts_from_v0_and_not_from_the_only_cluster_so_far(name: str) -> None:
    federator = toy_federator(METHODS[name][0], dynamic({"task0": [1, None], "task1": [2, None]}), rounds=2)
    start = federator.state.groups[0].weights
    federator._round()
    cohort = federator.draw_cohort()
    late = next(job for job in cohort if job.index == 1)
    early = next(job for job in cohort if job.index == 0)
    b = "fc2.lora_B.default.weight"
    sent = {job.id: federator.server.broadcast(federator.state, job, cohort).tensors[b] for job in (early, late)}
    assert torch.equal(sent[late.id], start[b])
    assert not torch.equal(sent[early.id], start[b])


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ({"a": [1, 1, 1], "b": [1, 1, 1], "c": [2, 2, 2]}, {"a": 1, "b": 1, "c": 2}),
        ({"a": [1, 1, 1], "b": [1, 1, 2], "c": [3, 3, 3]}, {"a": 1, "b": 1, "c": 3}),
        ({"a": [1, 2, 2], "b": [1, 2, 1], "c": [3, 1, 3]}, {"a": 2, "b": 1, "c": 3}),
        ({"a": [1, 2, 3], "b": [1, 1, 1], "c": [3, 3, 3]}, {"a": 2, "b": 1, "c": 3}),
    ],
    ids=["fewer clusters", "merged and split", "mixed", "a tie goes to the matching"],
)
def test_a_task_is_evaluated_by_the_group_that_most_of_its_jobs_are_in(
    assignment: dict[str, list[int]], expected: dict[str, int]
) -> None:
    tasks = {(client, index): task for index, task in enumerate("abc") for client in range(3)}
    given = {(client, index): assignment["abc"[index]][client] for client, index in tasks}
    groups = {gid: GroupState({}, {}) for gid in (0, *sorted({*given.values()}))}
    assert task_groups(ServerState(5, groups, {}, given), tasks) == expected


@pytest.mark.parametrize("rounds", [[0, 2], [3, 2], [None, 2], [1], [1, 2, 3]], ids=str)
def test_rounds_without_meaning_are_refused(rounds: list[int | None]) -> None:
    with pytest.raises(InputError, match=r"^task_rounds.task0=\[.*: allowed is \[first, last\]"):
        dynamic({"task0": rounds})


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="^task_rounds=sst2: there is no such task; allowed is task0, task1$"):
        dynamic({"sst2": [1, 2]})


def test_other_tasks_keep_the_rounds_of_their_jobs() -> None:
    client = clients_of(1, jobs=2)[0]
    own = dataclasses.replace(client, data=(client.data[0], dataclasses.replace(client.data[1], rounds=(2, 5))))
    (found,) = with_task_rounds([own], {"task0": [3, None]})
    assert [job.rounds for job in found.data] == [(3, None), (2, 5)]


@pytest.mark.slow
def test_the_command_line_sets_them_and_an_empty_round_is_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    given = ["algo=fl_tac_unlocked", "grouping.newcomers=nearest", "task_rounds={low:[1,3],high:[2,3]}", "rounds=4"]
    assert train(*given) == 0
    steps = [int(float(row["clients/steps"])) for row in metrics(tmp_path / "lightning_logs/fl_tac_unlocked/version_0")]
    assert np.sign(steps).tolist() == [1, 1, 1, 0]
    assert steps[0] < steps[1]
    assert train("algo=fl_tac", "task_rounds={middle:[1,2]}") == 2
