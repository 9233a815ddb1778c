"""Callbacks of local training: what a method changes inside a client's fit. Made anew for each fit, shared by none."""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from flt.algorithm.low_rank import drift
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, Payload, Update
from flt.protocol.state import ClientState

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class LocalFit:
    """One fit as its local callbacks see it, and where they leave what it yields.

    Tensors are gathered by the payload's ``held`` pairs: position i along a rank axis is pair ``held[layer][i]``.
    """

    layout: Layout
    payload: Payload
    private: ClientState
    trained: dict[str, nn.Parameter]
    """The parameters that train."""
    start: dict[str, Tensor]
    """Their values before the first step."""
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Goes up: layer -> (pair ids, importance)."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    """Goes up."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Stays on the client, at the initial rank."""
    steps: int = 0
    """Optimiser steps taken; set when the fit has ended."""
    kept: dict[str, Ids] = dataclasses.field(init=False)
    """Goes up: the pairs that the update has; the payload's, unless a callback gives some of them up."""

    def __post_init__(self) -> None:
        self.kept = self.payload.kept

    def private_slot(self, slot: str, name: str) -> Tensor:
        """A private tensor at the initial rank; zeros before it was first kept."""
        like = self.start[name]
        zeros = torch.zeros(self.layout.entries[name].shape, dtype=like.dtype, device=like.device)
        kept = self.private.slots.get(slot, {}).get(name)
        return zeros if kept is None else kept.to(like.device)

    def frozen(self, name: str) -> Tensor | None:
        """Positions along the rank axis that are held and not kept; None where every entry trains."""
        held, kept = (self.layout.ids(name, pairs) for pairs in (self.payload.held, self.kept))
        if held is None or kept is None or held == kept:
            return None
        keep = set(kept)
        return torch.tensor([i for i, pair in enumerate(held) if pair not in keep], device=self.trained[name].device)

    def close(self, callbacks: Sequence[Callback]) -> None:
        """Called when the fit has ended and ``steps`` is set: the callbacks leave what goes up or stays.

        Raises:
            InputError: The fit took no step.
        """
        if self.steps < 1:
            raise InputError.of(f"client {self.payload.job[0]}", "0 steps", "a fit of at least one optimiser step")
        for callback in callbacks:
            if isinstance(callback, LocalCallback):
                callback.report()

    def update(self, examples: int, metrics: dict[str, float]) -> Update:
        """What goes up: the values that the trained parameters have now.

        Args:
            examples: The job's training examples.
            metrics: Its figures.
        """
        payload, plan = self.payload, self.payload.plan
        tensors = {}
        for name in self.layout.names(set(plan.train) - set(plan.private)):
            value, frozen = self.trained[name].detach(), self.frozen(name)
            if frozen is not None:
                axis = self.layout.axis(name)
                keep = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
                keep[frozen] = False
                value = value.index_select(axis, keep.nonzero()[:, 0])
            tensors[name] = value.cpu().clone()
        return Update(
            payload.job, payload.round, tensors, self.kept, payload.base_version,
            examples, self.steps, self.scores, self.scalars, metrics,
        )  # fmt: skip

    def private_state(self, initial: Mapping[str, Tensor]) -> ClientState:
        """What stays on the client.

        Args:
            initial: The tensors' initial values, for pairs that it has never held.
        """
        tensors = {}
        plan = self.payload.plan
        for name in self.layout.names(set(plan.private) & set(plan.train)):
            full = self.private.tensors.get(name, initial[name])
            tensors[name] = self.layout.put(name, full, self.payload.held, self.trained[name].detach().cpu())
        return ClientState({**self.private.tensors, **tensors}, {**self.private.slots, **self.slots})


class LocalCallback(Callback):
    """A Lightning callback that belongs to one fit and can add to its update."""

    def __init__(self, fit: LocalFit) -> None:
        self.fit = fit

    def report(self) -> None:
        """Called when the fit has ended: leaves scores, scalars and slots in ``self.fit``."""


class LearningRateFactor(LocalCallback):
    """Multiplies the learning rates that the module set, and their schedules, by the plan's factor."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= self.fit.payload.plan.lr_factor
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [lr * self.fit.payload.plan.lr_factor for lr in config.scheduler.base_lrs]


class Proximal(LocalCallback):
    """Adds the gradient of (mu / 2) |w - w_t|^2 (FedProx, arXiv 1812.06127, and SA-FedLoRA's first stage)."""

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step."""
        for name, parameter in self.fit.trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.fit.start[name], alpha=self.fit.payload.plan.mu)


class SensitivityMeter(LocalCallback):
    """Smoothed sensitivity of every held pair, frozen ones too (AdaLoRA, arXiv 2303.10512, equations 4-6).

        I = |w * dL/dw|;  Ibar <- beta1 Ibar + (1 - beta1) I;  Ubar <- beta2 Ubar + (1 - beta2) |I - Ibar|
        score_i = mean_j s(A[i, j]) + mean_j s(B[j, i]),  s = Ibar, or Ibar * Ubar with uncertainty

    The averages start afresh in each fit (our reconstruction).
    """

    def __init__(self, fit: LocalFit, beta1: float, beta2: float, uncertainty: bool) -> None:
        super().__init__(fit)
        self.beta1, self.beta2, self.uncertainty = beta1, beta2, uncertainty
        pairs = {name: p for name, p in fit.trained.items() if fit.layout.entries[name].axis is not None}
        self.mean = {name: torch.zeros_like(p) for name, p in pairs.items()}
        self.deviation = {name: torch.zeros_like(p) for name, p in pairs.items()} if uncertainty else {}

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step."""
        for name, mean in self.mean.items():
            parameter = self.fit.trained[name]
            if parameter.grad is None:
                continue
            sensitivity = (parameter * parameter.grad).abs()
            mean.lerp_(sensitivity, 1 - self.beta1)
            if self.uncertainty:
                self.deviation[name].lerp_((sensitivity - mean).abs(), 1 - self.beta2)

    def report(self) -> None:
        """Called when the fit has ended: one scalar per pair and layer."""
        for name, mean in self.mean.items():
            entry = self.fit.layout.entries[name]
            smoothed = mean * self.deviation[name] if self.uncertainty else mean
            part = smoothed.mean(dim=[d for d in range(smoothed.dim()) if d != entry.axis]).cpu()
            ids, other = self.fit.scores.get(entry.layer, (self.fit.payload.held[entry.layer], torch.zeros_like(part)))
            self.fit.scores[entry.layer] = (ids, other + part)


class ControlVariate(LocalCallback):
    """SCAFFOLD's correction g <- g - c_i + c, and the client's next c_i (arXiv 1910.06378, algorithm 1, option II).

    The learning rate that goes up is the mean over the steps, so K lr is the sum of theirs under a schedule too.
    Tensors that stay on the client drift from nobody, and train as they would without.
    """

    def __init__(self, fit: LocalFit) -> None:
        super().__init__(fit)
        c, private = fit.payload.slots.get("c", {}), fit.payload.plan.private
        self.sent = {name: p for name, p in fit.trained.items() if fit.layout.entries[name].role not in private}
        self.c = {name: c[name].to(p.device) if name in c else torch.zeros_like(p) for name, p in self.sent.items()}
        self.own = {name: self._held(name, fit.private_slot("c_i", name)) for name in self.sent}
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when the train begins."""
        if len(trainer.optimizers) > 1 or trainer.gradient_clip_val or not _is_plain_sgd(trainer.optimizers[0]):
            _say_once("SCAFFOLD's control variates are exact for one SGD without momentum and clipping, and with one "
                      "learning rate for all parameters; with another optimiser they are a heuristic")  # fmt: skip

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step."""
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.sent.items():
            if parameter.grad is not None and id(parameter) in stepped:
                parameter.grad.add_(self.c[name] - self.own[name])
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    @torch.no_grad()
    def report(self) -> None:
        """Called when the fit has ended: c_i+ = c_i - c + (w_t - w_i) / (K lr), for the pairs that trained."""
        fit, lr = self.fit, statistics.fmean(self.rates)
        if lr <= 0:
            raise InputError.of(f"client {fit.payload.job[0]}: lr", lr, "a learning rate above 0 in some step")
        fit.scalars["lr"] = lr
        fit.slots["c_i"] = dict(fit.private.slots.get("c_i", {}))  # what trains in other rounds keeps its own
        for name, parameter in self.sent.items():
            moved = fit.start[name] - parameter
            new = self.own[name] + drift(self.c[name], moved, fit.steps, lr)
            frozen = fit.frozen(name)
            if frozen is not None:
                axis = fit.layout.axis(name)
                new.index_copy_(axis, frozen, self.own[name].index_select(axis, frozen))
            full = fit.layout.put(name, fit.private_slot("c_i", name), fit.payload.held, new)
            fit.slots["c_i"][name] = full.cpu()

    def _held(self, name: str, full: Tensor) -> Tensor:
        return self.fit.layout.take(name, full, self.fit.payload.held)


def _is_plain_sgd(optimizer: Optimizer) -> bool:
    groups = optimizer.param_groups
    return isinstance(optimizer, torch.optim.SGD) and all(
        not group["momentum"] and group["lr"] == groups[0]["lr"] for group in groups
    )


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)


class FrozenPairs(LocalCallback):
    """Keeps the pairs that a job holds but doesn't train bit-identical, whatever the optimiser.

    Zeroing their gradients isn't enough: weight decay and moments move them all the same, so the rows are put back
    after each step. The gradients are zeroed besides, before clipping, or else they would enter the norm.
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
        """Called before each optimiser step."""
        for name, (axis, positions, _) in self.rows.items():
            gradient = self.fit.trained[name].grad
            if gradient is not None:
                gradient.index_fill_(axis, positions, 0)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Called when a train batch, and with it perhaps a step, has ended."""
        for name, (axis, positions, rows) in self.rows.items():
            self.fit.trained[name].index_copy_(axis, positions, rows)
