"""Importance: a score for each rank-1 component. Selection and pruning prefer components with high scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flt.algorithm.base import ImportancePart
from flt.algorithm.rule.exact_sum import ExactSum
from flt.algorithm.view import View
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError, diverged
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Ids, Update
from flt.protocol.state import GroupState

MEAN, DEVIATION = "delta_mean", "delta_deviation"
"""Names of a group's slots for the moving averages Ibar and Ubar of every entry.

Ibar averages the sensitivity, and Ubar averages the deviation of the sensitivity from Ibar. Only
:class:`DeltaSensitivity` with ``uncertainty`` uses these slots.
"""


@dataclasses.dataclass(frozen=True)
class NoImportance(ImportancePart):
    """No importance: nothing is measured, and all components keep the same score."""

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group unchanged."""
        return after


@dataclasses.dataclass(frozen=True)
class Magnitude(ImportancePart):
    """Frobenius norm |s b_i a_i| of the change that component i adds to W0.

    a_i is row i of A, b_i is column i of B, and s is the scale alpha / r. The norm is computed after each round and
    isn't smoothed.

    This score exists for comparison with HAFL's score (arXiv 2411.06581). The choice of the norm is our reconstruction.
    A component that was never trained has b_i = 0 and therefore the lowest score.
    """

    source: ClassVar[str] = "weights"
    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    @property
    def needs_matrices(self) -> bool:
        """Always true, because the score is the norm of a product of two vectors."""
        return True

    def __call__(self, view: View, before: GroupState, after: GroupState, updates: Sequence[Update]) -> GroupState:
        """Returns the state of the group with new scores."""
        weights = {name: after.weights[name].double() for name in view.layout.names(LORA_FACTORS)}
        scores = {
            name: abs(layer.scale) * weights[layer.b].norm(dim=0) * weights[layer.a].norm(dim=1)
            for name, layer in view.layout.layers.items()
        }
        return dataclasses.replace(after, scores=scores)


@dataclasses.dataclass(frozen=True)
class _Smoothed(ImportancePart):
    """Base of the scores that use AdaLoRA's two moving averages (arXiv 2303.10512, equations 5 and 6).

    Ibar averages the sensitivity I. Ubar, the uncertainty, averages |I - Ibar|.
    """

    beta1: float = 0.85
    beta2: float = 0.85
    uncertainty: bool = False

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError.of(f"importance.{name}", getattr(self, name), "a number in [0, 1)")


@dataclasses.dataclass(frozen=True)
class GradientSensitivity(_Smoothed):
    """AdaLoRA's smoothed sensitivity (arXiv 2303.10512), measured by the clients at every local step.

    Clients send one scalar per component and layer. The server averages it over the clients that measured the
    component, weighted by their numbers of examples, and smooths the average across rounds with ``beta1``. It is our
    reconstruction of HAFL that clients measure the sensitivity, and that they measure it at every step.

    Attributes:
        beta1: Share of the old Ibar that is kept at each step, and share of the old score that is kept in each round.
        beta2: Share of the old Ubar that is kept at each step.
        uncertainty: If True, Ibar is multiplied by the uncertainty Ubar, as in AdaLoRA.
    """

    source: ClassVar[str] = "clients"

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that measures |w * dL/dw| before each step."""
        return [SensitivityMeter(fit, self.beta1, self.beta2, self.uncertainty)]

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


@dataclasses.dataclass(frozen=True)
class DeltaSensitivity(_Smoothed):
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


class SensitivityMeter(LocalCallback):
    """Measures the smoothed sensitivity of all held components, including frozen ones.

    The formulas are those of AdaLoRA (arXiv 2303.10512, equations 4 to 6):

        I = |w * dL/dw|;  Ibar <- beta1 Ibar + (1 - beta1) I;  Ubar <- beta2 Ubar + (1 - beta2) |I - Ibar|
        score_i = mean_j s(A[i, j]) + mean_j s(B[j, i]),  s = Ibar, or Ibar * Ubar with uncertainty

    Both averages start at zero in each fit (our reconstruction).
    """

    def __init__(self, fit: LocalFit, beta1: float, beta2: float, uncertainty: bool) -> None:
        super().__init__(fit)
        self.beta1, self.beta2, self.uncertainty = beta1, beta2, uncertainty
        components = {name: p for name, p in fit.trained.items() if fit.layout.entries[name].axis is not None}
        self.mean = {name: torch.zeros_like(p) for name, p in components.items()}
        self.deviation = {name: torch.zeros_like(p) for name, p in components.items()} if uncertainty else {}

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
        """Called when the fit has ended: adds one score per component and layer to the update."""
        for name, mean in self.mean.items():
            entry = self.fit.layout.entries[name]
            smoothed = mean * self.deviation[name] if self.uncertainty else mean
            part = smoothed.mean(dim=[d for d in range(smoothed.dim()) if d != entry.axis]).cpu()
            # The score of a component is the sum of two parts, one from A and one from B.
            ids, other = self.fit.scores.get(entry.layer, (self.fit.payload.held[entry.layer], torch.zeros_like(part)))
            self.fit.scores[entry.layer] = (ids, other + part)
