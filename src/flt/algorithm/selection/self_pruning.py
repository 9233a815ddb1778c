"""Self-pruning: a client lowers its own rank by removing its last components (HetLoRA, arXiv 2401.06432)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flt.algorithm.base import SelectionPart
from flt.algorithm.view import View
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Ids, JobId, Update

RANK = "rank"
"""Name of an update's scalar for the new rank of the job. Only updates of jobs that lowered their rank have it."""


@dataclasses.dataclass(frozen=True)
class SelfPruning(SelectionPart):
    """A job of rank r_k holds, trains and sends its first r_k active components, and can lower r_k by itself.

        local loss   L_k + penalty * sum_l |B_l[:, m:]| |A_l[m:]|,   m = max(1, floor(gamma r_k))
        r_k <- m     if the sum after the fit is below the sum in the model that the job was sent

    The components after the first m are the tail. The norms are Frobenius norms. It is our reading of the paper that
    the sum runs over the layers l and that all layers have the same rank r_k. When a job lowers its rank, the
    update of the same round already lacks the tail. A job always keeps at least one component.

    Attributes:
        gamma: Share of components, in (0, 1], that a job keeps when it prunes. With 1, a job never prunes.
        penalty: Weight lambda of the tail's norm in the local loss.
    """

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS
    together: ClassVar[tuple[str, ...]] = LORA_FACTORS

    gamma: float = 0.99
    penalty: float = 5e-3

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise InputError.of("selection.gamma", self.gamma, "a number in (0, 1]")
        if not 0 <= self.penalty < math.inf:
            raise InputError.of("selection.penalty", self.penalty, "a number >= 0")

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Returns the held and the trained components, as ids by layer: in both cases the first r_k active ones."""
        rank = min(job.rank, view.state.ranks.get(job.id, job.rank))
        first = {name: ids[:rank] for name, ids in view.state.active.items()}
        return first, first

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that penalises the tail, and removes the tail if its norm has fallen during the fit."""
        keep = max(1, math.floor(self.gamma * max(map(len, fit.payload.held.values()), default=1)))
        return [FadingTail(fit, keep, self.penalty)]

    def ranks(self, updates: Sequence[Update]) -> dict[JobId, int]:
        """Returns the new rank of each job that has lowered its rank in this round."""
        return {update.job: max(1, int(update.scalars[RANK])) for update in updates if RANK in update.scalars}


class FadingTail(LocalCallback):
    """Adds the gradient of the tail's penalty, and removes the tail from the update if its norm has fallen in the fit.

    Args:
        fit: The local fit.
        keep: Number m of components per layer that always stay. The components after them are the layer's tail.
        penalty: Weight of the tail's norm in the loss.
    """

    def __init__(self, fit: LocalFit, keep: int, penalty: float) -> None:
        super().__init__(fit)
        self.keep, self.penalty = keep, penalty
        layers = {name: (layer.b, layer.a) for name, layer in fit.layout.layers.items()}
        longer = {name for name, ids in fit.payload.held.items() if len(ids) > keep}
        self.tails = [names for name, names in layers.items() if name in longer and set(names) <= set(fit.trained)]

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step; adds the gradient of the penalty."""
        for b, a in self.tails if self.penalty else []:
            left, right = self._tail(b, self.fit.trained[b]), self._tail(a, self.fit.trained[a])
            sizes = left.norm(), right.norm()
            for name, part, size, other in ((b, left, *sizes), (a, right, *sizes[::-1])):
                gradient = self.fit.trained[name].grad
                if gradient is not None and size > 0:  # the norm has no gradient at zero
                    self._tail(name, gradient).add_(part * (self.penalty * other / size))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training ends; removes the tail from the update if its norm has fallen."""
        if self._size(self.fit.trained) < self._size(self.fit.start):
            self.fit.kept = {name: ids[: self.keep] for name, ids in self.fit.kept.items()}
            self.fit.scalars[RANK] = float(self.keep)

    @torch.no_grad()
    def _size(self, tensors: Mapping[str, Any]) -> float:
        """Returns the sum of |B[:, m:]| |A[m:]| over the layers: the norm of the tail."""
        norms = [self._tail(b, tensors[b]).norm() * self._tail(a, tensors[a]).norm() for b, a in self.tails]
        return float(sum(norms))

    def _tail(self, name: str, tensor: Tensor) -> Tensor:
        """Returns the slice of a tensor that belongs to the tail, which begins after the first ``keep`` components."""
        axis = self.fit.layout.axis(name)
        return tensor.narrow(axis, self.keep, tensor.shape[axis] - self.keep)
