"""Importance: the score of each pair, on which selection and pruning rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from lightning.pytorch import Callback
from torch import Tensor

from flt.callbacks.local import LocalFit, SensitivityMeter
from flt.errors import InputError
from flt.messages import Update
from flt.rules.exact_sum import ExactSum
from flt.state import GroupState


@dataclasses.dataclass(frozen=True)
class NoImportance:
    """Nothing is measured: all pairs tie."""

    def __call__(self, group: GroupState, updates: Sequence[Update]) -> GroupState:
        """The group with its new scores: the old ones."""
        return group

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: nothing."""
        return []


@dataclasses.dataclass(frozen=True)
class GradientSensitivity:
    """Smoothed sensitivity as AdaLoRA defines it (arXiv 2303.10512), measured by the clients at every local step.

    One scalar per pair and layer goes up; the server averages it over the clients that measured the pair, by their
    numbers of examples, and smooths it across rounds with ``beta1``. Where and when it is measured is our
    reconstruction of HAFL.

    Attributes:
        beta1: Decay of the smoothed sensitivity.
        beta2: Decay of the smoothed uncertainty.
        uncertainty: Multiply by the uncertainty, as AdaLoRA does.
    """

    beta1: float = 0.85
    beta2: float = 0.85
    uncertainty: bool = False

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError.of(f"importance.{name}", getattr(self, name), "a number in [0, 1)")

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """What changes local training: the meter reads |w * dL/dw| before each step."""
        return [SensitivityMeter(fit, self.beta1, self.beta2, self.uncertainty)]

    def __call__(self, group: GroupState, updates: Sequence[Update]) -> GroupState:
        """The group with its new scores; a pair that nobody measured keeps its score."""
        scores = {name: self._smooth(name, old, updates) for name, old in group.scores.items()}
        return dataclasses.replace(group, scores=scores)

    def _smooth(self, layer: str, old: Tensor, updates: Sequence[Update]) -> Tensor:
        total, weight = ExactSum.zeros(tuple(old.shape)), torch.zeros_like(old)
        for update in updates:
            if layer in update.scores:
                ids, values = update.scores[layer]
                total.add(
                    torch.zeros_like(old).index_copy(0, torch.tensor(ids), update.examples * values.to(old.dtype))
                )
                weight[list(ids)] += update.examples
        fresh = self.beta1 * old + (1 - self.beta1) * total.value() / weight.clamp(min=1)
        return torch.where(weight > 0, fresh, old)
