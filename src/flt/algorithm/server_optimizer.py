"""Server optimisers (arXiv 2003.00295).

Without a server optimiser, a group's new weights are those that the rule computed. With one, the new weights are the
weights before the round plus an optimiser step. The change that the rule computed takes the place of a gradient.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from flt.algorithm.base import Part
from flt.algorithm.rule.base import Combined
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import Update

if TYPE_CHECKING:
    from flt.algorithm.recipe import Recipe

FIRST, SECOND = "server_m", "server_v"
"""Names of a group's slots for the first moments m and the second moments v."""
Moments = dict[str, Tensor]


class ServerOptimizerPart(Part):
    """Optimiser step of the server along the change that the rule computed."""

    kind: ClassVar[str] = "server_optimizer"
    steps: ClassVar[bool] = False
    """True if the server takes a step; False if it keeps the rule's result."""

    @abc.abstractmethod
    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """Returns the rule's result for a group, with the server's step applied.

        Args:
            view: View of the round.
            gid: Id of the group.
            updates: The group's updates.
            out: Result of the rule for these updates.
            start: Weights that the rule would compute if every job had returned the values that it was sent.
        """

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses recipes in which the server doesn't get the exact change of the weights."""
        if not self.steps:
            return
        if recipe.rule.changes_base or recipe.rule.mixes_components:
            raise self.clash(recipe.rule, "a part of its answer isn't the adapter's change", "none")
        if not recipe.plan.roles - set(recipe.plan(0).private):
            raise InputError.of("server_optimizer", self.name, "none", "clients send nothing to step along")
        if recipe.compression.down:
            why = "the change would have the rounding on the way down in it"
            raise InputError.of("compression.down", "true", f"false with server_optimizer {self.name}", why)


@dataclasses.dataclass(frozen=True)
class NoServerOptimizer(ServerOptimizerPart):
    """No step: the rule's result becomes the group's new weights, as in FedAvg."""

    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """Returns the rule's result unchanged."""
        return out


@dataclasses.dataclass(frozen=True)
class _MomentOptimizer(ServerOptimizerPart):
    """Base of the optimisers with moments. They compute in float64 and step along d.

        d = (the rule's result for the updates) - (the rule's result for untrained updates)

    An untrained update holds the values that the job was sent. d therefore contains only the change that the clients'
    training made, even if the group's members received the weights of different groups. For an entry that no client
    sent, the rule's value and the old moments are kept.
    """

    steps: ClassVar[bool] = True

    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """Returns the rule's result with the step applied to the weights and with the new moments as slots."""
        new = dict(out.new)
        slots = {slot: dict(view.group(gid).slots.get(slot, {})) for slot in self.initial_moments}
        for name in sorted({name for update in updates for name in update.tensors}):
            at, kind = start[name].double(), new[name].dtype
            change = new[name].double() - at
            before = {slot: self._moment(view, gid, kept.get(name), slot, change) for slot, kept in slots.items()}
            step, after = self.step(change, before)
            sent = _sent_by_any(view, name, updates, change)
            new[name] = torch.where(sent, (at + step).to(kind), new[name])
            for slot, moment in after.items():
                slots[slot][name] = torch.where(sent, moment, before[slot]).to(kind)
        return dataclasses.replace(out, new=new, slots={**out.slots, **slots})

    def _moment(self, view: View, gid: int, kept: Tensor | None, slot: str, like: Tensor) -> Tensor:
        initial = torch.full_like(like, self.initial_moments[slot])
        if kept is None:
            return initial
        # Each moment of a new group is a mean over its members' previous groups. A group without the moment counts as
        # zero in this mean, so the mean can be smaller than the initial value.
        existed = gid in view.state.groups or not self.initial_moments[slot]
        return kept.double() if existed else torch.maximum(kept.double(), initial)

    @property
    @abc.abstractmethod
    def initial_moments(self) -> dict[str, float]:
        """Initial value of each moment, by the moment's name. All entries of a moment have the same initial value."""

    @abc.abstractmethod
    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """Returns the step that is added to the weights, and the new moments.

        Args:
            change: The change d.
            before: The moments before this round.
        """


@dataclasses.dataclass(frozen=True)
class Momentum(_MomentOptimizer):
    """FedAvgM (arXiv 1909.06335): m <- beta m + d,  w <- w + lr m. With beta = 0 and lr = 1, it equals FedAvg.

    Attributes:
        lr: Learning rate of the server.
        beta: Share of the previous m that is kept, in [0, 1).
    """

    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _check(self.lr, beta=self.beta)

    @property
    def initial_moments(self) -> dict[str, float]:
        """Initial value of each moment, by the moment's name. All entries of a moment have the same initial value."""
        return {FIRST: 0.0}

    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """Returns the step that is added to the weights, and the new m."""
        m = self.beta * before[FIRST] + change
        return self.lr * m, {FIRST: m}


@dataclasses.dataclass(frozen=True)
class _Adaptive(_MomentOptimizer):
    """Base of the adaptive optimisers (arXiv 2003.00295, algorithm 2).

        m <- beta1 m + (1 - beta1) d,   w <- w + lr m / (sqrt(v) + tau)

    Each subclass computes the new v from d, not from m. v starts at tau^2, and there is no bias correction.

    Attributes:
        lr: Learning rate of the server.
        beta1: Share of the previous m that is kept, in [0, 1).
        tau: Constant in the denominator. With a smaller tau, the step sizes of all entries are more similar.
    """

    lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.lr, beta1=self.beta1)
        if not 0 < self.tau < float("inf"):
            raise InputError.of("server_optimizer.tau", self.tau, "a number > 0")

    @property
    def initial_moments(self) -> dict[str, float]:
        """Initial value of each moment, by the moment's name. All entries of a moment have the same initial value."""
        return {FIRST: 0.0, SECOND: self.tau**2}

    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """Returns the step that is added to the weights, and the new m and v."""
        m, v = self.beta1 * before[FIRST] + (1 - self.beta1) * change, self.second_moment(change, before[SECOND])
        return self.lr * m / (v.sqrt() + self.tau), {FIRST: m, SECOND: v}

    @abc.abstractmethod
    def second_moment(self, change: Tensor, v: Tensor) -> Tensor:
        """Returns the new v, computed from d and the old v."""


@dataclasses.dataclass(frozen=True)
class Adagrad(_Adaptive):
    """FedAdagrad (arXiv 2003.00295): v <- v + d^2."""

    beta1: float = 0.0

    def second_moment(self, change: Tensor, v: Tensor) -> Tensor:
        """Returns the new v, computed from d and the old v."""
        return v + change**2


@dataclasses.dataclass(frozen=True)
class _DecayingSecondMoment(_Adaptive):
    """Base of the adaptive optimisers with a decay ``beta2`` for v.

    Attributes:
        beta2: Share of the previous v that is kept, in [0, 1).
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.lr, beta2=self.beta2)


@dataclasses.dataclass(frozen=True)
class Adam(_DecayingSecondMoment):
    """FedAdam (arXiv 2003.00295): v <- beta2 v + (1 - beta2) d^2."""

    def second_moment(self, change: Tensor, v: Tensor) -> Tensor:
        """Returns the new v, computed from d and the old v."""
        return self.beta2 * v + (1 - self.beta2) * change**2


@dataclasses.dataclass(frozen=True)
class Yogi(_DecayingSecondMoment):
    """FedYogi (arXiv 2003.00295): v <- v - (1 - beta2) d^2 sign(v - d^2)."""

    def second_moment(self, change: Tensor, v: Tensor) -> Tensor:
        """Returns the new v, computed from d and the old v."""
        return v - (1 - self.beta2) * change**2 * torch.sign(v - change**2)


def _sent_by_any(view: View, name: str, updates: Sequence[Update], like: Tensor) -> Tensor:
    """Returns a mask of the entries that at least one client sent. Its shape can be broadcast to that of ``like``."""
    masks = [view.layout.mask(name, update.kept, like) for update in updates if name in update.tensors]
    return torch.stack(masks).any(dim=0)


def _check(lr: float, **betas: float) -> None:
    if not 0 < lr < float("inf"):
        raise InputError.of("server_optimizer.lr", lr, "a number > 0")
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise InputError.of(f"server_optimizer.{name}", beta, "a number in [0, 1)")
