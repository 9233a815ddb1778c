"""SCAFFOLD (arXiv 1910.06378): control variates that correct client drift."""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from flt.algorithm.rule.base import Combined, Summable, Totals, add
from flt.algorithm.rule.mean import Mean
from flt.algorithm.view import View
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError
from flt.protocol.messages import Update

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scaffold(Summable):
    """Weighted mean of the updates. In local training, every gradient is corrected for the client's drift.

        client   g <- g - c_i + c;   c_i+ = c_i - c + (w_t - w_i) / (K lr)
        server   c <- c + (1 / N) sum_i (c_i+ - c_i)

    g is a gradient of client i. c_i is the client's control variate, c_i+ is the next value of c_i, and c is the
    server's control variate. w_t are the weights that the client received, and w_i are its weights after K steps with
    learning rate lr. N is the number of all jobs. The server computes c_i+ - c_i from w_t, w_i, K, lr and c. Clients
    therefore send no control variates: besides the weights, they send only the scalar lr.

    The control variates are exact for SGD without momentum and clipping. With a learning rate schedule, lr is the mean
    over the K steps. With another optimiser, the control variates are a heuristic. ``server_optimizer=momentum`` with
    beta 0 is the paper's global step.
    """

    sent_slots: ClassVar[tuple[str, ...]] = ("c",)
    one_group: ClassVar[str] = "a control variate is the mean drift of the clients that share one model"

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns the callback that adds c - c_i to every gradient."""
        return [ControlVariate(fit)]

    def summand(self, view: View, update: Update, totals: Totals) -> None:
        """Adds to the totals the summands of the mean, and c_i+ - c_i for the entries that were trained."""
        self._mean().summand(view, update, totals)
        slots = view.state.groups[view.state.group_of(update.job)].slots.get("c", {})
        for name, part in update.tensors.items():
            start = view.sent(update.job, name)
            c = view.layout.take(name, slots.get(name, torch.zeros_like(start)), update.kept)
            moved = view.layout.take(name, start, update.kept) - part
            change = drift(c, moved, update.steps, update.scalars["lr"]).double()
            zeros = torch.zeros_like(start, dtype=torch.float64)
            add(totals, ("drift", name), view.layout.put(name, zeros, update.kept, change))

    def finish(self, view: View, gid: int, totals: Totals) -> Combined:
        """Returns the mean of the weights, and the new c as the slot ``c``."""
        new = self._mean().finish(view, gid, totals).new
        old = view.group(gid).slots.get("c", {})
        c = dict(old)
        for name in (name for what, name in totals if what == "drift"):
            before = old.get(name, torch.zeros_like(new[name]))
            c[name] = (before + totals["drift", name].value() / view.sharers(name)).to(before.dtype)
        return Combined(new, slots={"c": c})

    def _mean(self) -> Mean:
        return Mean(weights=self.weights)


class ControlVariate(LocalCallback):
    """Applies the correction g <- g - c_i + c, and computes the next c_i (arXiv 1910.06378, algorithm 1, option II).

    The client sends the mean learning rate over its steps. K lr is therefore the sum of the learning rates, whatever
    their schedule is. Private tensors aren't averaged, so they have no drift and are trained without correction.
    """

    def __init__(self, fit: LocalFit) -> None:
        super().__init__(fit)
        c, private = fit.payload.slots.get("c", {}), fit.payload.plan.private
        self.sent = {name: p for name, p in fit.trained.items() if fit.layout.entries[name].role not in private}
        self.c = {name: c[name].to(p.device) if name in c else torch.zeros_like(p) for name, p in self.sent.items()}
        self.own = {name: self._held(name, fit.private_slot("c_i", name)) for name in self.sent}
        self.rates: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins; warns if the control variates are only a heuristic."""
        if len(trainer.optimizers) > 1 or trainer.gradient_clip_val or not _is_plain_sgd(trainer.optimizers[0]):
            _say_once("SCAFFOLD's control variates are exact for one SGD without momentum and clipping, and with one "
                      "learning rate for all parameters; with another optimiser they are a heuristic")  # fmt: skip

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step; corrects the gradients."""
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.sent.items():
            if parameter.grad is not None and id(parameter) in stepped:
                parameter.grad.add_(self.c[name] - self.own[name])
        self.rates.append(float(optimizer.param_groups[0]["lr"]))

    @torch.no_grad()
    def report(self) -> None:
        """Called when the fit has ended; computes c_i+ = c_i - c + (w_t - w_i) / (K lr) for trained components."""
        fit, lr = self.fit, statistics.fmean(self.rates)
        if lr <= 0:
            raise InputError.of(f"client {fit.payload.job[0]}: lr", lr, "a learning rate above 0 in some step")
        fit.scalars["lr"] = lr
        fit.slots["c_i"] = dict(fit.private.slots.get("c_i", {}))  # keeps c_i of tensors that this round doesn't train
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


def drift(c: Tensor, moved: Tensor, steps: int, lr: float) -> Tensor:
    """Returns SCAFFOLD's c_i+ - c_i = (w_t - w_i) / (K lr) - c (arXiv 1910.06378, algorithm 1, option II).

    Args:
        c: The server's control variate.
        moved: Difference w_t - w_i of the weights before and after the local steps.
        steps: Number K of the client's optimiser steps.
        lr: Mean learning rate over the client's steps.
    """
    return moved / (steps * lr) - c
