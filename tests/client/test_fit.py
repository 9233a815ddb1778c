from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import Planned, Toy, assert_same, toy_batches, toy_federator, toy_module, updates_of

from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule import scaffold
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.protocol.messages import Plan
from flt.server.federator import Federator


def first_update(federator: Federator) -> dict[str, Tensor]:
    federator.fit()
    return next(update.tensors for update in updates_of(federator) if update.job == (0, 0))


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that client 0 sees in its first fit."""
    federator = toy_federator()
    federator.cohort = federator.draw_cohort()
    return itertools.islice(toy_batches(federator.clients[0].data[0], federator._job_seed(federator.cohort[0])), steps)


def hand_written(module: Toy, mu: float, steps: int) -> dict[str, Tensor]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = module.configure_optimizers()
    for x, y in batches(steps):
        optimizer.zero_grad()
        distance = sum(((p - start[name]) ** 2).sum() for name, p in trained.items())
        (nn.functional.cross_entropy(module(x), y) + mu / 2 * distance).backward()
        optimizer.step()
    return {name: p.detach() for name, p in trained.items()}


@pytest.mark.parametrize("mu", [0.0, 0.7])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_proximal_term_is_what_autograd_makes_of_half_mu_times_the_squared_distance(
    optimizer: str, mu: float
) -> None:
    federator = toy_federator(Recipe(Mean(), plan=AdapterPlan(mu=mu)), optimizer=optimizer, steps=5)
    expected = hand_written(toy_module(optimizer=optimizer)[0], mu, 5)
    assert_same(first_update(federator), expected, tolerance=1e-6 if mu else 0.0)


SLOWER = Planned(make=lambda round: Plan(lr_factor=0.1))


def test_the_plans_factor_multiplies_the_modules_learning_rate() -> None:
    slowed = first_update(toy_federator(Recipe(Mean(), plan=SLOWER), optimizer="sgd", lr=0.5))
    assert_same(slowed, first_update(toy_federator(optimizer="sgd", lr=0.05)), tolerance=1e-7)


def test_the_plans_factor_reaches_the_users_schedule_too() -> None:
    class Scheduled(Toy):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def update(plan: Any, lr: float) -> dict[str, Tensor]:
        federator = toy_federator(Recipe(Mean(), plan=plan), lr=lr)
        federator.engine.local_trainer.module.__class__ = Scheduled
        return first_update(federator)

    assert_same(update(SLOWER, 0.5), update(AdapterPlan(), 0.05), tolerance=1e-7)


def test_scaffold_says_once_that_it_is_a_heuristic_without_sgd(caplog: pytest.LogCaptureFixture) -> None:
    scaffold._say_once.cache_clear()
    toy_federator(Recipe(Scaffold()), optimizer="sgd").fit()
    assert not caplog.records
    toy_federator(Recipe(Scaffold()), optimizer="adamw").fit()
    assert [record.message.partition(";")[2] for record in caplog.records] == [
        " with another optimiser they are a heuristic"
    ]


@pytest.mark.parametrize("kind", ["momentum", "two rates", "clipping"])
def test_sgd_with_momentum_clipping_or_several_learning_rates_is_a_heuristic_too(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Other(Toy):
        def configure_optimizers(self) -> Any:
            first, *rest = (p for p in self.parameters() if p.requires_grad)
            groups = [{"params": [first], "lr": 0.2 if kind == "two rates" else 0.1}, {"params": rest}]
            return torch.optim.SGD(groups, lr=0.1, momentum=0.9 if kind == "momentum" else 0.0)

    scaffold._say_once.cache_clear()
    federator = toy_federator(Recipe(Scaffold()), clip=0.1 if kind == "clipping" else None)
    federator.engine.local_trainer.module.__class__ = Other
    federator.fit()
    (record,) = caplog.records
    assert record.message.endswith("they are a heuristic")


def test_only_the_head_trains_and_travels_up_where_the_plan_says_so() -> None:
    federator = toy_federator(Recipe(Mean(), plan=AdapterPlan(train=["head"])))
    assert sorted(first_update(federator)) == ["head.bias", "head.weight"]
