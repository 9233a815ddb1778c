"""What the batched engine leaves as it was, what it doesn't compute, and what it leaves to the serial engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from stacks import Spy, assert_equal, assignments_of, batched, compared, federator_of, module_of, texts
from torch.utils.data import Dataset
from toys import Toy

from flt.algorithm.plan import FullPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.client.fit import LocalFit
from flt.core.timeout import time_limit
from flt.data.examples import Examples
from flt.engines.batched import engine as batched_engine
from flt.engines.batched.shortcut import Shortcut
from flt.models.module import Optimizer
from flt.protocol.failure import Failure
from flt.server.failure_policy import FailurePolicy
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


def test_a_fit_leaves_no_trace() -> None:
    federator = federator_of(held_out=3)
    assignments, module = assignments_of(federator), federator.engine.local_trainer.module
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    list(batched(federator).run(assignments))
    assert torch.equal(torch.rand(3), expected)
    assert not [name for name, sub in module.named_modules() if "forward" in vars(sub)]
    assert not [name for name, sub in module.named_modules() if sub._forward_hooks]
    assert all(parameter.grad is None for parameter in module.parameters())


def narrowed(engine: Any) -> set[str]:
    """Names of the layers that one token goes through alone, in the one block that has some."""
    (shortcut,) = engine._verified.values()
    named = {module: name for name, module in engine.local_trainer.module.model.named_modules()}
    return {named[layer].partition(".layer.")[2] for layer in shortcut.narrow}


def test_tokens_that_no_head_reads_are_not_computed() -> None:
    _, _, engine = compared(federator_of())
    model = engine.local_trainer.module.model
    (shortcut,) = engine._verified.values()
    assert shortcut is not None
    assert shortcut.cut_after is model.bert.encoder.layer[-1].attention
    last = len(model.bert.encoder.layer) - 1
    assert narrowed(engine) == {f"{last}.attention.self.query", f"{last}.attention.output.dense"}
    _, _, engine = compared(federator_of(kind="gpt2"))
    (shortcut,) = engine._verified.values()
    assert shortcut is not None
    assert shortcut.cut_after is None


def test_where_a_queries_layer_mixes_tokens_all_of_them_go_through_the_attention() -> None:
    federator = federator_of(held_out=3)
    attention = federator.engine.local_trainer.module.model.bert.encoder.layer[-1].attention
    dense = attention.output.dense.forward
    attention.output.dense.forward = lambda x: dense(x) + x[:, 1:2]
    _, _, engine = compared(federator)
    (shortcut,) = engine._verified.values()
    assert shortcut == Shortcut(attention)


class Mixing(torch.nn.Module):
    """Examples of a batch depend on each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Drawing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(())


@pytest.mark.parametrize(("layer", "why"), [(Mixing(), "which other jobs"), (Drawing(), "random numbers")])
def test_a_model_whose_examples_are_not_independent_falls_back(layer: Any, why: str, caplog: Any) -> None:
    federator = federator_of(held_out=3)
    federator.engine.local_trainer.module.model.bert.pooler.activation = layer
    assignments = assignments_of(federator)
    engine = batched(federator)
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)), 0.0)
    list(engine.run(assignments))
    assert [why in record.message for record in caplog.records if "engine=batched" in record.message] == [True]


class Normed(torch.nn.Sequential):
    """An activation and a batch norm over the features."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Tanh(), torch.nn.BatchNorm1d(16))
        self[1].running_mean.fill_(0.2)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_batch_norm_is_stacked_where_it_is_frozen_and_falls_back_where_it_trains(frozen: bool, caplog: Any) -> None:
    module = module_of("bert", Optimizer("sgd", lr=0.05))
    module.model.bert.pooler.activation = Normed()
    federator = federator_of(module=module, recipe=None if frozen else Recipe(Mean(), FullPlan()))
    spy, assignments = Spy(), assignments_of(federator)
    expected, engine = list(federator.engine.run(assignments)), batched(federator)
    spy.on(engine)
    assert_equal(list(engine.run(assignments)), expected)
    assert bool(spy.sizes) is frozen
    assert all(bool(update.buffers) is not frozen for update, _ in expected)


def test_what_belongs_to_one_job_falls_back() -> None:
    assignments = assignments_of(federator := federator_of())
    engine, local_trainer = batched(federator), federator.engine.local_trainer
    assert engine.fallback_reason(assignments[0]) is None
    local_trainer.callbacks = [Callback()]
    assert "Lightning callbacks" in (batched(federator).fallback_reason(assignments[0]) or "")
    local_trainer.callbacks = []
    local_trainer.module.model.dropout.p = 0.1
    assert "dropout" in (batched(federator).fallback_reason(assignments[0]) or "")
    local_trainer.module.model.dropout.p = 0.0
    local_trainer.module = Toy()  # type: ignore[assignment]  # a user's
    assert "flt's own" in (batched(federator).fallback_reason(assignments[0]) or "")


def test_a_local_callback_with_another_hook_falls_back() -> None:
    federator = federator_of(recipe=Recipe(Mean(), selection=Hooked()))
    assignments = assignments_of(federator)
    engine = batched(federator)
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)), 0.0)
    assert "on_train_batch_start" in (engine.fallback_reason(assignments[0]) or "")


class Hooked(Freeze):
    def callbacks(self, fit: LocalFit) -> list[Callback]:
        return [Early()]


class Early(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        pass


class Poisoned(Dataset):
    """Examples of which some can't be read."""

    def __init__(self, dataset: Examples, positions: range) -> None:
        self.dataset, self.positions = dataset, positions
        self.reads = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        if i in self.positions:
            self.reads += 1
            raise ValueError("a text of a user's example")
        return self.dataset[i]


def poisoned() -> Federator:
    """Four clients, the third of which can't read what it trains on."""
    return federator_of(data=Poisoned(texts(55), range(23, 40)), held_out=3)


def test_where_a_job_of_a_stack_fails_the_others_are_trained_one_by_one_to_the_bits_of_serial() -> None:
    federator = poisoned()
    failure_policy = FailurePolicy(min_updates=3)
    federator.engine.set_failure_policy(failure_policy)
    assignments = assignments_of(federator, rounds=0)
    expected = list(federator.engine.run(assignments))
    engine = batched(federator)
    spy = Spy().on(engine)
    engine.set_failure_policy(failure_policy)
    found: list[Any] = list(engine.run(assignments))
    assert spy.sizes == [4]
    assert isinstance(found[2], Failure)
    assert str(found[2]).startswith("client 2, job 0: ValueError in test_falling_back.py")
    assert found.pop(2) == expected.pop(2)  # type: ignore[comparison-overlap]  # both are failures
    assert_equal(found, expected, 0.0)


def test_without_tolerance_a_job_of_a_stack_that_fails_ends_the_run() -> None:
    federator = poisoned()
    with pytest.raises(ValueError, match="a text of a user's example"):
        list(batched(federator).run(assignments_of(federator, rounds=0)))


def test_a_job_that_fails_alone_is_not_tried_a_second_time() -> None:
    federator = poisoned()
    assignments, engine = assignments_of(federator, rounds=0), batched(federator)
    engine.set_failure_policy(FailurePolicy(min_updates=1))
    (failure,) = engine.run([assignments[2]])
    assert isinstance(failure, Failure)
    data: Any = federator.clients[2].data[0].dataset
    assert data.reads == 1


def test_how_many_at_once_is_timed_when_no_job_fails_any_more() -> None:
    federator = poisoned()
    data: Any = federator.clients[2].data[0].dataset
    engine = batched(federator, jobs=None)
    engine.set_failure_policy(FailurePolicy(min_updates=3))
    assignments = assignments_of(federator, rounds=0)
    assert [isinstance(outcome, Failure) for outcome in engine.run(assignments)] == [False, False, True, False]
    assert engine.jobs is None
    data.positions = range(0)
    assert not any(isinstance(outcome, Failure) for outcome in engine.run(assignments))
    assert engine.jobs is not None


def test_a_stack_has_the_time_of_its_jobs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float | None] = []

    def noted(seconds: float | None) -> Any:
        given.append(seconds)
        return time_limit(seconds)

    monkeypatch.setattr(batched_engine, "time_limit", noted)
    federator = federator_of(held_out=3)
    assignments, engine = assignments_of(federator, rounds=0), batched(federator)
    engine.set_failure_policy(FailurePolicy(min_updates=3, client_timeout=50.0))
    list(engine.run(assignments))
    assert given == [200.0]
