"""Losses of a model without single rank-1 components, on the examples of one job."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from flt.client.evaluator import Evaluator
from flt.client.isolation import buffers_kept
from flt.core import formatting
from flt.core.errors import InputError
from flt.core.quiet import without_fast_path
from flt.data.clients import JobData
from flt.data.stores import IGNORED
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids

LossesWithout = Callable[[str, int], tuple[float, dict[str, Tensor]]]
"""Function (``held_out`` or ``train``, largest number of examples) -> losses of a job's model on these examples.

The losses are that of the whole model, and for each layer those without each held component, shape (held components,).
"""
TOLERANCE, ROUNDING = 1e-2, 1e-5
"""Largest difference between the effect of a mask and of removing the component from the weights.

The first is relative to the change of the loss, the second to the loss.
"""
Component = tuple[str, int]
"""Layer, and position of the component among those that the job holds."""


def examples_of(data: JobData, source: str, most: int) -> Dataset:
    """Returns at most ``most`` evenly spaced examples of a job.

    Args:
        data: The job's data.
        source: ``held_out`` or ``train``. A job without held-out examples uses its training examples.
        most: Largest number of examples.
    """
    if source == "train" or len(data.held_out) == 0:
        data = data.but(held_out=data.train)
    return data.validation_set(most)


def losses_without(
    evaluator: Evaluator, layout: Layout, held: Mapping[str, Ids], dataset: Dataset
) -> tuple[float, dict[str, Tensor]]:
    """Measures the loss of the resident module as it is, and its loss without each held component.

    flt's own modules are evaluated in float32 with several components at once: a batch is repeated, and in each copy
    the output of A is zero at one component. A user's module is evaluated by its ``validation_step``, once for each
    component, and so is a model in which the masks don't have the effect of removing a component.

    Args:
        evaluator: The evaluator, with its resident module.
        layout: Layout of the module.
        held: Layer -> ids of the components that the module has.
        dataset: The examples.

    Returns:
        The loss, and layer -> loss without each of the layer's held components, shape (held components,), in float64.

    Raises:
        InputError: The module's ``validation_step`` logs no loss.
    """
    components = [(layer, at) for layer, ids in held.items() for at in range(len(ids))]
    losses = _masked(evaluator, layout, components, dataset) if evaluator.own_module else None
    if losses is None:
        losses = [_validated(evaluator, dataset)]
        for component in components:
            with removed(evaluator.module, layout, component):
                losses.append(_validated(evaluator, dataset))
    whole, *without = losses
    ends = iter(without)
    return whole, {layer: torch.tensor([next(ends) for _ in ids], dtype=torch.float64) for layer, ids in held.items()}


@contextlib.contextmanager
def removed(module: nn.Module, layout: Layout, component: Component | None) -> Iterator[None]:
    """Context manager in which a module lacks one component: its column of B is zero. None: it has all."""
    if component is None:
        yield
        return
    layer, at = component
    b = module.get_parameter(layout.layers[layer].b)
    kept = b.data
    b.data = kept.index_fill(1, torch.tensor([at], device=kept.device), 0)
    try:
        yield
    finally:
        b.data = kept


def _validated(evaluator: Evaluator, dataset: Dataset) -> float:
    metrics = evaluator.evaluate(dataset)
    if (name := formatting.loss(sorted(metrics))) is None:
        why = "importance=ablation compares losses"
        raise InputError.of("validation_step", sorted(metrics) or "no metric", "a metric with loss in its name", why)
    return metrics[name]


def _masked(evaluator: Evaluator, layout: Layout, components: list[Component], dataset: Dataset) -> list[float] | None:
    """Returns the losses of the whole model and of that without each component, or None if masks don't remove one."""
    module, left_out = evaluator.module, [None, *components]
    rows, sums, count = evaluator.settings.eval_batch_size, torch.zeros(len(left_out), dtype=torch.float64), 0
    with _evaluating(module):
        for number, batch in enumerate(evaluator.loader(dataset, None)):
            batch, size = _on(batch, module.device), len(batch["labels"])
            copies = max(1, rows // size)
            found = torch.cat([
                _losses(module, layout, left_out[at : at + copies], batch) for at in range(0, len(left_out), copies)
            ])  # fmt: skip
            if number == 0 and not _as_removed(module, layout, left_out, found, batch):
                return None
            sums, count = sums + found, count + _targets(batch["labels"])
    return (sums / max(1, count)).tolist()


def _as_removed(
    module: nn.Module, layout: Layout, left_out: list[Component | None], sums: Tensor, batch: Mapping[str, Tensor]
) -> bool:
    """Returns whether masking the largest component changes the loss as much as removing it from the weights."""
    sizes = [_size(module, layout, component) for component in left_out]
    largest = sizes.index(max(sizes))
    with removed(module, layout, left_out[largest]):
        change = _losses(module, layout, [None], batch)[0] - sums[0]
    error = (sums[largest] - sums[0] - change).abs()
    return bool(error <= TOLERANCE * change.abs() + ROUNDING * sums[0].abs())


def _size(module: nn.Module, layout: Layout, component: Component | None) -> float:
    """Returns |b_i| |a_i| of a component, and 0 for none."""
    if component is None:
        return 0.0
    layer, at = layout.layers[component[0]], component[1]
    a, b = (module.get_parameter(name).detach() for name in (layer.a, layer.b))
    return float(a.select(0, at).norm() * b.select(1, at).norm())


def _losses(module: nn.Module, layout: Layout, left_out: list[Component | None], batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the summed loss of a batch without each of some components (None: with all), shape (components,)."""
    copies = len(left_out)
    inputs = {name: value.repeat(copies, *[1] * (value.dim() - 1)) for name, value in batch.items() if name != "labels"}
    with _hooks(module, layout, left_out):
        logits = module(**inputs).float()
    labels = batch["labels"]
    if labels.dim() == 2:  # labels of tokens: each token is the target of the token before it
        labels, logits = labels[:, 1:], logits[:, :-1]
    labels = labels.repeat(copies, *[1] * (labels.dim() - 1))
    each = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
    return each.view(copies, -1).double().sum(1).cpu()


@contextlib.contextmanager
def _hooks(module: nn.Module, layout: Layout, left_out: list[Component | None]) -> Iterator[None]:
    """Context manager in which the outputs of the layers' factors A are masked, in each copy of the batch by itself."""
    with contextlib.ExitStack() as stack:
        for layer in {component[0] for component in left_out if component is not None}:
            positions = [(i, c[1]) for i, c in enumerate(left_out) if c is not None and c[0] == layer]
            factor = module.get_submodule(layout.layers[layer].a.rpartition(".")[0])
            axis = -1 if layout.layers[layer].matrices else 1
            hook = functools.partial(_mask, positions, len(left_out), axis)
            stack.callback(factor.register_forward_hook(hook).remove)
        yield


def _mask(
    positions: list[tuple[int, int]], copies: int, axis: int, _: nn.Module, inputs: Any, output: Tensor
) -> Tensor:
    """Returns the output of A, in which one component is zero in some copies of the batch."""
    if len(output) % copies:
        return output  # the check in _as_removed finds that this mask does nothing
    output = output.clone()
    parts = output.chunk(copies)
    for part, at in positions:
        parts[part].select(axis, at).zero_()
    return output


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Context manager of an evaluation outside of a Trainer, after which the module is as before."""
    modes = [(sub, sub.training) for sub in module.modules()]
    with buffers_kept(module), without_fast_path(), torch.no_grad():
        try:
            module.eval()
            yield
        finally:
            for sub, training in modes:
                sub.training = training


def _on(batch: Mapping[str, Tensor], device: Any) -> dict[str, Tensor]:
    """Returns a batch on a device. Floating-point inputs, such as stored activations, become float32."""
    moved = {name: value.to(device) for name, value in batch.items()}
    return {name: value.float() if value.is_floating_point() else value for name, value in moved.items()}


def _targets(labels: Tensor) -> int:
    return len(labels) if labels.dim() == 1 else int((labels[:, 1:] != IGNORED).sum())
