"""Joint batches: the batches of several jobs, joined into one so that the jobs share a forward pass."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from flt.data.examples import PADDED
from flt.data.stores import IGNORED

Batch = Mapping[str, Tensor]


class Unstackable(Exception):
    """Error with the reason why jobs can't be trained at once. The engine then trains the jobs one after another."""


@dataclasses.dataclass(frozen=True)
class JointBatch:
    """Joint batch: one batch of each of several jobs, joined for one forward and backward pass.

    All jobs have the same number of rows. Filling rows, which the loss ignores, are added to smaller batches.

    Attributes:
        jobs: Jobs that have a batch, as positions in the stack, ascending.
        inputs: Inputs of the model by name, each (jobs * rows, ...). The rows of the first job come first, then those
            of the second.
        labels: Class labels, shape (jobs, rows), or token labels, shape (jobs, rows, tokens). -100 in filling rows.
        sizes: Number of examples of each job, without filling rows.
    """

    jobs: tuple[int, ...]
    inputs: dict[str, Tensor]
    labels: Tensor
    sizes: tuple[int, ...]

    def to(self, device: torch.device) -> JointBatch:
        """Returns the batch with its tensors moved to a device."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))


class Steps:
    """The joint batches of several jobs, in order of optimiser steps. Item i is the list of joint batches of step i.

    A job has ``accumulate`` batches per step, and possibly fewer in the last step of an epoch. The number of
    joint batches in an item is the largest number of batches that a job has in this step. A job with fewer batches is
    missing in the remaining joint batches of the item. A job with fewer steps is missing in the remaining items.

    Args:
        loaders: Loader of each job, with the same batches as if the job were trained alone.
        accumulate: Number of batches per optimiser step. The last batch of an epoch ends a step, as in Lightning.
        max_steps: Number of optimiser steps of each job, over any number of epochs. If None, each job is trained for
            ``epochs`` epochs.
        epochs: Number of epochs (passes over the job's examples). Ignored if ``max_steps`` is set.
        padding: Token id at padded positions.
    """

    def __init__(
        self, loaders: Sequence[DataLoader], accumulate: int, max_steps: int | None, epochs: int, padding: int
    ) -> None:
        self.loaders, self.accumulate, self.max_steps, self.epochs = loaders, accumulate, max_steps, epochs
        self.padding = padding
        per_epoch = [-(-len(loader) // accumulate) for loader in loaders]
        self.counts = [steps * epochs if max_steps is None else max_steps for steps in per_epoch]
        """Number of steps of each job."""
        self.last_epoch_start = [(n - 1) // steps * steps for n, steps in zip(self.counts, per_epoch, strict=True)]
        """For each job: number of the step with which the job's last epoch begins. Steps are counted from 0."""

    def __len__(self) -> int:
        return max(self.counts)

    def __iter__(self) -> Iterator[list[JointBatch]]:
        own = [itertools.islice(self._steps_of(loader), n) for loader, n in zip(self.loaders, self.counts, strict=True)]
        for batches in itertools.zip_longest(*own, fillvalue=()):
            yield [
                join_batches({job: step[i] for job, step in enumerate(batches) if i < len(step)}, self.padding)
                for i in range(max(map(len, batches)))
            ]

    def _steps_of(self, loader: DataLoader) -> Iterator[list[Batch]]:
        for _ in itertools.count() if self.max_steps is not None else range(self.epochs):
            batches = iter(loader)
            while step := list(itertools.islice(batches, self.accumulate)):
                yield step


def join_batches(batches: Mapping[int, Batch], padding: int) -> JointBatch:
    """Joins the batches of several jobs. All texts are padded to the longest text.

    Smaller batches get filling rows, until they are as large as the largest batch. A filling row is a copy of the
    batch's first row, so that the model gets no empty text.

    Args:
        batches: Position of a job in the stack, ascending -> batch of the job.
        padding: Token id at padded positions.

    Raises:
        Unstackable: The batches differ in their inputs, or in a shape that can't be padded.
    """
    first = next(iter(batches.values()))
    if any(not isinstance(batch, Mapping) or batch.keys() != first.keys() for batch in batches.values()):
        raise Unstackable("batches are not of one form")
    sizes = tuple(len(batch["labels"]) for batch in batches.values())
    tensors = {name: _join(name, [batch[name] for batch in batches.values()], max(sizes), padding) for name in first}
    if "attention_mask" not in first and any(_lengths_differ(name, batches) for name in first if name != "labels"):
        raise Unstackable("texts differ in length and have no attention_mask")
    labels = tensors.pop("labels")
    labels = labels.view(len(batches), max(sizes), *labels.shape[1:])
    if min(sizes) < max(sizes):
        labels = labels.masked_fill(_filling_rows(sizes).view(*labels.shape[:2], *[1] * (labels.dim() - 2)), IGNORED)
    return JointBatch(tuple(batches), tensors, labels, sizes)


def _join(name: str, parts: Sequence[Any], rows: int, padding: int) -> Tensor:
    """Joins one input of all jobs to a tensor of shape (jobs * rows, ...).

    Args:
        name: Name of the input, or ``labels``.
        parts: Tensor of each job.
        rows: Number of rows that each job gets.
        padding: Token id at padded positions.
    """
    if any(not isinstance(part, Tensor) or part.dim() != parts[0].dim() for part in parts):
        raise Unstackable(f"{name} isn't a tensor in each batch")
    if all(part.shape == parts[0].shape for part in parts) and len(parts[0]) == rows:
        return torch.cat(list(parts))
    shape = [max(part.shape[d] for part in parts) for d in range(1, parts[0].dim())]
    known: dict[str, int] = {"input_ids": padding, **PADDED}
    if name not in known and any(list(part.shape[1:]) != shape for part in parts):
        raise Unstackable(f"{name} differs in shape from batch to batch")
    out = parts[0].new_full((len(parts), rows, *shape), known.get(name, 0))
    for target, part in zip(out, parts, strict=True):
        filled = torch.cat([part, part[:1].expand(rows - len(part), *part.shape[1:])]) if len(part) < rows else part
        target[tuple(slice(size) for size in filled.shape)] = filled
    return out.flatten(0, 1)


def _lengths_differ(name: str, batches: Mapping[int, Batch]) -> bool:
    return len({batch[name].shape[1:] for batch in batches.values()}) > 1


def _filling_rows(sizes: Sequence[int]) -> Tensor:
    """Returns a mask (jobs, rows) that is True for the filling rows.

    Args:
        sizes: Number of examples of each job.
    """
    return torch.arange(max(sizes))[None] >= torch.tensor(sizes)[:, None]
