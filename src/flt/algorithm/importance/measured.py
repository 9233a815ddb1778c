"""Base of the scores that clients measure, and the server's average of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flt.algorithm.base import ImportancePart
from flt.algorithm.rule.exact_sum import ExactSum
from flt.algorithm.view import View
from flt.core.errors import diverged
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Update
from flt.protocol.state import GroupState


class Measured(ImportancePart):
    """Base of the scores that clients measure. Each client sends one number per component and layer.

    The server averages the numbers over the clients that measured the component, weighted by their numbers of examples,
    and smooths the average across rounds.

    Attributes:
        beta1: Share of the old score that is kept in each round.
    """

    source: ClassVar[str] = "clients"
    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS
    beta1: float

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group with new scores. A component that no client measured keeps its score.

        Raises:
            InputError: Scores are too large for an exact sum.
        """
        scores = {name: self._smooth(name, old, updates) for name, old in after.scores.items()}
        return dataclasses.replace(after, scores=scores)

    def own_scores(self, view: View, update: Update) -> dict[str, Tensor]:
        """Returns a job's own scores (r,) after its update, by layer.

        A component that the job has never measured has the score nan. The scores are smoothed with ``beta1`` over the
        job's fits. When a job measures a component for the first time, the smoothing starts from the score of the job's
        group.
        """
        group = view.state.groups[view.state.group_of(update.job)].scores
        own = {name: torch.full_like(scores, torch.nan) for name, scores in group.items()}
        own |= view.state.scores.get(update.job, {})
        for name, (ids, _) in update.scores.items():
            known = torch.where(own[name].isnan(), group[name], own[name])
            index = torch.tensor(ids, dtype=torch.long)
            own[name] = own[name].index_copy(0, index, self._smooth(name, known, [update])[index])
        return own

    def _smooth(self, layer: str, old: Tensor, updates: Sequence[Update]) -> Tensor:
        total, weight = ExactSum.zeros(tuple(old.shape)), torch.zeros_like(old)
        for update in updates:
            if layer in update.scores:
                ids, values = update.scores[layer]
                index = torch.tensor(ids, dtype=torch.long)  # without the dtype, an empty tensor would be float32
                try:
                    total.add(torch.zeros_like(old).index_copy(0, index, update.examples * values.to(old.dtype)))
                    weight[index] += update.examples
                except OverflowError as error:
                    who = f"update of client {update.job[0]}, job {update.job[1]}: scores of {layer}"
                    raise diverged(who, error, "smaller numbers") from error
        fresh = self.beta1 * old + (1 - self.beta1) * total.value() / weight.clamp(min=1)
        return torch.where(weight > 0, fresh, old)
