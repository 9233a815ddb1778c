"""The order in which a fit sees its examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, Subset

from flt.data.examples import Examples


class Shuffled(Sampler[int]):
    """One permutation of a data set per pass, and nothing else drawn.

    torch's own draws more than one where a pass is run to its very end, and a loader draws whenever somebody asks it
    for an iterator: the order of the second pass would depend on how Lightning goes about it.

    Args:
        size: Number of examples.
        seed: Of the permutations.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.generator = size, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=self.generator).tolist()

    def __len__(self) -> int:
        return self.size


class SimilarLengths(Sampler[list[int]]):
    """Batches of examples of similar lengths, so that little of a batch is padding.

    One permutation per pass is cut into windows of several batches; each is sorted by length, cut into batches, and the
    batches are shuffled. Every example comes once per pass, and a batch is long or short by chance.

    Args:
        lengths: Of the examples (n,).
        batch_size: Examples per batch.
        window: Batches that are sorted together.
        seed: Of the permutations.
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


def lengths_of(dataset: Dataset) -> NDArray[np.int64] | None:
    """Lengths of a data set's examples, in tokens (n,); None where they are all alike, or aren't known."""
    if isinstance(dataset, Subset):
        inner = lengths_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    return dataset.lengths if isinstance(dataset, Examples) else None  # a user's attribute may mean something else
