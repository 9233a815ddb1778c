"""Several jobs at once yield what they yield one after another."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from stacks import Spy, assert_equal, assignments_of, batched, compared, federator_of

from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.client.fit import LocalCallback, LocalFit
from flt.models.module import Optimizer
from flt.run.conf_groups import choices

RANKS = dict.fromkeys(("hafl", "haflq", "flexlora", "hetlora"), (4, 2, 1, 3))
SERIAL = {"c2a": "figures of one client", "fedavg": "the backbone itself changes"}
"""Recipes that are trained one job after another, and why."""
ADAMW = Optimizer("adamw", lr=1e-3, weight_decay=0.1)
SOME = ("fedit", "hafl", "scaffold")


@pytest.mark.parametrize(
    "algo", [pytest.param(name, marks=() if name in (*SOME, *SERIAL) else pytest.mark.slow) for name in choices("algo")]
)
def test_every_recipe_yields_what_it_yields_serially(algo: str, caplog: Any) -> None:
    _, _, engine = compared(federator_of(algo, ranks=RANKS.get(algo), held_out=3))
    assert [SERIAL.get(algo, "?") in why for why in engine._refused.values()] == [True] * (algo in SERIAL)
    assert sum("one job after another" in record.message for record in caplog.records) == (algo in SERIAL)


def test_sa_fedlora_is_serial_in_its_full_stage_and_stacked_afterwards() -> None:
    federator = federator_of("sa_fedlora", "plan.until=1")
    full, adapter = assignments_of(federator, 0), assignments_of(federator, 1)
    engine = batched(federator)
    spy = Spy().on(engine)
    list(engine.run(full))
    assert spy.sizes == []
    assert "backbone" in (engine.fallback_reason(full[0]) or "")
    list(engine.run(adapter))
    assert spy.sizes == [4]


def test_a_causal_model_learns_responses() -> None:
    _, _, engine = compared(federator_of(kind="gpt2", causal=True, held_out=3))
    assert not engine._refused


@pytest.mark.parametrize("optimizer", [ADAMW, Optimizer("sgd", 0.05, momentum=0.9)], ids=["adamw", "momentum"])
def test_optimisers_keep_a_state_for_each_job(optimizer: Optimizer) -> None:
    compared(federator_of("hafl", ranks=RANKS["hafl"], optimizer=optimizer, steps=6))


@pytest.mark.parametrize(
    "length",
    [{"steps": None, "epochs": 2}, {"steps": None, "epochs": 2, "accumulate": 2}, {"accumulate": 3}],
    ids=["epochs", "epochs of accumulated batches", "accumulated batches"],
)
def test_jobs_end_after_their_own_steps(length: dict[str, Any]) -> None:
    _, found, _ = compared(federator_of(sizes=(11, 6, 21, 4), **length))
    steps = [update.steps for update, _ in found]
    if "epochs" in length:
        per_epoch = [-(-batches // length.get("accumulate", 1)) for batches in (3, 2, 6, 1)]
        assert steps == [2 * count for count in per_epoch]
    else:
        assert steps == [3, 3, 3, 3]


def test_ranks_and_living_pairs_differ_between_jobs() -> None:
    recipe = Recipe(Mean(pad="parameter"), selection=Truncate("random"))
    _, found, _ = compared(federator_of(recipe=recipe, ranks=(4, 2, 1, 3), optimizer=ADAMW))
    sizes = [{len(ids) for ids in update.kept.values()} for update, _ in found]
    assert sizes == [{4}, {2}, {1}, {3}]
    assert len({update.kept[layer] for update, _ in found for layer in update.kept}) > 4


def test_frozen_pairs_stay_to_the_bit_under_adamw() -> None:
    seen: list[tuple[LocalFit, dict[str, torch.Tensor]]] = []
    recipe = Recipe(Mean(), selection=Watching(seen))
    compared(federator_of(recipe=recipe, ranks=(4, 2, 1, 3), optimizer=ADAMW))
    for fit, ends in seen:
        for name, end in ends.items():
            axis, frozen = fit.layout.axis(name), fit.frozen(name)
            if frozen is not None:
                assert torch.equal(end.index_select(axis, frozen), fit.start[name].index_select(axis, frozen))
    assert sum(fit.frozen(name) is not None for fit, ends in seen for name in ends) > 6


@dataclasses.dataclass(frozen=True)
class Watching(Freeze):
    """Keeps what each fit ends with."""

    seen: Any = dataclasses.field(default_factory=list)

    def __init__(self, seen: Any) -> None:
        super().__init__("random")
        object.__setattr__(self, "seen", seen)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        return [*super().callbacks(fit), Ends(fit, self.seen)]


class Ends(LocalCallback):
    def __init__(self, fit: LocalFit, seen: Any) -> None:
        super().__init__(fit)
        self.seen = seen

    def report(self) -> None:
        entries = self.fit.layout.entries
        ends = {name: p.detach().clone() for name, p in self.fit.trained.items() if entries[name].axis is not None}
        self.seen.append((self.fit, ends))


def test_the_proximal_term_holds_each_job_by_itself() -> None:
    _, found, _ = compared(federator_of(recipe=Recipe(Mean(), plan=AdapterPlan(mu=5.0)), steps=5))
    _, free, _ = compared(federator_of(recipe=Recipe(Mean()), steps=5))
    name = next(iter(found[0][0].tensors))
    assert not torch.allclose(found[0][0].tensors[name], free[0][0].tensors[name], atol=1e-4)


def test_each_jobs_gradient_is_clipped_by_its_own_norm() -> None:
    compared(federator_of(clip=0.05))
    federator = federator_of("fedit", clip=0.05)
    assignments = assignments_of(federator)
    alone = [update for update, _ in batched(federator).run(assignments)]
    scaled = dict(assignments[0].payload.tensors)
    scaled |= {name: value * 100 for name, value in scaled.items() if "classifier" in name}
    huge = dataclasses.replace(assignments[0], payload=dataclasses.replace(assignments[0].payload, tensors=scaled))
    beside = [update for update, _ in batched(federator).run([huge, *assignments[1:]])]
    for one, other in zip(alone[1:], beside[1:], strict=True):
        for name, value in one.tensors.items():
            torch.testing.assert_close(value, other.tensors[name], rtol=0, atol=1e-6)


def test_jobs_with_other_heads_go_beside_and_results_keep_their_order() -> None:
    federator = federator_of(heads=heads_of(3, 4), sizes=(11, 6, 17, 9, 5), held_out=0)
    engine = batched(federator, 5)
    spy = Spy().on(engine)
    assignments = assignments_of(federator)
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)))
    assert spy.sizes == [3, 2]


def heads_of(*classes: int) -> dict[str, dict[str, torch.Tensor]]:
    """A head for each number of classes, of the tiny BERT."""
    generator = torch.Generator().manual_seed(1)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for number in classes:
        shapes = {"model.classifier.weight": (number, 16), "model.classifier.bias": (number,)}
        found[str(number)] = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    return found


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_remainder_and_single_jobs_are_trained_too(jobs: int) -> None:
    federator = federator_of(sizes=(8, 8, 8, 8))
    engine, assignments = batched(federator, jobs), assignments_of(federator)
    spy = Spy().on(engine)
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)))
    assert spy.sizes == ([3, 1] if jobs == 3 else [1] * 4)


def test_no_more_tasks_are_asked_for_than_go_at_once() -> None:
    federator = federator_of(sizes=(8, 8, 8, 8))
    asked = []

    def lazily() -> Any:
        for assignment in assignments:
            asked.append(assignment.payload.job)
            yield assignment

    assignments = assignments_of(federator)
    results = batched(federator, 2).run(lazily())
    next(results)
    assert len(asked) == 2
