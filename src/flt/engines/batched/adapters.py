"""Stacks of the adapters and heads of several jobs, and the layers that compute with these stacks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from flt.engines.batched.batches import Unstackable
from flt.engines.batched.lora_matmul import LowRank
from flt.engines.batched.shortcut import Shortcut, apply_shortcut
from flt.engines.batched.token_packing import TokenPacker
from flt.protocol.layout import TRAVELLING, Layout


class Stack:
    """The tensors of the adapters and heads of several jobs. Each tensor is stacked to shape (jobs, ...).

    If jobs have different ranks, the smaller tensors are padded with components of zeros. These components stay zero:
    if a component's row of A and column of B are both zero, their gradients are zero too, and no optimiser of flt
    changes them.

    Args:
        module: The resident module. Within the context :meth:`computing`, the module's layers compute with the stack.
        layout: Names and roles of the module's tensors.
        tensors: For each job: name of each tensor of its adapter and head -> value.
        train: Roles of the tensors that are trained.
    """

    def __init__(
        self, module: nn.Module, layout: Layout, tensors: Sequence[Mapping[str, Tensor]], train: Sequence[str]
    ) -> None:
        self.module, self.layout, self.jobs = module, layout, len(tensors)
        self.tensors = {
            name: nn.Parameter(_stacked([own[name] for own in tensors]), layout.entries[name].role in train)
            for name in layout.names(TRAVELLING)
        }
        self.sizes = [{name: own[name].shape for name in self.tensors} for own in tensors]
        self.shortcut: Shortcut | None = None
        """Description of the parts of the model that aren't computed. If None, everything is computed."""
        self.tokens = TokenPacker()
        self.current: dict[str, Tensor] = {}
        self.rows = 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The stacked tensors that are trained: name -> parameter of shape (jobs, ...)."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}

    def part(self, job: int, name: str, stacked: Tensor) -> Tensor:
        """Returns a view of one job's part of a stacked tensor, without the components that were added as padding.

        Args:
            job: Position of the job in the stack.
            name: Name of the tensor.
            stacked: The stacked tensor or its gradient, shape (jobs, ...).
        """
        part, axis = stacked[job], self.layout.entries[name].axis
        return part if axis is None else part.narrow(axis, 0, self.sizes[job][name][axis])

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Returns a context in which the module's layers compute with the stacked tensors."""
        stackable = layers(self.module, self.layout)
        try:
            for layer, (kind, names) in stackable.items():
                layer.forward = functools.partial(kind, self, layer, names)
            with apply_shortcut(self.shortcut, self.tokens):
                yield
        finally:
            for layer in stackable:
                del layer.forward  # restores the method of the class

    @contextlib.contextmanager
    def forward(self, jobs: Sequence[int], rows: int, mask: Tensor | None) -> Iterator[None]:
        """Returns the context for one forward pass.

        Args:
            jobs: Jobs that have rows in the batch, as positions in the stack.
            rows: Number of rows in the batch, over all jobs.
            mask: Attention mask (rows, length), 0 at padding; None if the batch has no mask.
        """
        self.rows, self.current = rows, dict(self.tensors)
        if len(jobs) < self.jobs:
            index = torch.tensor(jobs, device=next(iter(self.tensors.values())).device)
            self.current = {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}
        if self.shortcut is None:
            yield
            return
        self.tokens.begin(mask if self.shortcut.packed else None, len(jobs))
        with self.tokens:
            yield

    def lora(self, layer: Any, names: Mapping[str, str], x: Tensor) -> Tensor:
        """Computes W0 x + scale · B A x. The rows of each job are multiplied by the job's own A and B.

        Args:
            layer: LoRA layer of peft.
            names: ``layer`` -> name of the layer; ``a`` and ``b`` -> names of its tensors A and B.
            x: Input (jobs * rows, ..., in), or packed tokens (1, tokens, in).
        """
        a, b = self.current[names["a"]], self.current[names["b"]]  # (jobs, r, in), (jobs, out, r)
        counts = self.tokens.counts(x)
        if counts is None:
            self._check(x)
        flat = x.reshape(-1, x.shape[-1])
        out = layer.base_layer(flat)
        flat, a, b = (tensor.to(out.dtype) for tensor in (flat, a, b))  # under autocast, their types differ
        out = LowRank.apply(out, flat, a, b, self.layout.layers[names["layer"]].scale, counts)
        return out.view(*x.shape[:-1], -1)

    def linear(self, layer: nn.Linear, names: Mapping[str, str], x: Tensor) -> Tensor:
        """Computes W x + b. The rows of each job are multiplied by the job's own W.

        Args:
            layer: Linear layer that is trained whole, such as a head. This argument isn't used, because the stack
                contains the layer's tensors.
            names: ``weight`` and, if the layer has a bias, ``bias`` -> names of these tensors.
            x: Input (jobs * rows, ..., in), or packed tokens (1, tokens, in).
        """
        weight, bias = self.current[names["weight"]], self.current.get(names.get("bias", ""))
        if (counts := self.tokens.counts(x)) is not None:
            own = zip(x[0].split(counts), weight, [None] * len(weight) if bias is None else bias, strict=True)
            return torch.cat([F.linear(i, w, b) for i, w, b in own]).unsqueeze(0)
        self._check(x)
        flat, weight = x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2)  # (jobs, in, out)
        out = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias.unsqueeze(1), flat, weight)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _check(self, x: Tensor) -> None:
        if len(x) != self.rows:
            raise Unstackable(f"a layer is called with {len(x)} rows where the batches have {self.rows} examples")


Forward = Callable[[Stack, Any, Mapping[str, str], Tensor], Tensor]


def layers(module: nn.Module, layout: Layout) -> dict[nn.Module, tuple[Forward, dict[str, str]]]:
    """Returns the layers that have tensors of the adapter or the head.

    Returns:
        Layer -> (method of Stack that replaces the layer's ``forward``, argument ``names`` for this method).

    Raises:
        Unstackable: One of the layers is neither a linear layer nor LoRA on a linear layer.
    """
    left = set(layout.names(TRAVELLING))
    forwards: dict[nn.Module, tuple[Forward, dict[str, str]]] = {}
    for name, layer in layout.layers.items():
        sub = module.get_submodule(name)
        if not isinstance(sub, LoraLayer) or not isinstance(sub.get_base_layer(), nn.Linear | Conv1D):
            raise Unstackable(f"{name} isn't LoRA on a linear layer")
        forwards[sub] = (Stack.lora, {"layer": name, "a": layer.a, "b": layer.b})
        left -= {layer.a, layer.b}
    for owner in sorted({name.rpartition(".")[0] for name in left}):
        sub = module.get_submodule(owner)
        names = {own: f"{owner}.{own}" for own, _ in sub.named_parameters(recurse=False)}
        if type(sub) is not nn.Linear or not set(names.values()) <= left:
            raise Unstackable(f"{owner}, a {type(sub).__name__}, trains, and only linear layers can be stacked")
        forwards[sub] = (Stack.linear, names)
    return forwards


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Stacks one tensor of each job to (jobs, ...). Smaller tensors are padded with zeros."""
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(list(parts))
    out = parts[0].new_zeros(len(parts), *(max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)))
    for target, part in zip(out, parts, strict=True):
        target[tuple(slice(size) for size in part.shape)] = part
    return out
