"""Importance by the sensitivity of the loss, which clients measure at every local step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flt.algorithm.importance.averages import AdaLoraAverages
from flt.algorithm.importance.measured import Measured
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

SENSITIVITY, UNCERTAINTY = "sensitivity", "sensitivity_deviation"
"""Names of a client state's slots for the averages Ibar and Ubar of every entry, with ``carry`` alone."""


@dataclasses.dataclass(frozen=True)
class GradientSensitivity(Measured, AdaLoraAverages):
    """AdaLoRA's smoothed sensitivity (arXiv 2303.10512), measured by the clients at every local step.

    Clients send one scalar per component and layer. The server averages it over the clients that measured the
    component, weighted by their numbers of examples, and smooths the average across rounds with ``beta1``. It is our
    reconstruction of HAFL that clients measure the sensitivity, and that they measure it at every step.

    Attributes:
        beta1: Share of the old Ibar that is kept at each step, and share of the old score that is kept in each round.
        beta2: Share of the old Ubar that is kept at each step.
        uncertainty: If True, Ibar is multiplied by the uncertainty Ubar, as in AdaLoRA.
        carry: If True, each client keeps its averages Ibar and Ubar in its client state, and goes on with them in its
            next fit (ours). If False, both averages start at zero in each fit.
    """

    carry: bool = False

    @property
    def carries(self) -> bool:
        """True if clients keep their averages from one fit to the next."""
        return self.carry

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses to carry averages if the rule draws a new adapter in each round."""
        super().check_recipe(recipe)
        if self.carry and recipe.rule.starts_afresh:
            why = f"with rule={recipe.rule.name}, each round begins with a fresh adapter"
            raise InputError.of("importance.carry", "true", "false", why)

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that measures |w * dL/dw| before each step."""
        return [SensitivityMeter(fit, self.beta1, self.beta2, self.uncertainty, self.carry)]


class SensitivityMeter(LocalCallback):
    """Measures the smoothed sensitivity of all held components, including frozen ones.

    The formulas are those of AdaLoRA (arXiv 2303.10512, equations 4 to 6):

        I = |w * dL/dw|;  Ibar <- beta1 Ibar + (1 - beta1) I;  Ubar <- beta2 Ubar + (1 - beta2) |I - Ibar|
        score_i = mean_j s(A[i, j]) + mean_j s(B[j, i]),  s = Ibar, or Ibar * Ubar with uncertainty

    Both averages start at zero in each fit (our reconstruction), or with ``carry`` where the job's last fit left them.
    Components that the job didn't hold in its last fit have the values of the fit before, and so on.
    """

    def __init__(self, fit: LocalFit, beta1: float, beta2: float, uncertainty: bool, carry: bool = False) -> None:
        super().__init__(fit)
        self.beta1, self.beta2, self.uncertainty, self.carry = beta1, beta2, uncertainty, carry
        components = [name for name in fit.trained if fit.layout.entries[name].axis is not None]
        self.mean = {name: self._start(SENSITIVITY, name) for name in components}
        self.deviation = {name: self._start(UNCERTAINTY, name) for name in components} if uncertainty else {}

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step; updates the moving averages."""
        for name, mean in self.mean.items():
            parameter = self.fit.trained[name]
            if parameter.grad is None:
                continue
            sensitivity = (parameter * parameter.grad).abs()
            mean.lerp_(sensitivity, 1 - self.beta1)
            if self.uncertainty:
                self.deviation[name].lerp_((sensitivity - mean).abs(), 1 - self.beta2)

    def report(self) -> None:
        """Called when the fit has ended: adds one score per component and layer, and carries averages."""
        if self.carry:
            self._keep(SENSITIVITY, self.mean)
            self._keep(UNCERTAINTY, self.deviation)
        for name, mean in self.mean.items():
            entry = self.fit.layout.entries[name]
            smoothed = mean * self.deviation[name] if self.uncertainty else mean
            part = smoothed.mean(dim=[d for d in range(smoothed.dim()) if d != entry.axis]).cpu()
            # The score of a component is the sum of two parts, one from A and one from B.
            ids, other = self.fit.scores.get(entry.layer, (self.fit.payload.held[entry.layer], torch.zeros_like(part)))
            self.fit.scores[entry.layer] = (ids, other + part)

    def _start(self, slot: str, name: str) -> Tensor:
        """Returns the value of an average of a tensor's held components at the beginning of the fit."""
        if not self.carry:
            return torch.zeros_like(self.fit.trained[name])
        full = self.fit.private_slot(slot, name)
        return self.fit.layout.take(name, full, self.fit.payload.held)

    def _keep(self, slot: str, averages: Mapping[str, Tensor]) -> None:
        """Writes averages to a slot of the client state. Tensors and components without one keep what they have."""
        fit, kept = self.fit, dict(self.fit.private.slots.get(slot, {}))
        for name, average in averages.items():
            kept[name] = fit.layout.put(name, fit.private_slot(slot, name), fit.payload.held, average).cpu()
        if kept:
            fit.slots[slot] = kept
