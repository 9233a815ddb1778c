"""Factor of the plan on the learning rates of a fit, whatever sets them: a schedule, a callback or the module."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

from flt.client.fit import LocalCallback
from flt.client.users_code import of_kind
from flt.core.errors import ModuleError
from flt.models.module import ClientModule

PROPORTIONAL = frozenset(
    {
        ConstantLR, CosineAnnealingLR, CosineAnnealingWarmRestarts, ExponentialLR, LambdaLR, LinearLR, MultiplicativeLR,
        MultiStepLR, PolynomialLR, StepLR,
    }
)  # fmt: skip
"""Schedules whose rates are all proportional to ``base_lrs``, unless they have a smallest rate (``eta_min``)."""


SETS_RATES: tuple[type[Callback], ...] = (BaseFinetuning, StochasticWeightAveraging)
"""Lightning's callbacks that set learning rates in the middle of a fit."""


class LearningRateFactor(LocalCallback):
    """Multiplies the learning rates of every optimiser step by the plan's factor.

    A schedule of the kinds in ``PROPORTIONAL`` is multiplied once, and all its rates follow. Other schedules set rates
    that don't follow from the first one, and a module or a callback may set rates, too. In their fits, the rates are
    multiplied just before each step, and put back just after it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called when training begins; multiplies the learning rates, or lets each step multiply them."""
        factor = self.fit.payload.plan.lr_factor
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        once = all(map(_is_proportional, schedules)) if schedules else isinstance(pl_module, ClientModule)
        once = once and not any(of_kind(trainer, kind) for kind in SETS_RATES)
        for optimizer in trainer.optimizers:
            if once or not isinstance(optimizer, Optimizer):
                _multiply(optimizer, factor)
            else:
                _multiply_in_each_step(optimizer, factor)
        for schedule in schedules if once else ():
            schedule.base_lrs = [lr * factor for lr in schedule.base_lrs]


def _is_proportional(schedule: Any) -> bool:
    return type(schedule) in PROPORTIONAL and not getattr(schedule, "eta_min", 0)


def _multiply(optimizer: Any, factor: float) -> list[Any]:
    """Multiplies the learning rates of an optimiser, and returns the rates from before."""
    given = [group.get("lr") for group in optimizer.param_groups]
    if None in given:
        why = f"{type(optimizer).__name__} has no learning rate that can be multiplied"
        raise ModuleError.of("plan.lr_factor", factor, "1 in every round, with plan.lr_decay=1", why)
    for group, lr in zip(optimizer.param_groups, given, strict=True):
        group["lr"] = lr * factor
    return given


def _multiply_in_each_step(optimizer: Optimizer, factor: float) -> None:
    given: list[Any] = []

    def before(optimizer: Optimizer, *_: Any) -> None:
        given.extend(_multiply(optimizer, factor))

    def after(optimizer: Optimizer, *_: Any) -> None:
        for group, lr in zip(optimizer.param_groups, given, strict=True):
            group["lr"] = lr
        given.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
