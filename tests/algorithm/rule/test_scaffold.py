"""SCAFFOLD against its algorithm, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toys import assert_same, toy_clients, toy_federator, updates_of, weights_of

from flt.algorithm.plan import AdapterPlan, Alternating, FullPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.server_optimizer import Momentum
from flt.client.trainer import LocalSettings, LocalTrainer
from flt.core.errors import InputError
from flt.data.clients import ClientSpec, JobData
from flt.engines.serial import SerialEngine
from flt.protocol.layout import Layout
from flt.protocol.messages import encode
from flt.server.aggregation import ServerAggregation
from flt.server.client_sampling import FixedSize
from flt.server.federator import Federator

LR, STEPS, ROUNDS = 0.1, 4, 4
EXAMPLES = (2, 5, 3, 4)


class Quadratic(pl.LightningModule):
    """Loss |w - t|^2 / 2 over targets t: its gradient is w - mean t."""

    def __init__(self, decay: float = 1.0) -> None:
        super().__init__()
        self.decay = decay
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        return ((self.w - batch[0]) ** 2).sum(dim=1).mean() / 2

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=LR)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def targets() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(n, 3, generator=generator) for n in EXAMPLES]


def quadratic_federator(recipe: Recipe, cohort: int, decay: float = 1.0) -> Federator:
    clients = {
        number: ClientSpec(number, (JobData(TensorDataset(t), np.arange(len(t)), np.arange(0)),))
        for number, t in enumerate(targets())
    }
    module = Quadratic(decay)
    module.w.requires_grad_("base" not in recipe.plan.roles)
    layout = Layout.of(module)
    base = {name: module.w.detach().clone() for name in recipe.frozen(layout)}
    server = ServerAggregation(recipe, layout, len(clients), 0, base)
    local_trainer = LocalTrainer(module, layout, recipe, LocalSettings(steps=STEPS, batch_size=8), base)
    state = server.initial(dict(module.named_parameters()))
    return Federator(server, clients, SerialEngine(local_trainer, clients), FixedSize(cohort), (), ROUNDS, 3, state)


class ScaffoldByHand:
    """Algorithm 1 of arXiv 1910.06378 with option II, weights by examples."""

    def __init__(self, step: float = 1.0, decay: float = 1.0) -> None:
        self.step, self.rates = step, [LR * decay**k for k in range(STEPS)]
        self.w, self.c = np.array([1.0, -2.0, 0.5]), np.zeros(3)
        self.own = [np.zeros(3) for _ in EXAMPLES]

    def round(self, cohort: Sequence[int]) -> None:
        models, changes = [], []
        for client in cohort:
            w, centre = self.w.copy(), targets()[client].double().numpy().mean(axis=0)
            for rate in self.rates:
                w = w - rate * ((w - centre) - self.own[client] + self.c)
            new = self.own[client] - self.c + (self.w - w) / sum(self.rates)
            models.append(EXAMPLES[client] * w)
            changes.append(new - self.own[client])
            self.own[client] = new
        mean = np.sum(models, axis=0) / sum(EXAMPLES[client] for client in cohort)
        self.w = self.w + self.step * (mean - self.w)
        self.c = self.c + np.sum(changes, axis=0) / len(EXAMPLES)


@pytest.mark.parametrize("cohort", [4, 2, 1])
def test_scaffold_follows_its_algorithm_over_rounds_of_partial_cohorts(cohort: int) -> None:
    """N in c's update is the number of all jobs, whatever the cohort's size."""
    follow(quadratic_federator(Recipe(Scaffold()), cohort), ScaffoldByHand())


@pytest.mark.parametrize("cohort", [4, 2])
def test_a_schedule_of_the_learning_rate_inside_a_fit_counts_as_the_sum_of_its_rates(cohort: int) -> None:
    follow(quadratic_federator(Recipe(Scaffold()), cohort, decay=0.5), ScaffoldByHand(decay=0.5))


@pytest.mark.parametrize("step", [0.5, 1.5])
def test_the_global_step_size_is_that_of_a_server_optimiser_without_momentum(step: float) -> None:
    recipe = Recipe(Scaffold(), server_optimizer=Momentum(lr=step, beta=0.0))
    follow(quadratic_federator(recipe, 2), ScaffoldByHand(step))


@pytest.mark.parametrize("cohort", [4, 2])
def test_scaffold_corrects_the_whole_model_too(cohort: int) -> None:
    follow(quadratic_federator(Recipe(Scaffold(), plan=FullPlan(lr_factor=1.0)), cohort), ScaffoldByHand())


def follow(federator: Federator, hand: ScaffoldByHand) -> None:
    for _ in range(ROUNDS):
        before = dict(federator.client_states)
        federator._round()
        chosen = [job.client for job in federator.cohort]
        hand.round(chosen)
        group = federator.state.groups[0]
        weights = {**group.weights, **federator.server.view(federator.state).frozen}
        np.testing.assert_allclose(weights["w"], hand.w, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(group.slots["c"]["w"], hand.c, rtol=1e-5, atol=1e-5)
        for client in chosen:
            own = federator.client_states[client, 0].slots["c_i"]["w"]
            np.testing.assert_allclose(own, hand.own[client], rtol=1e-5, atol=1e-5)
        absent = set(before) - {(client, 0) for client in chosen}
        assert all(federator.client_states[job] is before[job] for job in absent)


def test_c_travels_down_from_round_2_on_and_c_i_never() -> None:
    federator = toy_federator(Recipe(Scaffold()), toy_clients(3), rounds=2, cohort=2, optimizer="sgd", lr=0.1)
    sent = []
    broadcast = federator.server.broadcast
    federator.server.broadcast = lambda *given: sent.append(broadcast(*given)) or sent[-1]  # type: ignore[method-assign]
    federator.fit()
    assert [sorted(payload.slots) for payload in sent] == [[], [], ["c"], ["c"]]
    assert set(sent[-1].slots["c"]) == set(federator.state.groups[0].weights)
    assert all(b"c_i" not in encode(message) for message in [*sent, *updates_of(federator)])
    assert set(updates_of(federator)[0].scalars) == {"lr"}
    assert sorted(federator.client_states) == sorted({payload.job for payload in sent})


def test_private_variates_of_pairs_that_did_not_train_stay_as_they_were() -> None:
    recipe = Recipe(Scaffold(), selection=Freeze("first"))
    federator = toy_federator(recipe, toy_clients(2, ranks=[2, 4]), rounds=3, optimizer="sgd", lr=0.1)
    federator.fit()
    own = federator.client_states[0, 0].slots["c_i"]
    assert not own["fc2.lora_A.default.weight"][2:].any()
    assert not own["fc2.lora_B.default.weight"][:, 2:].any()
    assert own["fc2.lora_B.default.weight"][:, :2].any()
    assert federator.state.groups[0].slots["c"]["fc2.lora_B.default.weight"][:, 2:].any()


def test_the_learning_rate_that_goes_up_is_that_of_the_optimizer() -> None:
    federator = toy_federator(Recipe(Scaffold()), optimizer="sgd", lr=0.03)
    federator.fit()
    assert [update.scalars["lr"] for update in updates_of(federator)] == [0.03] * 3


PLANS = {"adapter": AdapterPlan(), "alternating": Alternating(), "whole model": FullPlan(lr_factor=1.0)}
PRIVATE = {"the head": AdapterPlan(private=["head"]), "B and the head": AdapterPlan(private=["B", "head"])}
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}


@pytest.mark.parametrize("plan", PLANS)
def test_c_is_the_mean_of_all_c_i_whatever_the_rounds_train(plan: str) -> None:
    federator = toy_federator(Recipe(Scaffold(), plan=PLANS[plan]), toy_clients(3), rounds=5, cohort=2, **SGD)
    while federator.state.rounds < 5:
        federator._round()
        for name, c in federator.state.groups[0].slots["c"].items():
            own = [kept.slots["c_i"].get(name, torch.zeros_like(c)) for kept in federator.client_states.values()]
            torch.testing.assert_close(c, torch.stack(own).sum(dim=0) / 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("plan", {**PLANS, **PRIVATE})
def test_with_one_client_nothing_drifts(plan: str) -> None:
    """In every round the correction is zero, up to rounding; tensors that stay on the client have none at all."""

    def trained(rule: Rule) -> dict[str, Tensor]:
        recipe = Recipe(rule, plan={**PLANS, **PRIVATE}[plan])
        federator = toy_federator(recipe, toy_clients(1), rounds=5, **SGD)
        federator.fit()
        own = federator.client_states[0, 0].tensors if federator.client_states else {}
        return {**weights_of(federator), **federator.server.view(federator.state).frozen, **own}

    assert_same(trained(Scaffold()), trained(Mean()), tolerance=1e-5)


def test_a_fit_without_a_learning_rate_is_refused_naming_the_client() -> None:
    with pytest.raises(InputError, match=r"^client 0: lr=0\.0: allowed is a learning rate above 0 in some step$"):
        toy_federator(Recipe(Scaffold()), optimizer="sgd", lr=0.0).fit()
