"""Plans. For each round, a plan sets the trained and the sent roles, the proximal term and the learning rate factor."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from flt.algorithm.base import PlanPart
from flt.algorithm.learning_rate import LearningRateFactor
from flt.client.fit import LocalCallback, LocalFit
from flt.core.errors import InputError
from flt.protocol.layout import LORA_FACTORS, TRAVELLING
from flt.protocol.messages import Plan

ADAPTER = ("A", "B", "adapter")
"""Roles that are neither trained nor sent in a round in which the whole model is trained."""
SCOPES = ("full", "adapter")
WHOLE_MODEL_LR_FACTOR = 0.1
"""Default factor on the learning rate in rounds in which the whole model is trained.

The configured rate suits an adapter; a whole model needs a lower rate.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DecayingPlan(PlanPart):
    """Base of the plans. It adds a learning rate that can fall from round to round.

    Attributes:
        lr_decay: Factor in (0, 1] by which the learning rate is multiplied after each round. FedAvg needs a decay to
            converge with heterogeneous clients (Li et al., arXiv 1907.02189, theorem 4). The exponential form is our
            choice: it doesn't depend on the number of rounds, so a longer run begins with the same rates.
        lr_floor: Lower limit, in [0, 1], for ``lr_decay`` to the power of the number of finished rounds.
    """

    lr_decay: float = 1.0
    lr_floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr_decay <= 1:
            raise InputError.of("plan.lr_decay", self.lr_decay, "a number in (0, 1]")
        if not 0 <= self.lr_floor <= 1:
            raise InputError.of("plan.lr_floor", self.lr_floor, "a number in [0, 1]")

    def callbacks(self, fit: LocalFit) -> list[Callback]:
        """Returns one callback if the learning rate factor isn't 1, and one if there is a proximal term."""
        plan = fit.payload.plan
        factor = [LearningRateFactor(fit)] if plan.lr_factor != 1 else []
        return [*factor, *([Proximal(fit)] if plan.mu else [])]

    def decayed(self, round: int) -> float:
        """Returns the factor on the learning rate that results from the decay over ``round`` finished rounds."""
        return max(self.lr_floor, self.lr_decay**round)


@dataclasses.dataclass(frozen=True)
class AdapterPlan(_DecayingPlan):
    """Plan that is the same in all rounds. By default, the adapter and the head are trained and sent.

    Attributes:
        train: Roles that are trained, among A, B, adapter and head. A run that trains ``head`` alone is a control: it
            shows the result without an adapter.
        mu: Weight of FedProx's proximal term (mu / 2) |w - w_t|^2 (arXiv 1812.06127). w_t are the received weights.
        private: Roles whose tensors stay on the client. If all trained roles are private, clients share nothing.
    """

    train: list[str] = dataclasses.field(default_factory=lambda: list(TRAVELLING))
    mu: float = 0.0
    private: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.train or not set(self.train) <= set(TRAVELLING):
            raise InputError.of("plan.train", self.train, f"some of {', '.join(TRAVELLING)}")
        if not set(self.private) <= set(TRAVELLING):
            raise InputError.of("plan.private", self.private, f"some of {', '.join(TRAVELLING)}")
        _check_mu(self.mu)

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in at least one round."""
        return frozenset(self.train)

    def __call__(self, round: int) -> Plan:
        """Returns the plan of the next round. ``round`` is the number of finished rounds."""
        return Plan(tuple(self.train), tuple(self.private), self.mu, lr_factor=self.decayed(round))


@dataclasses.dataclass(frozen=True)
class Alternating(_DecayingPlan):
    """RoLoRA (arXiv 2502.01755): B and the head are trained in odd rounds, A and the head in even rounds.

    The factor that isn't trained in a round is the same on all clients. The product of the mean factors is therefore
    the mean of the clients' products. B is trained first, because the gradient of A is 0 as long as B = 0.

    Attributes:
        mu: Weight of FedProx's proximal term (mu / 2) |w - w_t|^2 (arXiv 1812.06127). w_t are the received weights.
    """

    works_on: ClassVar[tuple[str, ...]] = LORA_FACTORS
    mu: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_mu(self.mu)

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in at least one round."""
        return frozenset({*LORA_FACTORS, "head"})

    def __call__(self, round: int) -> Plan:
        """Returns the plan of the next round. ``round`` is the number of finished rounds."""
        return Plan(("A" if round % 2 else "B", "head"), mu=self.mu, lr_factor=self.decayed(round))


@dataclasses.dataclass(frozen=True)
class FullPlan(_DecayingPlan):
    """FedAvg (arXiv 1602.05629): the whole model is trained and sent in every round. Adapters never change.

    Attributes:
        mu: Weight of FedProx's proximal term (mu / 2) |w - w_t|^2 (arXiv 1812.06127). w_t are the received weights.
        lr_factor: Factor on the learning rate. The configured rate suits an adapter; a whole model needs a lower rate.
    """

    mu: float = 0.0
    lr_factor: float = WHOLE_MODEL_LR_FACTOR

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_mu(self.mu)
        _check_factor(self.lr_factor)

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in at least one round."""
        return frozenset({"base", "head"})

    def __call__(self, round: int) -> Plan:
        """Returns the plan of the next round. ``round`` is the number of finished rounds."""
        return full(self.mu, self.lr_factor * self.decayed(round))


@dataclasses.dataclass(frozen=True)
class Stages(_DecayingPlan):
    """SA-FedLoRA's two stages (arXiv 2405.09394v1): an initiating stage with a proximal term, then the adapter.

        min_w  L_k(w) + (mu / 2) |w - w_t|^2        rounds 1 .. T0, w: the whole model (or adapter and head)
        min_w  L_k(w)                               later rounds, w: the adapter and the head

    The two stages and the regularisation are from the paper's abstract. A secondary source says that the first stage
    trains the whole model. All else is our reconstruction, including the scope ``adapter``. This scope is for clients
    whose memory can't hold the optimiser state of the whole model. The adapter is attached from the start, with B = 0,
    so that no module has to be rebuilt between the stages.

    Attributes:
        until: Last round T0 of the first stage. An integer is the round's number, a float in [0, 1] is a share of all
            rounds. A share above 0 means at least one round, except in runs of fewer than three rounds, which are
            too short for both a first stage and a falling rank budget.
        scope: Weights that are trained in the first stage: ``full`` for the whole model, ``adapter`` for adapter and
            head.
        mu: Weight of the proximal term in the first stage (the paper's lambda).
        lr_factor: Factor on the learning rate in the first stage, in addition to the decay. If None, the factor is
            ``WHOLE_MODEL_LR_FACTOR`` for the scope ``full`` and 1 for the scope ``adapter``.
        rounds: Total number of rounds. If None, the run's number of rounds is used.
    """

    until: int | float = 0.05
    scope: str = "full"
    mu: float = 0.01
    lr_factor: float | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_mu(self.mu)
        _check_factor(1.0 if self.lr_factor is None else self.lr_factor)
        if self.scope not in SCOPES:
            raise InputError.of("plan.scope", self.scope, SCOPES)
        if self.rounds is not None:
            to_rounds("plan.until", self.until, self.rounds)

    @property
    def initiating(self) -> int:
        """Number T0 of rounds in the first stage."""
        assert self.rounds is not None, "build fills in the run's"
        until = to_rounds("plan.until", self.until, self.rounds)
        return max(until, 1) if isinstance(self.until, float) and self.until and self.rounds >= 3 else until

    @property
    def roles(self) -> frozenset[str]:
        """Roles that are trained in at least one round."""
        return frozenset(TRAVELLING) | ({"base"} if self.scope == "full" and self.initiating else set())

    def __call__(self, round: int) -> Plan:
        """Returns the plan of the next round. ``round`` is the number of finished rounds."""
        factor = self.decayed(round)
        if round >= self.initiating:
            return Plan(lr_factor=factor)
        if self.scope == "full":
            return full(self.mu, (WHOLE_MODEL_LR_FACTOR if self.lr_factor is None else self.lr_factor) * factor)
        return Plan(mu=self.mu, lr_factor=(self.lr_factor or 1.0) * factor, stage="initiating")


def full(mu: float, lr_factor: float) -> Plan:
    """Returns the plan of a round in which the base and the head are trained and sent, and the adapter isn't."""
    return Plan(train=("base", "head"), private=ADAPTER, mu=mu, lr_factor=lr_factor, stage="full")


def to_rounds(key: str, given: int | float, rounds: int) -> int:
    """Converts a setting to a number of rounds. An integer stays unchanged; a float is a share of all rounds.

    The result for a share is rounded to the nearest integer.

    Args:
        key: Configuration key of the setting, for the error message.
        given: Number of rounds, or a share of all rounds in [0, 1].
        rounds: Total number of rounds.

    Raises:
        InputError: The number is below 0 or above the total number of rounds, or the share isn't in [0, 1].

    Example:
        >>> to_rounds("plan.until", 0.05, 20), to_rounds("plan.until", 2, 20)
        (1, 2)
    """
    share = isinstance(given, float)
    if not 0 <= given <= (1 if share else rounds):
        raise InputError.of(key, given, f"rounds from 0 to {rounds}, or a share of them from 0.0 to 1.0")
    return math.floor(given * rounds + 0.5) if share else int(given)


def _check_mu(mu: float) -> None:
    if not 0 <= mu < float("inf"):
        raise InputError.of("plan.mu", mu, "a number >= 0")


def _check_factor(factor: float) -> None:
    if not 0 < factor < float("inf"):
        raise InputError.of("plan.lr_factor", factor, "a number > 0")


class Proximal(LocalCallback):
    """Adds the gradient of (mu / 2) |w - w_t|^2 (FedProx, arXiv 1812.06127, and SA-FedLoRA's first stage)."""

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Called before each optimiser step; adds the gradient of the proximal term."""
        for name, parameter in self.fit.trained.items():
            if parameter.grad is not None:
                parameter.grad.add_(parameter - self.fit.start[name], alpha=self.fit.payload.plan.mu)
