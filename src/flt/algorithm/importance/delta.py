"""Importance by the change that the aggregation makes to a component."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.importance.averages import AdaLoraAverages
from flt.algorithm.view import View
from flt.protocol.messages import Ids, Update
from flt.protocol.state import GroupState

MEAN, DEVIATION = "delta_mean", "delta_deviation"
"""Names of a group's slots for the moving averages Ibar and Ubar of every entry.

Ibar averages the sensitivity, and Ubar averages the deviation of the sensitivity from Ibar. Only
:class:`DeltaSensitivity` with ``uncertainty`` uses these slots.
"""


@dataclasses.dataclass(frozen=True)
class DeltaSensitivity(AdaLoraAverages):
    """Smoothed sensitivity that the server computes from the aggregate once per round. Clients measure nothing.

        I = |w * dw / f|,  dw = w - (w before the round),  f = the plan's factor on the learning rate
        Ibar <- beta1 Ibar + (1 - beta1) I;  Ubar <- beta2 Ubar + (1 - beta2) |I - Ibar|
        score_i = mean_j s(A[i, j]) + mean_j s(B[j, i]),  s = Ibar, or Ibar * Ubar with uncertainty

    A component that no client trained in the round keeps its score. If its score decayed instead, the component would
    never be selected again.

    A secondary source says that HAFLQ (arXiv 2411.06581v2) uses |w * dw / lr|, where dw / lr stands for the gradient.
    The other details are our reconstruction. The server doesn't have the learning rate lr, since the module sets lr.
    The server divides by f instead, so that scores of different rounds are comparable when lr decays.

    Attributes:
        beta1: Share of the old Ibar that is kept in each round.
        beta2: Share of the old Ubar that is kept in each round.
        uncertainty: If True, Ibar is multiplied by the uncertainty Ubar, as in AdaLoRA.
    """

    source: ClassVar[str] = "change"

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group with new scores. Components that no client trained keep their scores."""
        trained = {
            layer: tuple(sorted({component for u in updates for component in u.kept[layer]})) for layer in before.scores
        }
        fresh = {layer: torch.zeros_like(old) for layer, old in before.scores.items()}
        slots = {slot: dict(before.slots.get(slot, {})) for slot in ((MEAN, DEVIATION) if self.uncertainty else ())}
        for name, entry in view.layout.entries.items():
            if entry.axis is not None:
                weight = after.weights[name].double()
                # The factor on the learning rate can decay to 0. In this case, the change isn't divided by the factor.
                moved = (weight - before.weights[name].double()) / (view.plan.lr_factor or 1.0)
                part = (weight * moved).abs()
                if self.uncertainty:
                    part = self._averaged(name, part, view.layout.mask(name, trained, part), slots)
                fresh[entry.layer] += part.mean(dim=[d for d in range(part.dim()) if d != entry.axis])
        scores = {layer: self._score(old, fresh[layer], trained[layer]) for layer, old in before.scores.items()}
        return dataclasses.replace(after, scores=scores, slots={**after.slots, **slots})

    def _averaged(self, name: str, now: Tensor, mask: Tensor, slots: dict[str, dict[str, Tensor]]) -> Tensor:
        """Updates Ibar and Ubar in ``slots`` for the entries in the mask. Returns Ibar * Ubar of all entries."""
        mean, deviation = (slots[slot].get(name, torch.zeros_like(now)) for slot in (MEAN, DEVIATION))
        mean = torch.where(mask, self.beta1 * mean + (1 - self.beta1) * now, mean)
        deviation = torch.where(mask, self.beta2 * deviation + (1 - self.beta2) * (now - mean).abs(), deviation)
        slots[MEAN][name], slots[DEVIATION][name] = mean, deviation
        return mean * deviation

    def _score(self, old: Tensor, fresh: Tensor, trained: Ids) -> Tensor:
        new, ids = old.clone(), list(trained)
        # Without uncertainty, only the score is smoothed. This gives the same result as smoothing every entry and then
        # averaging over the entries, because both operations are linear.
        new[ids] = fresh[ids] if self.uncertainty else self.beta1 * old[ids] + (1 - self.beta1) * fresh[ids]
        return new
