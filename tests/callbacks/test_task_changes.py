"""Jobs that change their task, and the delay of clusters, against hand counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from methods import METHODS, clients_of
from toys import toy_federator

from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.callbacks.fleet import Fleet
from flt.callbacks.task_changes import TaskChanges, TaskDetection, opened_clusters, own_clusters
from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.data.task_rounds import with_task_changes
from flt.protocol.messages import JobId, encode
from flt.protocol.state import GroupState, ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator
from flt.server.fleet.clock import Clock
from flt.server.fleet.device import Device


def changing(clients: int = 3, round: int = 3) -> dict[int, ClientSpec]:
    return {c.id: c for c in with_task_changes(list(clients_of(clients, jobs=2).values()), {"task0": ["task1", round]})}


def test_the_data_of_a_later_round_are_the_same_object_in_each_round() -> None:
    job = changing(1)[0].data[0]
    assert job.at(2) is job
    assert job.at(3) is job.at(4)


def test_a_fleet_counts_the_operations_of_the_data_of_the_round() -> None:
    clients, seen = changing(1), []
    federator, _ = watched(dict(clients), rounds=4)
    cost: Any = SimpleNamespace(flops=lambda plan, data, held, kept: seen.append(data.task) or 1)
    device = Device(1e6, 8e4, 4e4)
    federator.callbacks.append(Fleet({0: device}, cost, Clock(0)))
    federator.fit()
    assert seen == ["task0", "task0", "task1", "task1"]


def watched(clients: dict[int, ClientSpec], recipe: Recipe | None = None, **given: Any) -> tuple[Federator, dict]:
    tasks = {(client.id, index): job.task for client in clients.values() for index, job in enumerate(client.data)}
    federator = toy_federator(recipe or METHODS["fl_tac, online"][0], clients, **given)
    federator.callbacks = [TaskChanges(clients, tasks), *federator.callbacks, TaskDetection(tasks)]
    return federator, tasks


def test_a_client_with_both_tasks_keeps_one_job_whose_data_change() -> None:
    clients = list(clients_of(3, jobs=2).values())
    before, (client, *_) = clients[0], with_task_changes(clients, {"task0": ["task1", 3]})
    (job,) = client.data
    assert (job.task, job.at(2).task, job.at(3).task) == ("task0", "task0", "task1")
    assert job.at(3).dataset is before.data[1].dataset
    assert np.array_equal(job.at(3).train, before.data[1].train)
    assert job.at(3).rounds == job.rounds == (1, None)


def test_a_job_trains_on_the_data_of_the_round_and_a_resume_does_so_too() -> None:
    seen: list[JobData] = []

    class Seen(FedCallback):
        def on_job_start(self, federator: Federator, payload: Any) -> None:
            seen.append(federator.engine.clients[payload.job[0]].data[payload.job[1]])

    federator, tasks = watched(changing(1), rounds=4)
    federator.callbacks.append(Seen())
    federator.fit()
    assert [job.task for job in seen] == ["task0", "task0", "task1", "task1"]
    assert tasks == {(0, 0): "task1"}

    resumed, _ = watched(changing(1), rounds=4)
    half, _ = watched(changing(1), rounds=2)
    half.fit()
    resumed.state, resumed.client_states = half.state, half.client_states
    resumed.fit()
    assert encode(resumed.state) == encode(federator.state)


def test_the_oracle_follows_a_job_to_the_group_of_its_new_task() -> None:
    clients = changing()
    clients[0] = clients_of(3, jobs=2)[0]  # keeps both tasks
    tasks = {(c.id, i): job.task for c in clients.values() for i, job in enumerate(c.data)}
    recipe = Recipe(Mean("uniform"), grouping=OracleGrouping().with_tasks(tasks))
    federator, _ = watched(clients, recipe, rounds=3)
    federator.rounds = 2
    federator.fit()
    assert federator.state.assignment == {(0, 0): 1, (0, 1): 2, (1, 0): 1, (2, 0): 1}
    federator.rounds = 3
    federator.fit()
    assert federator.state.assignment == {(0, 0): 1, (0, 1): 2, (1, 0): 2, (2, 0): 2}
    assert federator.history[-1]["cluster/change_delay"] == 0


def test_tasks_with_different_heads_are_refused_since_the_server_sees_them() -> None:
    client = clients_of(1, jobs=2)[0]
    own = ClientSpec(0, (client.data[0].but(head="a"), client.data[1].but(head="b")))
    with pytest.raises(InputError, match=r"^task_changes=.*allowed is tasks with one head \(heads=shared\)"):
        with_task_changes([own], {"task0": ["task1", 3]})


@pytest.mark.parametrize(
    ("change", "said"),
    [(["task1", 1], "round >= 2"), (["task0", 3], "another task"), (["sst2", 3], "with a task of task0, task1"),
     (["task1"], "with a task of"), (["task1", None], "round >= 2")],
)  # fmt: skip
def test_changes_without_meaning_are_refused(change: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^task_changes.task0=.*{said}"):
        with_task_changes(list(clients_of(2, jobs=2).values()), {"task0": change})


def test_a_change_that_no_client_makes_is_refused() -> None:
    one, other = clients_of(2, jobs=2).values()
    apart = [ClientSpec(0, one.data[:1]), ClientSpec(1, other.data[1:])]
    with pytest.raises(InputError, match="^task_changes=task0: .* a client has together"):
        with_task_changes(apart, {"task0": ["task1", 3]})


def test_a_task_owns_the_cluster_with_half_of_its_jobs_if_it_has_the_majority_there() -> None:
    tasks = {(client, 0): "aabbbc"[client] for client in range(6)}
    groups = {(client, 0): gid for client, gid in enumerate([1, 1, 1, 2, 2, 2])}
    assert own_clusters(groups, tasks) == {"a": 1, "b": 2}
    assert own_clusters(dict.fromkeys(groups, 1), tasks) == {}


def state_with(assignment: dict[JobId, int]) -> ServerState:
    return ServerState(1, {gid: GroupState({}, {}) for gid in (0, *assignment.values())}, {}, assignment)


def test_a_cluster_that_takes_over_the_jobs_of_one_that_ended_is_not_opened() -> None:
    old = {(client, 0): 0 for client in range(4)}
    new = {**dict.fromkeys(old, 1), (5, 0): 2, (6, 0): 2}
    assert opened_clusters(state_with(old), state_with(new)) == {2}
    assert opened_clusters(state_with({}), state_with(new)) == {1, 2}


def run_by_hand(rounds: list[dict[str, int]], tasks: list[str]) -> list[dict[str, float]]:
    """Metrics of rounds in which job n, of the n-th task, is in these groups; a missing job doesn't take part."""
    of = {(number, 0): task for number, task in enumerate(tasks)}
    detection, found = TaskDetection(of), []
    assignment: dict[JobId, int] = {}
    for round, groups in enumerate(rounds, 1):
        recipe = SimpleNamespace(grouping=SimpleNamespace(several=True))
        updates = [SimpleNamespace(job=(int(number), 0)) for number in groups]
        federator: Any = SimpleNamespace(round=round, updates=updates, server=SimpleNamespace(recipe=recipe))
        federator.state, federator.log = state_with(dict(assignment)), found.append
        detection.on_round_start(federator)
        assignment.update({(int(number), 0): gid for number, gid in groups.items()})
        federator.state = state_with(dict(assignment))
        detection.on_round_end(federator)
    return found


def test_delay_counts_rounds_until_a_task_has_its_own_cluster() -> None:
    """Task b comes in round 2, is mixed into a's cluster for two rounds, and has its own from round 4 on."""
    early = {"0": 1, "1": 1, "2": 1}
    mixed, apart = {**early, "3": 1, "4": 1}, {**early, "3": 2, "4": 2}
    found = run_by_hand([early, mixed, mixed, apart, apart], ["a", "a", "a", "b", "b"])
    assert [metrics.get("cluster/delay") for metrics in found] == [None, 1, 2, 2, 2]
    assert [metrics["cluster/missed"] for metrics in found] == [0, 1, 1, 0, 0]
    assert [metrics["cluster/opened"] for metrics in found] == [1, 0, 0, 1, 0]
    assert found[-1]["cluster/false_alarms"] == 0


def test_a_second_cluster_of_a_task_is_a_false_alarm() -> None:
    whole = {"0": 1, "1": 1, "2": 1, "3": 1}
    found = run_by_hand([whole, {**whole, "3": 2}], ["a"] * 4)
    assert [metrics["cluster/false_alarms"] for metrics in found] == [0, 1]


@pytest.mark.parametrize("name", ["fl_tac", "fl_tac, online"])
def test_the_state_that_a_resume_restores_gives_the_same_delays(name: str) -> None:
    whole, _ = watched(changing(), METHODS[name][0], rounds=4)
    whole.fit()
    half, _ = watched(changing(), METHODS[name][0], rounds=2)
    half.fit()
    rest, _ = watched(changing(), METHODS[name][0], rounds=4)
    rest.state, rest.client_states = half.state, half.client_states
    rest.callbacks[-1].load_state_dict(half.callbacks[-1].state_dict())
    rest.fit()
    assert rest.history == whole.history[2:]
