"""Rounds in which the whole model trains: FedAvg of all weights, and SA-FedLoRA's first stage."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from methods import SGD, clients_of, job_seed, proximal_fit
from toys import Sent, Toy, toy_federator, toy_module, updates_of, weights_of

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.plan import FullPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.schedule import Annealed
from flt.callbacks.communication import Communication
from flt.client.fit import LocalFit
from flt.core.errors import InputError
from flt.protocol.messages import decode, encode
from flt.server.federator import Federator

FULL = Recipe(Mean(), plan=FullPlan(lr_factor=1.0))
BASE = ["fc1.base_layer.bias", "fc1.base_layer.weight", "fc2.base_layer.bias", "fc2.base_layer.weight"]


def federated(recipe: Recipe, **given: Any) -> Federator:
    return toy_federator(recipe, clients_of(3), **{"rounds": 2, **given})


def full_fit(start: dict[str, torch.Tensor], client: int, number: int, mu: float = 0.0) -> dict[str, torch.Tensor]:
    """One client's fit by hand, from given weights: all but the adapter train."""
    module, _ = toy_module(**SGD)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
            parameter.requires_grad_("lora" not in name)
    proximal_fit(module, clients_of(3)[client].data[0], job_seed(number, client), mu)
    return {name: p.detach() for name, p in module.named_parameters()}


@pytest.mark.parametrize("mu", [0.0, 2.0])
@pytest.mark.parametrize("plan", [FullPlan(lr_factor=1.0), Stages(2, lr_factor=1.0, rounds=3)], ids=["fedavg", ""])
def test_rounds_of_the_whole_model_are_numpys_mean_of_hand_written_fits_with_the_proximal_term(
    monkeypatch: pytest.MonkeyPatch, plan: FullPlan | Stages, mu: float
) -> None:
    """FedAvg, FedProx, and SA-FedLoRA's first stage at its default scope."""
    federator = federated(Recipe(Mean(), plan=dataclasses.replace(plan, mu=mu)), **SGD)
    federator.fit()
    monkeypatch.setattr(Toy, "log", lambda *_: None)
    now = {name: p.detach() for name, p in toy_module(**SGD)[0].named_parameters()}
    n = np.array([12, 16, 20]) / 48
    for number in range(2):
        fits = [full_fit(now, client, number, mu) for client in range(3)]
        now = {
            name: torch.from_numpy(sum(p * fit[name].double().numpy() for p, fit in zip(n, fits, strict=True))).float()
            for name in now
        }
    for name in BASE:
        found = federator.state.base.value(name, federator.server.base)
        torch.testing.assert_close(found, now[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(found, federator.server.base[name])
    torch.testing.assert_close(weights_of(federator)["head.weight"], now["head.weight"], rtol=1e-5, atol=1e-6)


def test_base_and_head_go_up_and_the_adapter_neither_up_nor_down() -> None:
    federator = federated(FULL)
    payloads = []
    monitor = Communication()
    monitor.on_job_start = lambda _, payload: payloads.append(payload)  # type: ignore[method-assign]  # watches what is sent
    federator.callbacks = [monitor, Sent()]
    federator.fit()
    assert sorted(updates_of(federator)[0].tensors) == [*BASE, "head.bias", "head.weight"]
    assert all(sorted(payload.tensors) == ["head.bias", "head.weight"] for payload in payloads)
    assert [len(payload.base) for payload in payloads] == [0, 0, 0, 1, 1, 1]  # round 2: the first version, whole
    start = weights_of(federated(FULL))
    assert all(torch.equal(weights_of(federator)[name], start[name]) for name in start if "lora" in name)
    assert {metrics["comm/reduction"] for metrics in federator.history} == {0.0}


def test_one_clients_base_does_not_reach_the_next() -> None:
    """The resident module is shared: what a fit did to the frozen weights is taken back."""
    federator = federated(FULL, rounds=1)
    federator.fit()
    alone = federated(FULL, rounds=1)
    alone.sampler = lambda ids, seed, round: [2]
    alone.fit()
    last = {update.job[0]: update for update in updates_of(federator)}[2]
    (only,) = updates_of(alone)
    assert all(torch.equal(last.tensors[name], tensor) for name, tensor in only.tensors.items())


def test_a_fit_that_fails_leaves_the_base_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = federated(FULL)
    local_trainer = federator.engine.local_trainer
    before = {name: local_trainer.parameters[name].detach().clone() for name in BASE}
    monkeypatch.setattr(LocalFit, "update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        federator.fit()
    assert all(torch.equal(local_trainer.parameters[name], before[name]) for name in BASE)


def test_absent_clients_get_the_newest_base_once() -> None:
    federator = federated(FULL, rounds=4)
    federator.sampler = lambda ids, seed, round: [[0, 1], [0, 1], [2], [2]][round]
    sent = []
    monitor = Communication()
    monitor.on_job_start = lambda _, p: sent.append((p.job[0], len(p.base)))  # type: ignore[method-assign]  # as above
    federator.callbacks = [monitor]
    federator.fit()
    # both versions are values, so the newest alone is sent to client 2, which has seen none
    assert sent == [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (2, 1)]


def stages(until: int | float = 1, scope: str = "full", rounds: int = 3) -> Recipe:
    return Recipe(
        Mean(), plan=Stages(until, scope, lr_factor=1.0, rounds=rounds), importance=GradientSensitivity(),
        schedule=Annealed(2, heat=1, cool=0, initiating=Stages(until, rounds=rounds).initiating, rounds=rounds),
    )  # fmt: skip


def test_after_the_first_stage_the_base_stands_and_the_adapter_trains() -> None:
    federator = federated(stages(), rounds=3)
    federator._round()
    assert federator.state.base.version == 1
    start = weights_of(federated(stages()))
    assert all(torch.equal(weights_of(federator)[n], start[n]) for n in start if "lora" in n)
    federator._round()
    assert federator.state.base.version == 1
    assert all(not torch.equal(weights_of(federator)[n], start[n]) for n in start)
    assert "fc1.base_layer.weight" not in updates_of(federator)[0].tensors


def test_in_adapter_scope_the_proximal_term_holds_the_adapter_and_the_base_never_moves() -> None:
    plan = Stages(2, "adapter", mu=0.5, rounds=3)
    assert [plan(r).mu for r in range(3)] == [0.5, 0.5, 0.0]
    assert [plan(r).stage for r in range(3)] == ["initiating", "initiating", "adapter"]
    federator = federated(stages(2, "adapter", rounds=4), rounds=4)
    federator.fit()
    assert federator.state.base.version == 0


def test_with_all_rounds_initiating_and_no_proximal_term_it_is_fedavg_of_the_whole_model() -> None:
    plan = Stages(1.0, mu=0.0, lr_factor=1.0, rounds=2)
    recipe = Recipe(Mean(), plan=plan)
    found, fedavg = federated(recipe), federated(FULL)
    for federator in (found, fedavg):
        federator.fit()
    assert encode(found.state.base) == encode(fedavg.state.base)
    assert found.state.base.version == 2


def test_a_resumed_full_run_has_the_same_bits() -> None:
    straight, stopped, resumed = (federated(stages(2, rounds=4), rounds=4) for _ in range(3))
    straight.fit()
    stopped.rounds = 2
    stopped.fit()
    resumed.state, resumed.client_states = decode(encode(stopped.state)), stopped.client_states
    resumed.fit()
    assert encode(resumed.state) == encode(straight.state)


def test_both_reductions_are_those_of_the_numbers_sent() -> None:
    federator = federated(stages(1, rounds=3), rounds=3)
    federator.callbacks = [Communication()]
    federator.fit()
    whole = 8 * 6 + 8 + 10 * 8 + 10 + 3 * 10 + 3  # fc1, fc2, head
    adapter = [4 * (6 + 8 + 8 + 10) + 33, 2 * (6 + 8 + 8 + 10) + 33]  # ranks 4 and 2, and the head
    last = federator.history[-1]
    assert last["comm/params_up"] == adapter[1]
    assert last["comm/reduction_round"] == pytest.approx(1 - adapter[1] / whole)
    assert last["comm/reduction"] == pytest.approx(1 - (whole + sum(adapter)) / (3 * whole))


def test_a_round_without_uploads_saves_nothing() -> None:
    clients = {
        number: dataclasses.replace(client, data=tuple(dataclasses.replace(d, rounds=(1, 1)) for d in client.data))
        for number, client in clients_of(3).items()
    }
    federator = toy_federator(Recipe(Mean()), clients, rounds=3, callbacks=[Communication()])
    federator.fit()
    first, *empty = federator.history
    assert 0 < first["comm/reduction"] < 1
    assert not any(key.startswith(("comm/reduction", "comm/params")) for metrics in empty for key in metrics)
    assert federator.callbacks[0].state_dict()["rounds"] == 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rule": Stacking(), "plan": FullPlan()}, "plan FullPlan, which trains the base, with rule Stacking"),
        (
            {"rule": Mean(), "plan": Stages(1, rounds=2), "grouping": KMeansGrouping(2)},
            "plan Stages.*there is one base",
        ),
    ],
    ids=["stacking", "groups"],
)
def test_two_writers_of_the_base_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recipe(**parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"until": -1, "rounds": 3}, "plan.until=-1: allowed is rounds from 0 to 3"),
        ({"until": 4, "rounds": 3}, "plan.until=4"),
        ({"until": 1.5, "rounds": 3}, "plan.until=1.5"),
        ({"scope": "some"}, "plan.scope=some: allowed is full, adapter"),
        ({"mu": -1.0}, "plan.mu=-1.0"),
        ({"lr_factor": 0.0}, "plan.lr_factor=0.0"),
    ],
    ids=str,
)
def test_wrong_stages_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Stages(**given)


def test_the_learning_rate_decays_over_both_stages() -> None:
    plan = Stages(1, lr_factor=0.1, rounds=3, lr_decay=0.5)
    assert [plan(finished).lr_factor for finished in range(3)] == [0.1, 0.5, 0.25]
    assert [FullPlan(lr_factor=0.1, lr_decay=0.5, lr_floor=0.4)(r).lr_factor for r in range(3)] == pytest.approx(
        [0.1, 0.05, 0.04]
    )


@pytest.mark.parametrize(
    ("scope", "given", "expected"),
    [("full", None, 0.1), ("full", 0.02, 0.02), ("adapter", None, 1.0), ("adapter", 0.5, 0.5)],
)
def test_the_whole_model_has_a_smaller_learning_rate_than_the_adapter_unless_told_otherwise(
    scope: str, given: float | None, expected: float
) -> None:
    plan = Stages(2, scope, lr_factor=given, rounds=4, lr_decay=0.5)
    assert [plan(round).lr_factor for round in range(4)] == [expected, expected * 0.5, 0.25, 0.125]


@pytest.mark.parametrize(
    ("rounds", "until", "expected"),
    [(5, 0.05, 1), (3, 0.05, 1), (2, 0.05, 0), (1, 0.05, 0), (5, 0.0, 0), (5, 0, 0), (3, 1.0, 3)],
)
def test_a_share_of_rounds_is_at_least_one_where_two_are_left(rounds: int, until: float, expected: int) -> None:
    assert Stages(until, rounds=rounds).initiating == expected
