"""Adapters and heads of several jobs on one client axis, and the layers that compute with them."""

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

from flt.engines.batched import shortcut as first_token
from flt.engines.batched.batches import Unstackable
from flt.engines.batched.lora_matmul import LowRank
from flt.engines.batched.token_packing import Tokens
from flt.protocol.layout import TRAVELLING, Layout


class Stack:
    """What several jobs train, stacked: of each tensor (jobs, ...), pairs padded with zeros to the largest rank.

    Zeros stay zeros: where A and B are both zero, so are their gradients, and no optimiser of flt's moves them.

    Args:
        module: The site's; its layers compute with the stack inside :meth:`computing`.
        layout: Names and roles of its tensors.
        tensors: Of each job, every travelling tensor by name.
        train: Roles that train.
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
        self.shortcut: first_token.Shortcut | None = None
        """What isn't computed."""
        self.tokens = Tokens()
        self.current: dict[str, Tensor] = {}
        self.rows = 0

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What trains, each (jobs, ...)."""
        return {name: tensor for name, tensor in self.tensors.items() if tensor.requires_grad}

    def part(self, job: int, name: str, stacked: Tensor) -> Tensor:
        """One job's part of a stacked tensor, without what pads its pairs: a view."""
        part, axis = stacked[job], self.layout.entries[name].axis
        return part if axis is None else part.narrow(axis, 0, self.sizes[job][name][axis])

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The module's layers compute with the stack for as long as the context lasts."""
        places = layers(self.module, self.layout)
        try:
            for layer, (kind, names) in places.items():
                layer.forward = functools.partial(kind, self, layer, names)
            with first_token.alone(self.shortcut, self.tokens):
                yield
        finally:
            for layer in places:
                del layer.forward  # back to the class's

    @contextlib.contextmanager
    def forward(self, jobs: Sequence[int], rows: int, mask: Tensor | None) -> Iterator[None]:
        """One forward pass lies in the context.

        Args:
            jobs: Positions of the jobs that are in it.
            rows: Examples in it, those of all jobs.
            mask: (rows, length), 0 where padding is; None: nobody knows.
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
        """W0 x + scale B A x, in which each job's rows meet its own A and B.

        Args:
            layer: peft's.
            names: ``layer``, ``a`` and ``b`` -> its name and those of its tensors.
            x: (jobs * rows, ..., in).
        """
        a, b = self.current[names["a"]], self.current[names["b"]]  # (jobs, r, in), (jobs, out, r)
        counts = self.tokens.counts(x)
        if counts is None:
            self._check(x)
        flat = x.reshape(-1, x.shape[-1])
        out = layer.base_layer(flat)
        flat, a, b = (its.to(out.dtype) for its in (flat, a, b))  # under autocast
        out = LowRank.apply(out, flat, a, b, self.layout.layers[names["layer"]].scale, counts)
        return out.view(*x.shape[:-1], -1)

    def linear(self, layer: nn.Linear, names: Mapping[str, str], x: Tensor) -> Tensor:
        """W x + b with each job's own W and b.

        Args:
            layer: The layer that is trained whole.
            names: ``weight`` and perhaps ``bias`` -> the names of its tensors.
            x: (jobs * rows, ..., in).
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
    """The layers that hold travelling tensors -> how they compute with a stack, and the tensors' names.

    Raises:
        Unstackable: One of them is neither a linear layer nor LoRA on one.
    """
    left = set(layout.names(TRAVELLING))
    found: dict[nn.Module, tuple[Forward, dict[str, str]]] = {}
    for name, layer in layout.layers.items():
        sub = module.get_submodule(name)
        if not isinstance(sub, LoraLayer) or not isinstance(sub.get_base_layer(), nn.Linear | Conv1D):
            raise Unstackable(f"{name} isn't LoRA on a linear layer")
        found[sub] = (Stack.lora, {"layer": name, "a": layer.a, "b": layer.b})
        left -= {layer.a, layer.b}
    for owner in sorted({name.rpartition(".")[0] for name in left}):
        sub = module.get_submodule(owner)
        names = {own: f"{owner}.{own}" for own, _ in sub.named_parameters(recurse=False)}
        if type(sub) is not nn.Linear or not set(names.values()) <= left:
            raise Unstackable(f"{owner}, a {type(sub).__name__}, trains, and only linear layers can be stacked")
        found[sub] = (Stack.linear, names)
    return found


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """(jobs, ...), with zeros where a part is smaller than the largest."""
    if all(part.shape == parts[0].shape for part in parts):
        return torch.stack(list(parts))
    out = parts[0].new_zeros(len(parts), *(max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)))
    for place, part in zip(out, parts, strict=True):
        place[tuple(slice(size) for size in part.shape)] = part
    return out
