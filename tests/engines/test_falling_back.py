"""What the batched engine leaves as it was, what it doesn't compute, and what it leaves to the serial engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from stacks import assert_equal, batched, compared, federator_of, tasks_of
from toys import Toy

from flt.callbacks.local import LocalFit
from flt.ranks.selection import Freeze
from flt.recipe import Recipe
from flt.rules.mean import Mean


def test_a_fit_leaves_no_trace() -> None:
    federator = federator_of()
    tasks, module = tasks_of(federator), federator.engine.site.module
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    list(batched(federator).run(tasks))
    assert torch.equal(torch.rand(3), expected)
    assert not [name for name, sub in module.named_modules() if "forward" in vars(sub)]
    assert not [name for name, sub in module.named_modules() if sub._forward_hooks]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_tokens_that_no_head_reads_are_not_computed() -> None:
    _, _, engine = compared(federator_of())
    last = engine.site.module.model.bert.encoder.layer[-1]
    assert list(engine._proven.values()) == [last.attention]
    _, _, engine = compared(federator_of(kind="gpt2"))
    assert list(engine._proven.values()) == [None]


class Mixing(torch.nn.Module):
    """Examples of a batch depend on each other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Drawing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(())


@pytest.mark.parametrize(("layer", "why"), [(Mixing(), "which other jobs"), (Drawing(), "random numbers")])
def test_a_model_whose_examples_are_not_independent_falls_back(layer: Any, why: str, caplog: Any) -> None:
    federator = federator_of()
    federator.engine.site.module.model.bert.pooler.activation = layer
    tasks = tasks_of(federator)
    engine = batched(federator)
    assert_equal(list(engine.run(tasks)), list(federator.engine.run(tasks)), 0.0)
    list(engine.run(tasks))
    assert [why in record.message for record in caplog.records if "engine=batched" in record.message] == [True]


def test_what_belongs_to_one_job_falls_back() -> None:
    tasks = tasks_of(federator := federator_of())
    engine, site = batched(federator), federator.engine.site
    assert engine.reason(tasks[0]) is None
    site.callbacks = [Callback()]
    assert "Lightning callbacks" in (batched(federator).reason(tasks[0]) or "")
    site.callbacks = []
    site.module.model.dropout.p = 0.1
    assert "dropout" in (batched(federator).reason(tasks[0]) or "")
    site.module.model.dropout.p = 0.0
    site.module = Toy()  # type: ignore[assignment]  # a user's
    assert "flt's own" in (batched(federator).reason(tasks[0]) or "")


def test_a_local_callback_with_another_hook_falls_back() -> None:
    federator = federator_of(recipe=Recipe(Mean(), selection=Hooked()))
    tasks = tasks_of(federator)
    engine = batched(federator)
    assert_equal(list(engine.run(tasks)), list(federator.engine.run(tasks)), 0.0)
    assert "on_train_batch_start" in (engine.reason(tasks[0]) or "")


class Hooked(Freeze):
    def callbacks(self, fit: LocalFit) -> list[Callback]:
        return [Early()]


class Early(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        pass
