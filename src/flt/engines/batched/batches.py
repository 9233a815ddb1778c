"""The batches of several jobs, side by side: of each optimiser step, one tensor for all jobs."""

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
    """Why jobs can't be trained together; they are trained one after another instead."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """Some jobs' batches of one backward pass, joined.

    Attributes:
        jobs: Positions of the jobs that have one, in ascending order.
        inputs: What the model is called with, each (jobs * rows, ...): the first job's rows, then the second's.
        labels: (jobs, rows) of classes or (jobs, rows, tokens); those of rows that only fill up are -100.
        sizes: Examples of each job.
    """

    jobs: tuple[int, ...]
    inputs: dict[str, Tensor]
    labels: Tensor
    sizes: tuple[int, ...]

    def to(self, device: torch.device) -> Frame:
        """The same on a device."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return dataclasses.replace(self, inputs=inputs, labels=self.labels.to(device, non_blocking=True))


class Steps:
    """The optimiser steps of several jobs: the i-th item is what each of them sees in its own i-th step.

    An item has as many frames as batches are accumulated, fewer where all jobs' passes end. A job with fewer steps than
    the others is in no later frame.

    Args:
        loaders: One for each job, in which it finds what it would find alone.
        accumulate: Batches per optimiser step; the last batch of a pass ends a step, as Lightning has it.
        most: Optimiser steps, however many passes they take; None: ``epochs`` passes.
        epochs: Passes over each job's examples.
        padding: With what token ids are padded.
    """

    def __init__(
        self, loaders: Sequence[DataLoader], accumulate: int, most: int | None, epochs: int, padding: int
    ) -> None:
        self.loaders, self.accumulate, self.most, self.epochs = loaders, accumulate, most, epochs
        self.padding = padding
        per_pass = [-(-len(loader) // accumulate) for loader in loaders]
        self.counts = [steps * epochs if most is None else most for steps in per_pass]
        """Steps of each job."""
        self.last_pass = [(count - 1) // steps * steps for count, steps in zip(self.counts, per_pass, strict=True)]
        """Of each job, the step with which its last pass begins."""

    def __len__(self) -> int:
        return max(self.counts)

    def __iter__(self) -> Iterator[list[Frame]]:
        own = [itertools.islice(self._steps_of(loader), n) for loader, n in zip(self.loaders, self.counts, strict=True)]
        for batches in itertools.zip_longest(*own, fillvalue=()):
            yield [
                joined({job: its[i] for job, its in enumerate(batches) if i < len(its)}, self.padding)
                for i in range(max(map(len, batches)))
            ]

    def _steps_of(self, loader: DataLoader) -> Iterator[list[Batch]]:
        for _ in itertools.count() if self.most is not None else range(self.epochs):
            batches = iter(loader)
            while step := list(itertools.islice(batches, self.accumulate)):
                yield step


def joined(batches: Mapping[int, Batch], padding: int) -> Frame:
    """One frame of several jobs' batches, padded to the longest and largest of them.

    Rows that only fill up repeat a real one, so that nothing in the model sees an empty text.

    Args:
        batches: Job -> its batch, in ascending order.
        padding: With what token ids are padded.

    Raises:
        Unstackable: They have no common shape.
    """
    first = next(iter(batches.values()))
    if any(not isinstance(batch, Mapping) or batch.keys() != first.keys() for batch in batches.values()):
        raise Unstackable("batches are not of one form")
    sizes = tuple(len(batch["labels"]) for batch in batches.values())
    tensors = {name: _join(name, [batch[name] for batch in batches.values()], max(sizes), padding) for name in first}
    if "attention_mask" not in first and any(_ragged(name, batches) for name in first if name != "labels"):
        raise Unstackable("texts differ in length and have no attention_mask")
    labels = tensors.pop("labels")
    labels = labels.view(len(batches), max(sizes), *labels.shape[1:])
    if min(sizes) < max(sizes):
        labels = labels.masked_fill(_beyond(sizes).view(*labels.shape[:2], *[1] * (labels.dim() - 2)), IGNORED)
    return Frame(tuple(batches), tensors, labels, sizes)


def _join(name: str, parts: Sequence[Any], rows: int, padding: int) -> Tensor:
    """(jobs * rows, ...)."""
    if any(not isinstance(part, Tensor) or part.dim() != parts[0].dim() for part in parts):
        raise Unstackable(f"{name} isn't a tensor in each batch")
    if all(part.shape == parts[0].shape for part in parts) and len(parts[0]) == rows:
        return torch.cat(list(parts))
    shape = [max(part.shape[d] for part in parts) for d in range(1, parts[0].dim())]
    known: dict[str, int] = {"input_ids": padding, **PADDED}
    if name not in known and any(list(part.shape[1:]) != shape for part in parts):
        raise Unstackable(f"{name} differs in shape from batch to batch")
    out = parts[0].new_full((len(parts), rows, *shape), known.get(name, 0))
    for place, part in zip(out, parts, strict=True):
        filled = torch.cat([part, part[:1].expand(rows - len(part), *part.shape[1:])]) if len(part) < rows else part
        place[tuple(slice(size) for size in filled.shape)] = filled
    return out.flatten(0, 1)


def _ragged(name: str, batches: Mapping[int, Batch]) -> bool:
    return len({batch[name].shape[1:] for batch in batches.values()}) > 1


def _beyond(sizes: Sequence[int]) -> Tensor:
    """(jobs, rows), true where a row only fills up."""
    return torch.arange(max(sizes))[None] >= torch.tensor(sizes)[:, None]
