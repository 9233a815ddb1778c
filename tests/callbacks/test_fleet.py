"""The simulated clock of toy federations: by hand, in every engine, with deadlines, retries and a resume."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from failing import Breaks, raises, tolerant
from forked import forked
from methods import METHODS
from slowly import mostly_slowly
from stacks import batched
from stacks import federator_of as encoders
from toys import assert_same, toy_clients, toy_federator, weights_of
from whole_runs import everything, mixed

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.callbacks.communication import Communication
from flt.callbacks.failures import Failures
from flt.callbacks.fleet import Fleet
from flt.callbacks.task_changes import TaskChanges
from flt.callbacks.untrained_layers import UntrainedLayers
from flt.client.fit_cost import FitCost
from flt.core import formatting
from flt.data.clients import ClientSpec
from flt.engines.distributed import DistributedEngine
from flt.engines.process_group import ProcessGroup
from flt.protocol.messages import Payload, Update, encoded_size
from flt.server.callback import FedCallback
from flt.server.client_state_store import ClientStateStore
from flt.server.failure_policy import RoundFailedError
from flt.server.federator import Federator
from flt.server.fleet.clock import Clock
from flt.server.fleet.device import Device

EQUAL = Device(compute=1e6, down=8e4, up=4e4, power=2.0)
QUICK = ["scaffold", "haflq channel", "everything"]


def with_fleet(federator: Federator, devices: Mapping[int, Device] | None = None, **clock: Any) -> Fleet:
    """Gives a federation devices; all are equal unless they are given."""
    local, clients = federator.engine.local_trainer, federator.clients
    trains = {federator.server.recipe.plan(done).train for done in range(federator.rounds)}
    data = max((job for client in clients.values() for job in client.data), key=lambda job: job.examples)
    cost = FitCost(local.module, local.layout, local.settings, local.collate, data, sorted(trains))
    chosen = dict(devices or dict.fromkeys(clients, EQUAL))
    fleet = Fleet(chosen, cost, Clock(federator.seed, **clock))
    federator.callbacks = [*federator.callbacks[:-1], Communication(), fleet, Failures(), *federator.callbacks[-1:]]
    federator.arrivals = fleet
    return fleet


def slower(clients: Mapping[int, Any], factor: float = 100.0) -> dict[int, Device]:
    """Client 2 is slow, the others are not."""
    slow = Device(EQUAL.compute / factor, EQUAL.down / factor, EQUAL.up / factor, power=2.0)
    return {client: slow if client == 2 else EQUAL for client in clients}


class Messages(FedCallback):
    """The bytes of each client's messages in each round, and the fits."""

    def __init__(self) -> None:
        self.down: list[dict[int, int]] = []
        self.up: list[dict[int, int]] = []

    def on_round_start(self, federator: Federator) -> None:
        self.down.append({})
        self.up.append({})

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.down[-1][payload.job[0]] = self.down[-1].get(payload.job[0], 0) + encoded_size(payload)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        self.up[-1][update.job[0]] = self.up[-1].get(update.job[0], 0) + encoded_size(update)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_client_takes_the_time_of_its_messages_and_fits_one_after_the_other(jobs: int) -> None:
    messages = Messages()
    federator = toy_federator(clients=toy_clients(3, jobs=jobs), rounds=2, callbacks=[messages])
    fleet = with_fleet(federator)
    federator.fit()
    every = federator.server.layout.all_components()
    hours = energy = 0.0
    for number, metrics in enumerate(federator.history):
        seconds = []
        for client, spec in federator.clients.items():
            flops = sum(fleet.cost.flops(federator.server.recipe.plan(0), job, every, every) for job in spec.data)
            seconds.append(
                messages.down[number][client] * 8 / 8e4 + flops / 1e6 + messages.up[number][client] * 8 / 4e4
            )
        assert metrics["fleet/round_seconds"] == metrics["fleet/slowest"] == pytest.approx(max(seconds))
        hours, energy = hours + max(seconds) / 3600, energy + 2.0 * sum(seconds)
        assert metrics["time/simulated_hours"] == pytest.approx(hours)
        assert metrics["fleet/energy"] == pytest.approx(energy)
        assert metrics["fleet/late"] == 0


@pytest.mark.parametrize("name", mostly_slowly(METHODS, QUICK))
def test_equal_devices_without_a_deadline_change_no_bit_and_no_metric(name: str) -> None:
    recipe, settings = METHODS[name]
    plain, fleet = (toy_federator(recipe, **{**settings, **mixed()}) for _ in range(2))
    with_fleet(fleet)
    plain.callbacks = [*plain.callbacks[:-1], Communication(), Failures(), *plain.callbacks[-1:]]
    for federator in (plain, fleet):
        federator.fit()
    assert everything(plain) == everything(fleet)
    new = ("fleet/", "time/simulated_hours")
    assert plain.history == [{k: v for k, v in row.items() if not k.startswith(new)} for row in fleet.history]
    assert all(row["fleet/round_seconds"] > 0 for row in fleet.history)


@pytest.mark.parametrize("rule", [Mean(), Stacking()], ids=["streams", "keeps updates"])
def test_a_client_after_the_deadline_is_left_out_as_if_it_had_not_been_drawn(rule: Any) -> None:
    without = toy_federator(Recipe(rule), rounds=2)
    without.sampler = lambda ids, seed, round: [0, 1]
    late = toy_federator(Recipe(rule), rounds=2)
    with_fleet(late, slower(late.clients), deadline=10.0)
    for federator in (without, late):
        federator.fit()
    assert everything(late)[:1] == everything(without)[:1]
    assert [job for job in late.client_states if job[0] == 2] == []
    for row in late.history:
        assert (row["fleet/late"], row["fleet/round_seconds"]) == (1, 10.0)
        assert row["fleet/slowest"] > 10.0
        assert "faults/failed" not in row
    busy = [min(time, 10.0) for time in _times(late).values()]
    assert late.history[-1]["fleet/energy"] == pytest.approx(
        2 * 2.0 * sum(busy), rel=2e-2
    )  # FLoRA sends more in round 2


def _times(federator: Federator) -> dict[int, float]:
    fleet = next(callback for callback in federator.callbacks if isinstance(callback, Fleet))
    return fleet._times(federator.counts, sorted(federator.clients))


def test_an_update_that_is_late_is_not_received() -> None:
    late = toy_federator()
    with_fleet(late, slower(late.clients), deadline=10.0)
    late.fit()
    assert (
        late.history[0]["comm/bytes_up"]
        == sum(late.counts[f"fleet/up/{client}"] for client in (0, 1))
        < sum(late.counts[f"fleet/up/{client}"] for client in (0, 1, 2))
    )


def test_a_round_in_which_all_are_late_changes_nothing_but_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    federator = toy_federator(rounds=2, callbacks=[UntrainedLayers()])
    before = weights_of(federator)
    with_fleet(federator, deadline=0.001)
    federator.fit()
    assert_same(weights_of(federator), before)
    assert federator.state.rounds == 2
    assert [row["fleet/late"] for row in federator.history] == [3, 3]
    assert federator.history[-1]["time/simulated_hours"] == pytest.approx(2 * 0.001 / 3600)
    first = formatting.short_duration(min(_times(federator).values()))
    expected = [f"round {n} has no update: all came after fleet.deadline=0.001 seconds, the first one after {first}"
                for n in (1, 2)]  # fmt: skip
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == expected


def test_min_updates_counts_only_those_that_arrive() -> None:
    federator = tolerant(toy_federator(), min_updates=3, max_retries=1)
    with_fleet(federator, slower(federator.clients), deadline=10.0)
    with pytest.raises(RoundFailedError, match="of 3 jobs 2 sent an update, after 1 retries"):
        federator.fit()


def test_a_failed_attempt_takes_its_time_too() -> None:
    federator = tolerant(toy_federator(callbacks=[Breaks([1], raises, times=1)]), max_retries=1)
    with_fleet(federator, deadline=1e6)
    federator.fit()
    (row,) = federator.history
    assert federator.attempt == 1
    assert row["fleet/round_seconds"] == pytest.approx(1e6 + row["fleet/slowest"])


def test_the_first_that_arrive_are_taken_and_the_others_stop() -> None:
    wanted = toy_federator(rounds=2)
    with_fleet(wanted, slower(wanted.clients), wanted=2)
    without = toy_federator(rounds=2)
    without.sampler = lambda ids, seed, round: [0, 1]
    for federator in (wanted, without):
        federator.fit()
    assert everything(wanted)[:1] == everything(without)[:1]
    times = _times(wanted)
    row = wanted.history[-1]
    assert row["fleet/round_seconds"] == max(times[0], times[1]) < row["fleet/slowest"] == times[2]
    assert row["fleet/late"] == 1


def test_a_job_that_changes_its_task_takes_the_time_of_the_new_data() -> None:
    (job,), (longer,) = (toy_clients(n)[n - 1].data for n in (1, 3))  # 12 and 20 training examples
    clients = {0: ClientSpec(0, (job.but(change=(2, longer)),))}
    federator = toy_federator(clients=clients, rounds=2)
    settings = federator.engine.local_trainer.settings
    federator.engine.local_trainer.settings = dataclasses.replace(settings, steps=None, epochs=1)
    fleet = with_fleet(federator)
    federator.callbacks = [TaskChanges(clients, {(0, 0): "a"}), *federator.callbacks]
    federator.fit()
    every, plan = federator.server.layout.all_components(), federator.server.recipe.plan(0)
    assert federator.counts["fleet/flops/0"] == fleet.cost.flops(plan, longer, every, every)
    assert federator.counts["fleet/flops/0"] > fleet.cost.flops(plan, job, every, every)


def run(processes: ProcessGroup, folder: Path, clock: dict[str, Any]) -> tuple[list[bytes], list[dict[str, float]]]:
    recipe, settings = METHODS["everything"]
    federator = toy_federator(recipe, **{**settings, **mixed(), "rounds": 3})
    folder.mkdir(parents=True, exist_ok=True)
    federator.client_states = ClientStateStore(folder)
    if processes.size > 1:
        federator.engine = DistributedEngine(federator.engine, processes)
    with_fleet(federator, slower(federator.clients, 10.0), **clock)
    federator.fit()
    return everything(federator), federator.history


@pytest.mark.parametrize("clock", [{"deadline": 3.0}, {"wanted": 2}, {"wanted": 2, "deadline": 3.0}], ids=str)
def test_two_processes_have_the_bits_and_the_clock_of_one(clock: dict[str, Any], tmp_path: Path) -> None:
    expected = run(ProcessGroup(), tmp_path / "1", clock)
    assert any(row["fleet/late"] for row in expected[1])
    work = functools.partial(run, folder=tmp_path / "2", clock=clock)
    assert forked(work, 2, tmp_path) == [expected] * 2


def test_clients_that_are_trained_at_once_have_the_same_clock_as_one_by_one() -> None:
    found = []
    for engine in (lambda federator: federator.engine, batched):
        federator = encoders("fedit", sizes=(11, 6, 17, 9))
        federator.rounds = 2
        federator.callbacks = [FedCallback()]
        federator.engine = engine(federator)
        with_fleet(federator, slower(federator.clients, 2.0), wanted=3)
        federator.fit()
        found.append([{key: value for key, value in row.items() if "fleet" in key or "simulated" in key}
                      for row in federator.history])  # fmt: skip
    for serial, at_once in zip(*found, strict=True):
        assert at_once == pytest.approx(serial, rel=1e-3)  # the texts of metrics may differ in length


def test_hours_and_energy_go_on_after_a_resume() -> None:
    first, second = (with_fleet(toy_federator()) for _ in range(2))
    first.hours, first.energy = 1.25, 300.0
    second.load_state_dict(first.state_dict())
    assert (second.hours, second.energy) == (1.25, 300.0)
