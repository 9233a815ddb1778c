"""Length and manner of the fits, and the order in which they see their examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, Subset

from flt.core.errors import InputError
from flt.data.examples import Examples
from flt.protocol.messages import Plan

PRECISIONS = ("32-true", "bf16-mixed")
"""Weights stay float32: messages, base versions and checkpoints are exact only then."""


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """How long and how a client trains, and on what it is evaluated.

    Attributes:
        steps: Optimiser steps of a fit; None: ``epochs`` count.
        epochs: Passes over the job's examples; None: ``steps`` count.
        batch_size: Examples per batch.
        length_window: Batches of text that are sorted by length together.
        eval_batch_size: Examples per batch in evaluation.
        eval_examples: Held-out examples of a job on which its model is evaluated, at most; 0: none.
        clip: Largest norm of a gradient; None: unclipped.
        accumulate: Batches per optimiser step.
        precision: Lightning's name of it, one of ``PRECISIONS``.
    """

    steps: int | None = 10
    epochs: int | None = None
    batch_size: int = 16
    length_window: int = 8
    eval_batch_size: int = 64
    eval_examples: int | None = None
    clip: float | None = None
    accumulate: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError.of(
                "local.steps", self.steps, "a number for one of local.steps and local.epochs, null for the other"
            )
        for key in ("steps", "epochs", "batch_size", "length_window", "eval_batch_size", "accumulate"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError.of(_key(key), value, "an integer >= 1")
        if self.clip is not None and not self.clip > 0:
            raise InputError.of("local.clip", self.clip, "a number > 0, or null")
        if self.precision not in PRECISIONS:
            raise InputError.of("precision", self.precision, PRECISIONS)

    def length(self, plan: Plan) -> dict[str, int]:
        """The Trainer's arguments that say how long a fit is."""
        steps = plan.steps or self.steps
        return {"max_steps": steps, "max_epochs": -1} if steps else {"max_epochs": self.epochs or 1}


def _key(field: str) -> str:
    return field if field.endswith(("batch_size", "window")) else f"local.{field}"


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
