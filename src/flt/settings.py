"""Length and manner of the fits, and the order in which they see their examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from flt.errors import InputError
from flt.messages import Plan

PRECISIONS = ("32-true", "bf16-mixed")
"""Weights stay float32: messages, base versions and checkpoints are exact only then."""


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """How long and how a client trains, and on what it is evaluated.

    Attributes:
        steps: Optimiser steps of a fit; None: ``epochs`` count.
        epochs: Passes over the job's examples; None: ``steps`` count.
        batch_size: Examples per batch.
        eval_batch_size: Examples per batch in evaluation.
        eval_examples: Held-out examples of a job on which its model is evaluated, at most; 0: none.
        clip: Largest norm of a gradient; None: unclipped.
        accumulate: Batches per optimiser step.
        precision: Lightning's name of it, one of ``PRECISIONS``.
    """

    steps: int | None = 10
    epochs: int | None = None
    batch_size: int = 16
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
        for key in ("steps", "epochs", "batch_size", "eval_batch_size", "accumulate"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise InputError.of(key if "batch" in key else f"local.{key}", value, "an integer >= 1")
        if self.clip is not None and not self.clip > 0:
            raise InputError.of("local.clip", self.clip, "a number > 0, or null")
        if self.precision not in PRECISIONS:
            raise InputError.of("precision", self.precision, PRECISIONS)

    def length(self, plan: Plan) -> dict[str, int]:
        """The Trainer's arguments that say how long a fit is."""
        steps = plan.steps or self.steps
        return {"max_steps": steps, "max_epochs": -1} if steps else {"max_epochs": self.epochs or 1}


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
