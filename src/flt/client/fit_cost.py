"""Floating-point operations and memory of a local fit, computed from the shapes of the layers.

A few training steps on small batches are counted once (:mod:`flt.client.cost_trace`). The cost of a step is a
polynomial in its numbers of examples B and tokens L, of degree 1 in B and 2 in L. The counted steps give its
coefficients, and a fit on any data is a sum over its examples. The part of LoRA is linear in the rank, and is replaced
by that of the components that a job holds and trains.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import Subset

from flt.client.cost_trace import Traced, trace
from flt.client.loader import loader
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.data.samplers import lengths_of
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, Plan

FLOAT = 4
"""Bytes of a float32 number. Weights, gradients and moments have this type in every precision."""
MOMENTS = {"SGD": 0, "Adam": 2, "AdamW": 2, "NAdam": 2, "RAdam": 2, "Adagrad": 1, "RMSprop": 1}
"""Class of an optimiser -> number of tensors that it keeps for each weight. Others are taken to keep 2."""
EXAMPLES = (2, 4)
"""Numbers of examples in the counted steps."""
DEGREES = 3
"""Number of coefficients for the length of a text: a constant, L and L squared."""
LONGEST = 24
"""Largest number of tokens in a counted step."""


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Counted steps of one plan: coefficients of FLOPs, saved bytes and the rows of each LoRA layer.

    Attributes:
        coefficients: Shape (2 * degrees, 2 + layers). The first half belongs to a batch, the second to its examples.
        backward: Whether the gradient of each LoRA layer's input is computed.
    """

    coefficients: NDArray[np.float64]
    backward: tuple[bool, ...]

    def of(self, batches: float, examples: float, powers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns FLOPs, saved bytes, and the rows of each layer, shape (2 + layers,).

        Args:
            batches: Number of batches.
            examples: Number of examples in all of them.
            powers: Means of the powers of the examples' lengths, shape (degrees,).
        """
        shape: NDArray[np.float64] = np.concatenate([batches * powers, examples * powers])
        return shape @ self.coefficients


class FitCost:
    """Computes the cost of the local fits of a federation.

    A client is taken to compute no more than its fit needs. It pads no text, and computes gradients only for the
    components that it trains; those that a selection freezes take part in the forward pass alone. Below the lowest
    weight that trains, nothing is computed backward. The evaluations of a client aren't counted. All jobs are taken to
    have the module's own head.

    Args:
        module: Module with its adapter attached, on the device on which steps are counted.
        layout: Names and roles of the module's tensors.
        settings: Settings of the fits.
        collate: Function that builds a batch from a list of examples. None: torch's default.
        data: A job whose examples are counted. Where examples are texts, one with long texts.
        trains: Roles that train, for each plan of the run.

    Raises:
        InputError: A training step on a few examples fails, or can't be counted.
    """

    def __init__(
        self, module: pl.LightningModule, layout: Layout, settings: LocalSettings,
        collate: Callable[[list[Any]], Any] | None, data: JobData, trains: Iterable[Sequence[str]],
    ) -> None:  # fmt: skip
        self.module, self.layout, self.settings = module, layout, settings
        parameters = dict(module.named_parameters())
        self._factors = [(parameters[layer.a], parameters[layer.b], layer.rank) for layer in layout.layers.values()]
        self._per_rank = [(a.numel() // rank, b.numel() // rank) for a, b, rank in self._factors]
        self._bytes = sum(p.numel() * p.element_size() for p in [*module.parameters(), *module.buffers()])
        self._counted = {tuple(train): self._count(tuple(train), collate, data) for train in trains}
        self._powers: dict[int, tuple[JobData, NDArray[np.float64]]] = {}  # the data stay, so that their ids do

    def flops(self, plan: Plan, data: JobData, held: Mapping[str, Ids], kept: Mapping[str, Ids]) -> int:
        """Returns the floating-point operations of a fit.

        Args:
            plan: Plan of the round.
            data: The job's data.
            held: Layer -> components that the job's model consists of.
            kept: Layer -> components that the job trains.
        """
        batches, examples = self._length(plan, data.examples)
        found = self._counted[plan.train].of(batches, examples, self._of_lengths(data))
        ranks = [(len(held[name]), len(kept[name])) for name in self.layout.layers]
        return round(found[0] + self._lora(plan.train, found[2:], ranks))

    def memory(self, train: Sequence[str], data: JobData, held: int, kept: int, measures: bool = False) -> int:
        """Estimates the memory of a fit in bytes.

        Weights and buffers, of each weight that trains a gradient and the optimiser's moments, and what autograd keeps
        of a batch of the job's longest example.

        Args:
            train: Roles that train.
            data: The job's data.
            held: Components per layer that the model consists of.
            kept: Components per layer that train.
            measures: Whether the client also keeps one number for each weight, to measure importance.
        """
        counted = self._counted[tuple(train)]
        lengths = lengths_of(data.training_set)
        powers = _powers([1] if lengths is None else [int(max(lengths))], len(counted.coefficients) // 2)
        batch = min(self.settings.batch_size, data.examples)
        _, saved, *rows = counted.of(1, batch, powers)
        roles = {name: math.prod(e.shape) for name, e in self.layout.entries.items() if e.role in train}
        lora = sum(per * rank for (a, b, rank), per in zip(self._factors, map(sum, self._per_rank), strict=True))
        trained = sum(numbers for name, numbers in roles.items() if not self.layout.entries[name].layer)
        trained += sum(
            min(kept, rank) * part
            for (_, _, rank), parts in zip(self._factors, self._per_rank, strict=True)
            for role, part in zip(("A", "B"), parts, strict=True)
            if role in train
        )
        missing = lora - sum(
            min(held, rank) * sum(parts) for (_, _, rank), parts in zip(self._factors, self._per_rank, strict=True)
        )
        unused = sum(row * (rank - min(held, rank)) for row, (_, _, rank) in zip(rows, self._factors, strict=True))
        copies = 1 + moments(self.module) + measures
        return round(self._bytes - FLOAT * missing + FLOAT * copies * trained + max(saved - FLOAT * unused, 0))

    def _lora(self, train: Sequence[str], rows: NDArray[np.float64], ranks: Sequence[tuple[int, int]]) -> float:
        """Returns by how much the FLOPs of LoRA differ from those that were counted at the initial rank."""
        backward = self._counted[tuple(train)].backward
        total = 0.0
        for row, parts, (_, _, rank), needed, chosen in zip(
            rows, self._per_rank, self._factors, backward, ranks, strict=True
        ):
            costs = [2 * row * part for part in parts]
            total += lora_flops(costs, *chosen, train, needed) - lora_flops(costs, rank, rank, train, needed)
        return total

    def _length(self, plan: Plan, size: int) -> tuple[int, int]:
        """Returns the numbers of batches and of examples of a fit on ``size`` examples.

        An epoch has its smaller batch at the end. In a fit of texts the order of batches is random.
        """
        settings, per_epoch = self.settings, math.ceil(size / self.settings.batch_size)
        if steps := plan.steps or settings.steps:
            batches = steps * settings.accumulate
        else:
            batches = (settings.epochs or 1) * per_epoch
        epochs, rest = divmod(batches, per_epoch)
        return batches, epochs * size + min(rest * settings.batch_size, size)

    def _of_lengths(self, data: JobData) -> NDArray[np.float64]:
        """Returns the means of the powers of a job's lengths. They are remembered, since data don't change."""
        key = id(data)
        if key not in self._powers:
            lengths = lengths_of(data.training_set)
            degrees = len(next(iter(self._counted.values())).coefficients) // 2
            self._powers[key] = data, _powers([1] if lengths is None else lengths, degrees)
        return self._powers[key][1]

    def _count(self, train: tuple[str, ...], collate: Callable[[list[Any]], Any] | None, data: JobData) -> _Counted:
        try:
            with isolate_rng():  # a loader draws a seed
                points, traced = zip(*self._steps(train, collate, data), strict=True)
        except InputError:
            raise
        except Exception as error:  # whatever a user's training step raises
            name = type(self.module).__name__
            why = f"a step of {name} on a few examples fails: {type(error).__name__}"
            raise InputError.of("fleet", "a fleet", "none", why) from error
        values = np.array([[one.flops, one.saved, *one.rows] for one in traced], float)
        degrees = len(points) // len(EXAMPLES)
        shapes = np.array(
            [[size**i * length**j for i in range(2) for j in range(degrees)] for size, length in points], float
        )
        return _Counted(np.linalg.solve(shapes, values), traced[0].backward)

    def _steps(
        self, train: tuple[str, ...], collate: Callable[[list[Any]], Any] | None, data: JobData
    ) -> Iterable[tuple[tuple[int, int], Traced]]:
        """Yields (examples, tokens) and the counts of each step that is needed for the coefficients."""
        lengths = lengths_of(data.training_set)
        order = np.arange(data.examples) if lengths is None else np.argsort(lengths)[::-1]
        for size in EXAMPLES:
            chosen = list(itertools.islice(itertools.cycle(order.tolist()), size))
            settings = dataclasses.replace(self.settings, eval_batch_size=size)
            whole = next(iter(loader(Subset(data.training_set, chosen), settings, collate, None)))
            batch = tree_map_only(Tensor, lambda tensor: tensor.to(self.module.device), whole)
            longest = 0 if lengths is None else int(max(lengths))
            if longest < DEGREES:
                yield (size, 1), trace(self.module, self.layout, train, batch)
                continue
            for part in range(1, DEGREES + 1):
                length = min(LONGEST, longest) * part // DEGREES
                cut = functools.partial(_cut, longest=longest, length=length)
                yield (size, length), trace(self.module, self.layout, train, tree_map_only(Tensor, cut, batch))


def lora_flops(costs: Sequence[float], held: int, kept: int, train: Sequence[str], backward: bool) -> float:
    """Returns the floating-point operations of one LoRA layer, forward and backward.

    ::

        forward   A x and B (A x)                                  of the held components
        backward  dB                                               of the kept components
                  d(A x)    if A trains: of the kept components; if the layer's input needs a gradient: of the held ones
                  dA                                               of the kept components
                  d x       if the layer's input needs a gradient  of the held components

    Args:
        costs: FLOPs of A x and of B (A x) for one component.
        held: Number of components in the layer.
        kept: Number of components that train.
        train: Roles that train.
        backward: Whether the gradient of the layer's input is needed.

    Example:
        >>> lora_flops([10.0, 20.0], held=4, kept=1, train=("A", "B"), backward=False)
        170.0
    """
    a, b = costs
    inner = held if backward else kept * ("A" in train)
    return held * (a + b) + kept * (b * ("B" in train) + a * ("A" in train)) + inner * b + held * a * backward


def moments(module: pl.LightningModule) -> int:
    """Returns the number of tensors that a module's optimiser keeps for each weight that trains."""
    try:
        found: Any = module.configure_optimizers()
    except Exception:  # a user's module may need a Trainer here
        return 2
    while (
        isinstance(found, Mapping | Sequence) and found
    ):  # an optimiser with its scheduler, in one of Lightning's forms
        found = found.get("optimizer") if isinstance(found, Mapping) else found[0]
    if not isinstance(found, torch.optim.Optimizer):
        return 2
    further = sum(bool(found.defaults.get(key)) for key in ("momentum", "amsgrad"))
    return MOMENTS.get(type(found).__name__, 2) + further


def _powers(lengths: Any, degrees: int) -> NDArray[np.float64]:
    numbers = np.asarray(lengths, float)
    return np.array([np.mean(numbers**power) for power in range(degrees)])


def _cut(tensor: Tensor, longest: int, length: int) -> Tensor:
    """Returns the first tokens of a tensor (batch, tokens, ...). Other tensors are returned unchanged."""
    return tensor[:, :length] if tensor.dim() > 1 and tensor.shape[1] == longest else tensor
