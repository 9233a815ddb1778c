"""The learning rate's decay over rounds, against AdamW written by hand."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from methods import clients_of, job_seed
from torch import Tensor, nn
from toys import assert_same, toy_batches, toy_clients, toy_data, toy_federator, toy_module, weights_of

from flt.algorithm.base import PlanPart
from flt.algorithm.plan import SCOPES, AdapterPlan, Alternating, FullPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks.evaluate import Evaluate
from flt.core.errors import InputError
from flt.server.callback import FedCallback
from flt.server.federator import Federator

LR, DECAY = 0.05, 0.1 ** (1 / 3)


@pytest.mark.parametrize(
    ("decay", "floor", "factors"),
    [
        (1.0, 0.0, [1.0, 1.0, 1.0]),
        (0.5, 0.0, [1.0, 0.5, 0.25]),
        (0.5, 0.3, [1.0, 0.5, 0.3]),
        (0.9, 1.0, [1.0, 1.0, 1.0]),
    ],
)
def test_the_factor_falls_from_1_in_round_1_to_the_floor(decay: float, floor: float, factors: list[float]) -> None:
    plan = AdapterPlan(lr_decay=decay, lr_floor=floor)
    assert [plan(finished).lr_factor for finished in range(3)] == factors
    assert plan(10_000).lr_factor == max(floor, float(decay == 1.0))


def by_hand(rounds: int, floor: float, steps: int = 3, weight_decay: float = 0.1) -> dict[str, Tensor]:
    """AdamW (arXiv 1711.05101, algorithm 2) from fresh moments in each round, on the batches of client 0."""
    module, _ = toy_module()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    data = clients_of(1)[0].data[0]
    for number in range(rounds):
        lr = LR * max(floor, DECAY**number)
        m, v = ({name: torch.zeros_like(p) for name, p in trained.items()} for _ in range(2))
        for t, (x, y) in enumerate(itertools.islice(toy_batches(data, job_seed(number, 0)), steps), start=1):
            gradients = torch.autograd.grad(nn.functional.cross_entropy(module(x), y), list(trained.values()))
            for (name, p), g in zip(trained.items(), gradients, strict=True):
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                step = m[name] / (1 - 0.9**t) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
                p.data = p.data - lr * weight_decay * p.data - lr * step
    return {name: p.detach() for name, p in trained.items()}


@pytest.mark.parametrize("floor", [0.0, 0.4], ids=["", "floor"])
def test_rounds_with_a_decay_are_adamw_with_smaller_and_smaller_rates(floor: float) -> None:
    recipe = Recipe(Mean(), plan=AdapterPlan(lr_decay=DECAY, lr_floor=floor))
    federator = toy_federator(recipe, clients_of(1), rounds=4, lr=LR)
    federator.fit()
    assert_same(weights_of(federator), by_hand(4, floor), tolerance=1e-5)
    other = by_hand(4, 0.4 - floor)
    assert not torch.allclose(weights_of(federator)["head.weight"], other["head.weight"], atol=1e-4)


class Rates(FedCallback):
    """The learning rates that go up."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_round_end(self, federator: Federator) -> None:
        self.found += sorted({update.scalars["lr"] for update in federator.updates})


def test_scaffold_is_told_the_rate_that_was_used_and_derives_the_drift_from_it() -> None:
    """c is the mean of the clients' c_i where all take part: with another rate than theirs it would not be."""
    recipe = Recipe(Scaffold("uniform"), plan=AdapterPlan(lr_decay=0.5, lr_floor=0.2))
    federator = toy_federator(recipe, toy_clients(3), rounds=4, optimizer="sgd", lr=0.08, callbacks=[rates := Rates()])
    federator.fit()
    assert rates.found == pytest.approx([0.08, 0.04, 0.02, 0.016])
    for name, c in federator.state.groups[0].slots["c"].items():
        own = [state.slots["c_i"][name] for state in federator.client_states.values()]
        torch.testing.assert_close(c, torch.stack(own).mean(0), rtol=1e-4, atol=1e-5)
        assert c.any()


def test_a_longer_run_has_the_same_first_rounds() -> None:
    recipe = Recipe(Mean(), plan=AdapterPlan(lr_decay=0.5))
    short, long = (toy_federator(recipe, rounds=rounds) for rounds in (2, 5))
    short.fit()
    for _ in range(2):
        long._round()
    assert_same(weights_of(long), weights_of(short))


PLANS = [AdapterPlan, Alternating, FullPlan, functools.partial(Stages, rounds=4)]


@pytest.mark.parametrize("plan", PLANS, ids=["adapter", "alternating", "full", "stages"])
@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1, math.nan])
def test_a_decay_outside_of_0_to_1_is_refused(decay: float, plan: Callable[..., PlanPart]) -> None:
    with pytest.raises(InputError, match=rf"^plan.lr_decay={decay}: allowed is a number in \(0, 1\]$"):
        plan(lr_decay=decay)


@pytest.mark.parametrize("plan", PLANS, ids=["adapter", "alternating", "full", "stages"])
@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_a_floor_outside_of_0_to_1_is_refused(floor: float, plan: Callable[..., PlanPart]) -> None:
    with pytest.raises(InputError, match=rf"^plan.lr_floor={floor}: allowed is a number in \[0, 1\]$"):
        plan(lr_floor=floor)


@pytest.mark.parametrize("plan", PLANS, ids=["adapter", "alternating", "full", "stages"])
def test_a_negative_weight_of_the_proximal_term_is_refused(plan: Callable[..., PlanPart]) -> None:
    with pytest.raises(InputError, match=r"^plan.mu=-1.0: allowed is "):
        plan(mu=-1.0)


def test_the_first_stage_of_two_trains_the_whole_model_with_the_proximal_term_and_the_second_without() -> None:
    """SA-FedLoRA's regularisation, at each scope, and FedProx's plans as they are."""
    for scope in SCOPES:
        stages = Stages(rounds=4, until=2, mu=0.3, scope=scope)
        assert [stages(round).mu for round in range(4)] == [0.3, 0.3, 0.0, 0.0]
    for plan in (AdapterPlan(mu=0.3), Alternating(mu=0.3), FullPlan(mu=0.3)):
        assert [plan(round).mu for round in range(3)] == [0.3] * 3


ALONE = AdapterPlan(private=["A", "B", "adapter", "head"])


def test_with_everything_private_each_client_trains_alone_and_nothing_travels() -> None:
    federator = toy_federator(Recipe(Mean(), plan=ALONE), clients_of(3), rounds=2)
    federator.callbacks = [Evaluate({"": toy_data()}, {(client, 0): "" for client in range(3)})]
    federator.fit()
    start = weights_of(toy_federator())
    assert_same(weights_of(federator), start)
    for client, state in ((job[0], state) for job, state in federator.client_states.items()):
        alone = toy_federator(clients={client: clients_of(3)[client]}, rounds=2)
        alone.fit()
        assert_same(state.tensors, weights_of(alone))
    assert all(not update.tensors for update in federator.updates)
    assert not any(key.startswith(("round/", "test/")) for key in federator.history[-1])


def test_a_role_that_can_not_be_private_is_refused() -> None:
    with pytest.raises(InputError, match=r"^plan.private=\['base'\]: allowed is some of A, B, adapter, head"):
        AdapterPlan(private=["base"])
