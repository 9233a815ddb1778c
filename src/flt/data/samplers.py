"""Samplers, which decide the order of the examples in a fit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, Subset

from flt.data.examples import Examples
from flt.data.joint import JointExamples


class Shuffled(Sampler[int]):
    """Sampler that draws exactly one permutation from its random generator in each epoch.

    torch's own sampler also uses the generator at the end of an epoch, and whenever a loader makes an iterator. With
    that sampler, the order of the examples in the second epoch would depend on internals of Lightning.

    Args:
        size: Number of examples.
        seed: Seed of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=self.generator).tolist()

    def __len__(self) -> int:
        return self.size


class SimilarLengths(Sampler[list[int]]):
    """Sampler of batches whose examples have similar lengths, so that batches contain little padding.

    In each epoch, the shuffled examples are cut into windows of several batches. The examples of a window are sorted by
    length and cut into batches, and the batches of the window are shuffled. Every example occurs once per epoch.

    Args:
        lengths: Length of each example, shape (n,).
        batch_size: Number of examples per batch.
        window: Number of batches per window.
        seed: Seed of the permutations.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, window: int, seed: int) -> None:
        self.lengths, self.batch_size, self.window = torch.as_tensor(lengths), batch_size, window
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self.generator)
        for window in order.split(self.batch_size * self.window):
            batches = window[torch.argsort(self.lengths[window], stable=True)].split(self.batch_size)
            for i in torch.randperm(len(batches), generator=self.generator).tolist():
                yield batches[i].tolist()

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)


class WithoutSmall(Sampler[list[int]]):
    """Sampler that joins a small batch to the batch before it, or to the one after it if it is the first.

    A batch norm in training mode computes the variance over a batch, which a single example doesn't have.

    Args:
        batches: Sampler of at least two batches, each a list of positions in the data set. One of them is small.
        least: Number of examples below which a batch is small.

    Example:
        >>> list(WithoutSmall([[4, 0], [3, 1], [2]], 2))
        [[4, 0], [3, 1, 2]]
    """

    def __init__(self, batches: Sampler[list[int]], least: int) -> None:
        self.batches, self.least = batches, least

    def __iter__(self) -> Iterator[list[int]]:
        before: list[int] = []
        for batch in self.batches:
            if len(before) >= self.least and len(batch) >= self.least:
                yield before
                before = []
            before = [*before, *batch]
        if before:
            yield before

    def __len__(self) -> int:
        return len(self.batches) - 1  # type: ignore[arg-type]  # the loaders' samplers have a length


def lengths_of(dataset: Dataset) -> NDArray[np.int64] | None:
    """Returns the number of tokens of each example, shape (n,). Returns None if these numbers aren't known."""
    if isinstance(dataset, Subset):
        inner = lengths_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, JointExamples):
        return dataset.lengths
    return dataset.lengths if isinstance(dataset, Examples) else None  # a user's class may use ``lengths`` differently
