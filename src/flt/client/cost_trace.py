"""Training steps on a few examples, in which floating-point operations and memory are counted.

torch's own counter (``torch.utils.flop_counter``) counts the operations of each step from the shapes of their operands:
matrix products, convolutions and attention, forward and backward, 2 for a multiplication and an addition. It counts
nothing that moves or scales single numbers, such as norms, activations and the optimiser.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flt.client.users_code import attributes_kept
from flt.models.adapters.client_context import client_aware_modules
from flt.protocol.layout import Layout


@dataclasses.dataclass(frozen=True)
class Traced:
    """Counts of one training step.

    Attributes:
        flops: Floating-point operations, forward and backward.
        saved: Bytes that autograd kept for the backward pass.
        rows: Vectors that went through each LoRA layer, such as examples x tokens, in the order of the layout's layers.
        backward: Whether the gradient of each LoRA layer's input was computed, because something below it trains.
    """

    flops: int
    saved: int
    rows: tuple[int, ...]
    backward: tuple[bool, ...]


def trace(module: pl.LightningModule, layout: Layout, train: Sequence[str], batch: Any) -> Traced:
    """Runs one training step without an optimiser, and counts. The module is afterwards what it was before.

    A module with dropout draws from the global random generators.

    Args:
        module: Module with its adapter attached.
        layout: Names and roles of the module's tensors.
        train: Roles of the tensors that train.
        batch: Batch, on the module's device.
    """
    seen = dict.fromkeys(layout.layers, (0, False))
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    counter = FlopCounterMode(display=False)
    with _unchanged(module, layout, train), _watched(module, layout, seen), warnings.catch_warnings(action="ignore"):
        for sub in client_aware_modules(module):
            sub.enter_batch(batch)
        # The kernels of other backends aren't counted on every device, and the plain one has as many operations.
        with sdpa_kernel(SDPBackend.MATH), counter, torch.enable_grad():
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                found: Any = module.training_step(batch, 0)
            loss = found["loss"] if isinstance(found, Mapping) else found
            loss.backward()
    rows, backward = zip(*seen.values(), strict=True) if seen else ((), ())
    saved = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Traced(counter.get_total_flops(), saved, rows, backward)


@contextlib.contextmanager
def _unchanged(module: pl.LightningModule, layout: Layout, train: Sequence[str]) -> Iterator[None]:
    """Sets which parameters train, and restores all that a training step changes."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(layout.entries[name].role in train)
            parameter.grad = None
        with attributes_kept(module):
            vars(module).update(_copied_containers(module))  # a step may put its outputs into them
            yield
    finally:
        for parameter, trains, gradient in before:
            parameter.requires_grad_(trains)
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _copied_containers(module: pl.LightningModule) -> dict[str, Any]:
    """Returns copies of the lists, dicts and so on that are attributes of a user's module."""
    theirs = vars(pl.LightningModule()).keys()
    own = {name: value for name, value in vars(module).items() if name not in theirs}
    return {name: copy.copy(value) for name, value in own.items() if isinstance(value, list | dict | set | deque)}


@contextlib.contextmanager
def _watched(module: nn.Module, layout: Layout, seen: dict[str, tuple[int, bool]]) -> Iterator[None]:
    """Counts the vectors that go through the factor A of each LoRA layer, and whether their gradients are needed."""

    def watch(name: str, rank: int) -> Any:
        def after(factor: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            rows, backward = seen[name]
            seen[name] = rows + output.numel() // rank, backward or inputs[0].requires_grad

        return after

    handles = [
        module.get_submodule(layer.a.removesuffix(".weight")).register_forward_hook(watch(name, layer.rank))
        for name, layer in layout.layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
