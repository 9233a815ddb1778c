"""Federations of tiny encoders on ragged texts, and both engines on the same assignments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tiny
import torch
import transformers
from torch import Tensor, nn

from flt.algorithm.recipe import Recipe
from flt.client.settings import LocalSettings
from flt.client.trainer import LocalTrainer
from flt.data.clients import ClientSpec, JobData
from flt.data.examples import Collate, Examples
from flt.data.stores import TextStore
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.serial import SerialEngine
from flt.models.backbones import _set_dropout
from flt.models.causal import CausalModule
from flt.models.module import ClientModule, Optimizer
from flt.protocol.entries import buffers
from flt.protocol.messages import Update
from flt.protocol.state import ClientState
from flt.run import build
from flt.run.assembly import with_capacities
from flt.run.compose import load_config
from flt.server.aggregation import ServerAggregation
from flt.server.client_sampling import FixedSize
from flt.server.engine import Assignment
from flt.server.federator import Federator

Results = list[tuple[Update, ClientState]]


def texts(rows: int, classes: int = 3, longest: int = 9, responses: bool = False) -> Examples:
    """Random tokens of one to ``longest`` each; with responses, all but the first token are learnt."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(2 if responses else 1, longest + 1, rows)
    ids = generator.integers(5, len(tiny.WORDS), lengths.sum()).astype(np.int32)
    targets = np.ones(rows, dtype=np.int32) if responses else None
    store = TextStore({"input_ids": ids}, np.concatenate([[0], np.cumsum(lengths)]), targets)
    return Examples(store, generator.integers(0, classes, rows))


def module_of(kind: str, optimizer: Optimizer, causal: bool = False) -> ClientModule:
    """A tiny model of transformers, without dropout."""
    wide = tiny.config(kind, initializer_range=0.1, **({} if causal else {"num_labels": 3}))
    _set_dropout(wide, 0.0)
    auto: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    if kind == "vit":
        auto = transformers.AutoModelForImageClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(wide).eval()
    return CausalModule(model, optimizer) if causal else ClientModule(model, 3, optimizer)


def federator_of(
    algo: str = "fedit", *overrides: str, kind: str = "bert", sizes: Sequence[int] = (11, 6, 17, 9),
    optimizer: Optimizer | None = None, module: nn.Module | None = None, data: Any = None, collate: Any = None,
    causal: bool = False, ranks: Sequence[int] | None = None, heads: Mapping[str, Mapping[str, Tensor]] | None = None,
    recipe: Recipe | None = None, held_out: int = 0, **settings: Any,
) -> Federator:  # fmt: skip
    """A federation around one tiny encoder, at its beginning; client i has ``sizes[i]`` examples to train on."""
    cfg = load_config([f"algo={algo}", *overrides])
    sgd = Optimizer("sgd", lr=0.05, momentum=0.5, weight_decay=0.01)
    if "rank" in cfg.adapter:
        cfg.adapter["rank"] = 4
    made: Any = module or module_of(kind, optimizer or sgd, causal)
    layout = build.attach(cfg, made)
    data = data or texts(sum(sizes) + held_out * len(sizes), responses=causal)
    ends = np.cumsum([size + held_out for size in sizes])
    names = list(heads or {"": {}})
    clients = []
    for i, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        own, task = np.arange(end - size - held_out, end), f"task{i % 2}"
        clients.append(ClientSpec(i, (JobData(data, own[:size], own[size:], task, head=names[i % len(names)]),)))
    tasks = {job.id: data.task for c in clients for job, data in zip(c.jobs(4), c.data, strict=True)}
    recipe = recipe or build.recipe(cfg, 2, tasks)
    served = with_capacities(clients, ranks, layout.with_heads(heads or {}), recipe)
    weights = {name: parameter.detach() for name, parameter in made.named_parameters()}
    base = {name: weights[name].clone() for name in recipe.frozen(layout)}
    server_layout = layout.with_heads(heads or {})
    weights |= {f"{name}#{head}": value for head, own in (heads or {}).items() for name, value in own.items()}
    sharers = {head: sum(c.data[0].head == head for c in clients) for head in names}
    server = ServerAggregation(recipe, server_layout, 2, 0, base, sharers, buffers(made))
    length = LocalSettings(**{"steps": 3, "batch_size": 4, **settings})
    local_trainer = LocalTrainer(made, layout, recipe, length, base, collate or Collate(), heads=heads)
    engine = SerialEngine(local_trainer, served)
    return Federator(server, served, engine, FixedSize(None), (), cfg.rounds, 0, server.initial(weights))


def assignments_of(federator: Federator, rounds: int = 1) -> list[Assignment]:
    """The assignments of the round that follows some rounds of the serial engine."""
    federator.rounds = rounds
    federator.fit()
    federator.metrics, federator.updates = {}, []
    federator.cohort = federator.draw_cohort()
    return list(federator._assignments())


def batched(federator: Federator, jobs: int | None = 4) -> BatchedEngine:
    """The batched engine on the federation's site."""
    return BatchedEngine(federator.engine.local_trainer, federator.clients, BatchedSettings(jobs=jobs))


def assert_equal(found: Results, expected: Results, tolerance: float = 1e-5) -> None:
    """The same updates and private states, up to rounding where they are numbers of a fit."""
    assert [update.job for update, _ in found] == [update.job for update, _ in expected]
    for (update, state), (other, expected_state) in zip(found, expected, strict=True):
        for field in ("round", "kept", "base_version", "examples", "steps"):
            assert getattr(update, field) == getattr(other, field), field
        for one, two in ((update.metrics, other.metrics), (update.scalars, other.scalars)):
            _close(_tensors(one), _tensors(two), tolerance)
        assert {name: ids for name, (ids, _) in update.scores.items()} == {
            name: ids for name, (ids, _) in other.scores.items()
        }
        _close({n: v for n, (_, v) in update.scores.items()}, {n: v for n, (_, v) in other.scores.items()}, tolerance)
        _close(update.tensors, other.tensors, tolerance)
        _close(state.tensors, expected_state.tensors, tolerance)
        assert state.slots.keys() == expected_state.slots.keys()
        for slot in state.slots:
            _close(state.slots[slot], expected_state.slots[slot], tolerance)


def _tensors(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, expected[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def moved(assignment: Assignment, update: Update) -> float:
    """How far a fit went from what it was sent."""
    return max(
        float((update.tensors[name] - assignment.payload.tensors[name]).abs().max())
        for name in update.tensors
        if name in assignment.payload.tensors and update.tensors[name].shape == assignment.payload.tensors[name].shape
    )


def compared(
    federator: Federator, jobs: int | None = 4, rounds: int = 1
) -> tuple[list[Assignment], Results, BatchedEngine]:
    """Runs the assignments of one round by both engines, and asserts that they agree."""
    assignments = assignments_of(federator, rounds)
    expected = list(federator.engine.run(assignments))
    engine = batched(federator, jobs)
    found = list(engine.run(assignments))
    assert_equal(found, expected)
    assert all(update.steps for update, _ in found)
    assert all(
        moved(assignment, update) > 1e-4
        for assignment, (update, _) in zip(assignments, found, strict=True)
        if update.tensors
    )
    return assignments, found, engine


@dataclasses.dataclass
class Spy:
    """Counts the fits of several jobs."""

    sizes: list[int] = dataclasses.field(default_factory=list)

    def on(self, engine: BatchedEngine) -> Spy:
        """Watches an engine."""
        fit = engine._fit

        def counted(assignments: Sequence[Assignment]) -> Results:
            self.sizes.append(len(assignments))
            return fit(assignments)

        engine._fit = counted  # type: ignore[method-assign]  # to watch it
        return self
