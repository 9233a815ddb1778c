"""Settings of a local fit."""

from __future__ import annotations

import dataclasses

from flt.core.errors import InputError
from flt.protocol.messages import Plan

PRECISIONS = ("32-true", "bf16-mixed")
"""Allowed precisions of a fit, by Lightning's names.

The weights always stay float32, because messages, base versions and checkpoints would otherwise be inexact.
"""


@dataclasses.dataclass
class LocalConfig:
    """Section ``local`` of the configuration."""

    steps: int | None
    epochs: int | None
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    clip: float | None
    accumulate: int


@dataclasses.dataclass(frozen=True)
class LocalSettings:
    """Settings of a local fit and of the evaluations before and after the fit.

    Attributes:
        steps: Number of optimiser steps of a fit. If None, ``epochs`` sets the length of the fit.
        epochs: Number of passes over the job's training examples. If None, ``steps`` sets the length of the fit.
        batch_size: Number of examples in a training batch.
        length_window: Number of batches whose texts are sorted by length together, so that less padding is needed. If
            1, texts aren't sorted.
        eval_batch_size: Number of examples in a batch of an evaluation.
        eval_examples: Largest number of a job's held-out examples in an evaluation. If None, all of them are used. If
            0, there is no evaluation.
        clip: Largest norm of the gradient of all parameters together. If None, gradients aren't clipped.
        accumulate: Number of batches per optimiser step (gradient accumulation).
        precision: Lightning's name of the precision, one of ``PRECISIONS``.
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
        """Returns the Trainer's arguments that set the length of a fit. A plan's ``steps`` override the settings."""
        steps = plan.steps or self.steps
        return {"max_steps": steps, "max_epochs": -1} if steps else {"max_epochs": self.epochs or 1}


def _key(field: str) -> str:
    return field if field.endswith(("batch_size", "window")) else f"local.{field}"
