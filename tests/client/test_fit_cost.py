"""FLOPs and memory of fits: by hand, and against torch's counter on the training steps of real fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from stacks import federator_of, texts
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from toys import CLASSES, FEATURES, Toy, toy_clients, toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.client.cost_trace import trace
from flt.client.fit_cost import FitCost, lora_flops, moments
from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.protocol.messages import Plan
from flt.protocol.state import ClientState
from flt.server.federator import Federator

R = 4
LAYERS = ((FEATURES, 8), (8, 10))
"""Inputs and outputs of the toy's two layers with LoRA; the head has 10 inputs."""


def cost_of(federator: Federator, data: JobData, train: Sequence[str] | None = None, **settings: Any) -> FitCost:
    local = federator.engine.local_trainer
    roles = tuple(train or federator.server.recipe.plan(0).train)
    return FitCost(
        local.module, local.layout, dataclasses.replace(local.settings, **settings), local.collate, data, [roles]
    )


def by_hand(examples: int, held: int, kept: int) -> int:
    """Multiplications and additions of a step of the toy, whose adapter and head train."""
    (in1, out1), (in2, out2) = LAYERS
    forward = in1 * out1 + in2 * out2 + out2 * CLASSES + held * (in1 + out1 + in2 + out2)
    head = 2 * out2 * CLASSES  # gradients of the weight and of the input
    second = in2 * out2 + kept * (out2 + in2) + held * (out2 + in2)  # the input's gradient goes on to the first layer
    first = kept * (out1 + in1) + kept * out1  # below it, nothing trains
    return 2 * examples * (forward + head + second + first)


@pytest.mark.parametrize(("held", "kept"), [(4, 4), (2, 2), (4, 1), (3, 2)])
def test_a_fit_of_linear_layers_costs_what_is_counted_by_hand(held: int, kept: int) -> None:
    federator = toy_federator(rank=R)
    data = federator.clients[1].data[0]  # 16 examples
    names = federator.server.layout.layers
    components = [dict.fromkeys(names, tuple(range(n))) for n in (held, kept)]
    cost = cost_of(federator, data, steps=5, batch_size=8)
    assert cost.flops(Plan(), data, *components) == by_hand(5 * 8, held, kept)


@pytest.mark.parametrize(
    ("settings", "examples"),
    [
        ({"steps": 3}, 3 * 4),
        ({"steps": 3, "accumulate": 2}, 4 * 4 + 2 * 4),  # one epoch of four batches, and two of the next
        ({"steps": None, "epochs": 2}, 2 * 16),
        ({"steps": None, "epochs": 2, "batch_size": 10}, 2 * 16),
        ({"steps": 3, "batch_size": 10}, 16 + 10),  # the second batch of an epoch has six examples
        ({"steps": 2, "batch_size": 100}, 2 * 16),
    ],
)
def test_a_fit_costs_as_much_as_the_examples_that_it_sees(settings: dict[str, Any], examples: int) -> None:
    federator = toy_federator(rank=R)
    data = federator.clients[1].data[0]
    all_of_them = federator.server.layout.all_components()
    cost = cost_of(federator, data, **settings)
    assert cost.flops(Plan(), data, all_of_them, all_of_them) == by_hand(examples, R, R)
    seven = cost.flops(Plan(steps=7), data, all_of_them, all_of_them)
    assert seven == by_hand(seen_in(7 * cost.settings.accumulate, data, cost.settings), R, R)


def seen_in(batches: int, data: JobData, settings: LocalSettings) -> int:
    """Examples in the first batches of the loader of a fit, which begins anew after each epoch."""
    batch_sizes = [len(x) for x, _ in loader(data.training_set, settings, None, seed=0)]
    return sum(itertools.islice(itertools.cycle(batch_sizes), batches))


def test_a_factor_that_does_not_train_has_no_gradient_and_sends_none_on() -> None:
    assert lora_flops([10.0, 20.0], 4, 4, ("B",), backward=False) == 4 * 30 + 4 * 20
    assert lora_flops([10.0, 20.0], 4, 4, ("B",), backward=True) == 4 * 30 + 4 * 20 + 4 * 20 + 4 * 10
    assert lora_flops([10.0, 20.0], 4, 2, ("A", "B"), backward=False) == 4 * 30 + 2 * 30 + 2 * 20


def equally_long(length: int, count: int) -> JobData:
    """Texts of one length, for which a batch has no padding."""
    examples = texts(400)
    chosen = np.flatnonzero(np.asarray(examples.lengths) == length)[:count]
    return JobData(examples, chosen, chosen[:0])


def counted(federator: Federator, data: JobData) -> int:
    """What torch's counter finds in the step of a real fit on these data, in one batch."""
    local, (job, *_) = federator.engine.local_trainer, federator.draw_cohort()
    payload = federator.server.broadcast(federator.state, job, [job])
    local.install(payload, ClientState())
    batch = local.collate([data.training_set[i] for i in range(data.examples)])
    for sub in local.client_aware:
        sub.enter_batch(batch)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss: Any = local.module.training_step(batch, 0)
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [2, 5, 9])
@pytest.mark.parametrize(
    ("algo", "overrides"),
    [
        ("fedit", ()),
        ("fedit", ("model.adapt_layers=top1",)),
        ("fedit", ("adapter.dropout=0.1",)),
        ("ffa_lora", ()),
        ("fedit", ("adapter=houlsby",)),
        ("c2a", ()),
        ("fedavg", ()),
        ("hafl", ("selection=truncate",)),
        ("flexlora", ()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else value,
)
def test_estimates_for_any_length_and_rank_are_those_of_torchs_counter(
    algo: str, overrides: tuple[str, ...], length: int
) -> None:
    ranks = [2] if algo in ("hafl", "flexlora") else None
    federator = federator_of(algo, *overrides, ranks=ranks)
    data, longer = equally_long(length, 5), equally_long(9, 8)
    (job, *_) = federator.draw_cohort()
    payload = federator.server.broadcast(federator.state, job, [job])
    cost = cost_of(federator, longer, payload.plan.train, steps=1, epochs=None, batch_size=5)
    found = cost.flops(payload.plan, data, payload.held, payload.kept)
    assert found == pytest.approx(counted(federator, data), rel=1e-9)


def test_images_and_causal_models_are_counted_too() -> None:
    causal = federator_of("fedit", kind="gpt2", causal=True)
    data = equally_long(8, 4)
    data = dataclasses.replace(data, dataset=texts(400, responses=True))
    lengths = np.asarray(data.dataset.lengths)
    data = dataclasses.replace(data, train=np.flatnonzero(lengths == 8)[:4])
    (job, *_) = causal.draw_cohort()
    payload = causal.server.broadcast(causal.state, job, [job])
    cost = cost_of(causal, data, payload.plan.train, steps=1, epochs=None, batch_size=4)
    assert cost.flops(payload.plan, data, payload.held, payload.kept) == pytest.approx(counted(causal, data), rel=1e-9)


def test_blocks_below_the_lowest_adapter_compute_nothing_backward() -> None:
    all_blocks, top = (federator_of("fedit", f"model.adapt_layers={which}") for which in ("all", "top1"))
    data = equally_long(8, 4)
    flops = []
    for federator in (all_blocks, top):
        everything = federator.server.layout.all_components()
        cost = cost_of(federator, data, batch_size=4)
        flops.append(cost.flops(federator.server.recipe.plan(0), data, everything, everything))
    assert flops[1] < 0.75 * flops[0]


def test_frozen_components_cost_less_than_trained_ones_and_more_than_missing_ones() -> None:
    found = []
    for selection in (Freeze(by="first"), Truncate(by="first")):
        recipe = Recipe(Mean(), selection=selection)
        federator = toy_federator(recipe, clients=toy_clients(2, ranks=[1]))
        data = federator.clients[0].data[0]
        (job, *_) = federator.draw_cohort()
        payload = federator.server.broadcast(federator.state, job, [job])
        found.append(cost_of(federator, data).flops(payload.plan, data, payload.held, payload.kept))
    everything = federator.server.layout.all_components()
    whole = cost_of(federator, data).flops(Plan(), data, everything, everything)
    assert found[1] < found[0] < whole


def test_counting_changes_neither_the_module_nor_the_random_numbers() -> None:
    federator = federator_of("fedit", "adapter.dropout=0.3")
    module = federator.engine.local_trainer.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trains = [parameter.requires_grad for parameter in module.parameters()]
    random = torch.random.get_rng_state()
    cost_of(federator, equally_long(8, 4), ("A", "B", "adapter", "head"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert trains == [parameter.requires_grad for parameter in module.parameters()]
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(random, torch.random.get_rng_state())


def test_counting_leaves_nothing_in_the_lists_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = toy_federator()
    module: Any = federator.engine.local_trainer.module
    module.outputs, step = [], module.training_step

    def remembers(batch: Any, batch_idx: int) -> Any:
        module.outputs.append(step(batch, batch_idx))
        return module.outputs[-1]

    monkeypatch.setattr(module, "training_step", remembers)
    kept = module.outputs
    cost_of(federator, federator.clients[0].data[0])
    assert module.outputs is kept
    assert kept == []


def test_a_step_that_cannot_be_run_alone_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    federator = toy_federator()

    def needs_a_trainer(batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("Toy is not attached to a `Trainer`")

    monkeypatch.setattr(federator.engine.local_trainer.module, "training_step", needs_a_trainer)
    with pytest.raises(InputError, match="a step of Toy on a few examples fails: RuntimeError"):
        cost_of(federator, federator.clients[0].data[0])


@pytest.mark.parametrize(
    ("optimizer", "settings", "expected"),
    [
        (torch.optim.SGD, {}, 0),
        (torch.optim.SGD, {"momentum": 0.9}, 1),
        (torch.optim.Adagrad, {}, 1),
        (torch.optim.RMSprop, {"momentum": 0.9}, 2),
        (torch.optim.AdamW, {}, 2),
        (torch.optim.AdamW, {"amsgrad": True}, 3),
    ],
)
@pytest.mark.parametrize("form", ["alone", "list", "dict", "two lists"])
def test_the_optimiser_keeps_as_many_tensors_for_each_weight_as_after_a_step(
    optimizer: Any, settings: dict[str, Any], expected: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = Toy()
    made = optimizer(module.parameters(), lr=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.ConstantLR(made)
    forms = {"alone": made, "list": [made], "dict": {"optimizer": made, "lr_scheduler": scheduler},
             "two lists": ([made], [scheduler])}  # fmt: skip
    monkeypatch.setattr(module, "configure_optimizers", lambda: forms[form])
    weight = next(module.parameters())
    weight.grad = torch.ones_like(weight)
    made.step()
    kept = [value for value in made.state.get(weight, {}).values() if torch.is_tensor(value) and value.dim()]
    assert moments(module) == len(kept) == expected


def test_memory_is_weights_gradients_moments_and_what_autograd_keeps() -> None:
    federator = toy_federator(rank=R)  # AdamW
    data = federator.clients[1].data[0]
    cost, module = cost_of(federator, data, batch_size=8), federator.engine.local_trainer.module
    numbers = sum(parameter.numel() for parameter in module.parameters())
    (in1, out1), (in2, out2) = LAYERS
    per_rank, head = in1 + out1 + in2 + out2, out2 * CLASSES + CLASSES
    train = federator.server.recipe.plan(0).train
    kept = trace(module, federator.server.layout, train, _batch(data, 8)).saved
    assert cost.memory(train, data, R, R) == 4 * (numbers + 3 * (R * per_rank + head)) + kept
    two = cost.memory(train, data, 2, 2)
    assert cost.memory(train, data, R, R) - two == 4 * (2 * per_rank * 4 + 2 * 2 * 8)  # 8 examples, 2 layers
    assert cost.memory(train, data, R, 2) - two == 4 * (2 * per_rank + 2 * 2 * 8)
    assert cost.memory(train, data, 2, 2, measures=True) - two == 4 * (2 * per_rank + head)


def _batch(data: JobData, size: int) -> Any:
    rows = [data.training_set[i] for i in range(size)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]
