from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from toys import assert_same, toy_clients, toy_federator, updates_of, weights_of

from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.callbacks.communication import Communication
from flt.core.errors import InputError
from flt.protocol.messages import Payload, Update, decode, encode
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class Recorder(FedCallback):
    """Writes down every hook, and every message that crosses."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.messages: list[Payload | Update] = []

    def on_fit_start(self, federator: Federator) -> None:
        self.calls.append("fit_start")

    def on_round_start(self, federator: Federator) -> None:
        self.calls.append(f"round_start {federator.round}")

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.calls.append(f"job_start {payload.job[0]}")
        self.messages.append(payload)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        self.calls.append(f"job_end {update.job[0]}")
        self.messages.append(update)

    def on_round_end(self, federator: Federator) -> None:
        self.calls.append(f"round_end {federator.state.rounds}")

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        self.calls.append(f"log {metrics['round']}")

    def on_fit_end(self, federator: Federator) -> None:
        self.calls.append("fit_end")

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        self.calls.append(f"exception {type(exception).__name__}")


def test_hooks_are_called_in_the_order_of_the_round() -> None:
    recorder = Recorder()
    toy_federator(clients=toy_clients(2), callbacks=[recorder]).fit()
    jobs = ["job_start 0", "job_end 0", "job_start 1", "job_end 1"]
    assert recorder.calls == ["fit_start", "round_start 1", *jobs, "round_end 1", "log 1", "fit_end"]


@pytest.mark.parametrize(
    "recipe",
    [Recipe(Mean()), Recipe(Scaffold()), Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity())],
    ids=["fedit", "scaffold", "hafl"],
)
def test_counted_bytes_are_those_of_the_serialised_messages(recipe: Recipe) -> None:
    recorder, communication = Recorder(), Communication()
    federator = toy_federator(recipe, rounds=2, callbacks=[recorder, communication])
    federator.fit()
    sizes = {kind: sum(len(encode(m)) for m in recorder.messages if isinstance(m, kind)) for kind in (Payload, Update)}
    last = federator.history[-1]
    assert (last["comm/total_down"], last["comm/total_up"]) == (sizes[Payload], sizes[Update])
    assert last["comm/total_up"] == sum(metrics["comm/bytes_up"] for metrics in federator.history)


def test_training_from_decoded_messages_changes_no_bit() -> None:
    """Nothing but what the messages hold reaches a client or the server."""
    recipe = Recipe(Scaffold())
    plain, crossed = toy_federator(recipe, rounds=2), toy_federator(recipe, rounds=2)
    broadcast, run = crossed.server.broadcast, crossed.engine.run
    crossed.server.broadcast = lambda *args: decode(encode(broadcast(*args)))  # type: ignore[method-assign]
    crossed.engine.run = lambda tasks: (  # type: ignore[method-assign]
        (decode(encode(update)), decode(encode(private))) for update, private in run(tasks)
    )
    plain.fit()
    crossed.fit()
    assert_same(weights_of(crossed), weights_of(plain))


def test_freezing_uploads_fewer_bytes_than_fedit_at_the_full_rank() -> None:
    totals = []
    for recipe, ranks in ((Recipe(Mean()), None), (Recipe(Mean(), selection=Freeze()), [1, 2, 4])):
        federator = toy_federator(recipe, toy_clients(ranks=ranks), callbacks=[Communication()])
        federator.fit()
        totals.append(federator.history[-1]["comm/total_up"])
    assert totals[1] < totals[0]


def test_cohort_depends_on_the_seed_and_the_round_only() -> None:
    drawn: list[list[int]] = []

    class Cohorts(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            drawn.append([job.client for job in federator.cohort])

    toy_federator(clients=toy_clients(6), rounds=4, cohort=2, callbacks=[Cohorts()]).fit()
    torch.manual_seed(9)
    toy_federator(clients=toy_clients(6), rounds=4, cohort=2, callbacks=[Cohorts()]).fit()
    assert drawn[:4] == drawn[4:]
    assert len(set(map(tuple, drawn[:4]))) > 1


def test_a_fit_does_not_depend_on_who_else_is_in_the_cohort() -> None:
    updates: list[Update] = []

    class Keep(FedCallback):
        def on_job_end(self, federator: Federator, update: Update) -> None:
            if update.job == (1, 0):
                updates.append(update)

    clients = toy_clients(3)
    toy_federator(clients=clients, callbacks=[Keep()]).fit()
    toy_federator(clients={1: clients[1]}, callbacks=[Keep()]).fit()
    assert_same(updates[0].tensors, updates[1].tensors)


def test_an_empty_cohort_leaves_the_model_as_it_was() -> None:
    federator = toy_federator(rounds=1)
    federator.sampler = lambda clients, seed, round: []
    before = weights_of(federator)
    federator.fit()
    assert federator.state.rounds == 1
    assert_same(weights_of(federator), before)


def test_transforms_act_on_a_clients_updates_together_and_before_the_bytes_are_counted() -> None:
    seen: list[list[tuple[int, int]]] = []

    def halve(updates: list[Update]) -> list[Update]:
        seen.append([update.job for update in updates])
        return [dataclasses.replace(u, tensors={n: t.half() for n, t in u.tensors.items()}) for u in updates]

    plain = toy_federator(clients=toy_clients(2, jobs=2), callbacks=[Communication()])
    halved = toy_federator(clients=toy_clients(2, jobs=2), callbacks=[Communication()])
    halved.transforms = [halve]
    plain.fit()
    halved.fit()
    assert seen == [[(0, 0), (0, 1)], [(1, 0), (1, 1)]]
    assert halved.history[0]["comm/bytes_up"] == sum(len(encode(update)) for update in updates_of(halved))
    assert halved.history[0]["comm/bytes_up"] < plain.history[0]["comm/bytes_up"]


def test_a_non_finite_update_stops_the_run_naming_the_client_and_keeps_the_state() -> None:
    recorder = Recorder()
    federator = toy_federator(rounds=2, callbacks=[recorder])

    def poison(updates: list[Update]) -> list[Update]:
        bad = {n: torch.full_like(t, float("nan")) for n, t in updates[0].tensors.items()}
        return [dataclasses.replace(updates[0], tensors=bad)] if updates[0].job[0] == 1 else updates

    federator.transforms = [poison]
    before = federator.state
    with pytest.raises(InputError, match="update of client 1"):
        federator.fit()
    assert federator.state is before
    assert recorder.calls[-1] == "exception InputError"


def test_changes_of_the_base_travel_once_per_client_whatever_its_jobs() -> None:
    recorder = Recorder()
    toy_federator(Recipe(Stacking()), toy_clients(2, jobs=2), rounds=3, callbacks=[recorder]).fit()
    payloads = [m for m in recorder.messages if isinstance(m, Payload)]
    versions = [[delta.version for delta in payload.base] for payload in payloads if payload.job[0] == 1]
    assert versions == [[], [], [1], [], [2], []]


def test_private_states_stay_with_their_client() -> None:
    federator = toy_federator(Recipe(Scaffold()), rounds=2)
    federator.fit()
    kept = {job: state.slots["c_i"]["head.weight"] for job, state in federator.client_states.items()}
    assert sorted(kept) == [(0, 0), (1, 0), (2, 0)]
    assert not torch.equal(kept[0, 0], kept[1, 0])
    assert all(not state.tensors for state in federator.client_states.values())


@pytest.mark.parametrize("result", [None, 3, "updates", [None], {}], ids=repr)
def test_a_transform_that_returns_no_list_of_updates_is_refused_by_name(result: Any) -> None:
    def forgetful(updates: list[Update]) -> Any:
        return result

    federator = toy_federator()
    federator.transforms = [forgetful]
    with pytest.raises(InputError, match=r"^result of transform forgetful=.*: allowed is a list of updates$"):
        federator.fit()
