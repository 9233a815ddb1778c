"""Selection for jobs that hold all components, but train only their top components (HAFL)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flt.algorithm.selection.top import ComponentIds, Top
from flt.algorithm.view import View
from flt.client.fit import LocalCallback, LocalFit
from flt.protocol.job import Job


@dataclasses.dataclass(frozen=True)
class Freeze(Top):
    """A job of rank r_k holds all active components, but trains and sends only its top r_k (HAFL, arXiv 2411.06581)."""

    freezes: ClassVar[bool] = True

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[ComponentIds, ComponentIds]:
        """Returns the held components (all active ones) and the trained components (the top ones), as ids by layer."""
        return dict(view.state.active), self.top(view, job, cohort)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that keeps frozen components (held, but not trained) unchanged."""
        return [FrozenComponents(fit)]


class FrozenComponents(LocalCallback):
    """Keeps frozen components, which a job holds but doesn't train, bit-identical under any optimiser.

    Setting the gradients to zero isn't enough, since weight decay and moments would still change the components. The
    values are therefore restored after each step. The gradients are set to zero as well, before clipping, because
    clipping would otherwise include them in the gradient norm.
    """

    def __init__(self, fit: LocalFit) -> None:
        super().__init__(fit)
        self.rows: dict[str, tuple[int, Tensor, Tensor]] = {}
        for name, start in fit.start.items():
            positions = fit.frozen(name)
            if positions is not None:
                axis = fit.layout.axis(name)
                self.rows[name] = (axis, positions, start.index_select(axis, positions))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step; sets the gradients of frozen components to zero."""
        for name, (axis, positions, _) in self.rows.items():
            gradient = self.fit.trained[name].grad
            if gradient is not None:
                gradient.index_fill_(axis, positions, 0)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Called after each training batch, which may end with an optimiser step; restores the frozen components."""
        for name, (axis, positions, rows) in self.rows.items():
            self.fit.trained[name].index_copy_(axis, positions, rows)
