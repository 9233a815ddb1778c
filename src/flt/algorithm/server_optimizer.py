"""Server optimisers: a step along the round's change, in the place of the change itself (arXiv 2003.00295)."""

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
"""Slots of a group: the moments."""
Moments = dict[str, Tensor]


class ServerOptimizerPart(Part):
    """The step of the server along the change that the rule found."""

    kind: ClassVar[str] = "server_optimizer"
    steps: ClassVar[bool] = False
    """True if a group becomes anything else than what the rule made of it."""

    @abc.abstractmethod
    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """Returns the rule's answer for a group with the server's step in the place of its change from ``start``."""

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuses an answer that isn't the change of the adapter, of which an optimiser takes steps."""
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
    """The group becomes what the rule made of it: FedAvg."""

    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """The rule's answer as it is."""
        return out


@dataclasses.dataclass(frozen=True)
class _Stepping(ServerOptimizerPart):
    """Steps along d = (what the rule made) - (what it makes of what was sent to the members), in float64.

    So d is the clients' change alone, also where members come from several groups. An entry that nobody sent is what
    the rule left, and keeps its moments.
    """

    steps: ClassVar[bool] = True

    def __call__(
        self, view: View, gid: int, updates: Sequence[Update], out: Combined, start: Mapping[str, Tensor]
    ) -> Combined:
        """The rule's answer with a step in the place of its change, and the moments among its slots."""
        new = dict(out.new)
        slots = {slot: dict(view.group(gid).slots.get(slot, {})) for slot in self.begins}
        for name in sorted({name for update in updates for name in update.tensors}):
            at, kind = start[name].double(), new[name].dtype
            change = new[name].double() - at
            before = {slot: self._kept(view, gid, kept.get(name), slot, change) for slot, kept in slots.items()}
            step, after = self.step(change, before)
            sent = _sent(view, name, updates, change)
            new[name] = torch.where(sent, (at + step).to(kind), new[name])
            for slot, moment in after.items():
                slots[slot][name] = torch.where(sent, moment, before[slot]).to(kind)
        return dataclasses.replace(out, new=new, slots={**out.slots, **slots})

    def _kept(self, view: View, gid: int, kept: Tensor | None, slot: str, like: Tensor) -> Tensor:
        first = torch.full_like(like, self.begins[slot])
        if kept is None:
            return first
        known = gid in view.state.groups or not self.begins[slot]
        return kept.double() if known else torch.maximum(kept.double(), first)  # members' groups may have had none

    @property
    @abc.abstractmethod
    def begins(self) -> dict[str, float]:
        """Moment -> its entries before the first round."""

    @abc.abstractmethod
    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """The step along d, and the moments after it."""


@dataclasses.dataclass(frozen=True)
class Momentum(_Stepping):
    """FedAvgM (arXiv 1909.06335): m <- beta m + d,  w <- w + lr m; with beta = 0 and lr = 1 it is FedAvg.

    Attributes:
        lr: Of the server.
        beta: Share of the last m that is kept, in [0, 1).
    """

    lr: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        _check(self.lr, beta=self.beta)

    @property
    def begins(self) -> dict[str, float]:
        """Moment -> its entries before the first round."""
        return {FIRST: 0.0}

    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """The step along d, and m after it."""
        m = self.beta * before[FIRST] + change
        return self.lr * m, {FIRST: m}


@dataclasses.dataclass(frozen=True)
class _Adaptive(_Stepping):
    """m <- beta1 m + (1 - beta1) d,  v of d and not of m,  w <- w + lr m / (sqrt(v) + tau).

    v begins with tau^2, and nothing is corrected for the beginning (arXiv 2003.00295, algorithm 2).

    Attributes:
        lr: Of the server.
        beta1: Share of the last m that is kept, in [0, 1).
        tau: Adaptivity: the smaller, the more alike are the steps of all entries.
    """

    lr: float = 0.01
    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.lr, beta1=self.beta1)
        if not 0 < self.tau < float("inf"):
            raise InputError.of("server_optimizer.tau", self.tau, "a number > 0")

    @property
    def begins(self) -> dict[str, float]:
        """Moment -> its entries before the first round."""
        return {FIRST: 0.0, SECOND: self.tau**2}

    def step(self, change: Tensor, before: Moments) -> tuple[Tensor, Moments]:
        """The step along d, and both moments after it."""
        m, v = self.beta1 * before[FIRST] + (1 - self.beta1) * change, self.second(change, before[SECOND])
        return self.lr * m / (v.sqrt() + self.tau), {FIRST: m, SECOND: v}

    @abc.abstractmethod
    def second(self, change: Tensor, v: Tensor) -> Tensor:
        """v after a round."""


@dataclasses.dataclass(frozen=True)
class Adagrad(_Adaptive):
    """FedAdagrad (arXiv 2003.00295): v <- v + d^2."""

    beta1: float = 0.0

    def second(self, change: Tensor, v: Tensor) -> Tensor:
        """v after a round."""
        return v + change**2


@dataclasses.dataclass(frozen=True)
class _Forgetting(_Adaptive):
    """A v that forgets.

    Attributes:
        beta2: Share of the last v that is kept, in [0, 1).
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.lr, beta2=self.beta2)


@dataclasses.dataclass(frozen=True)
class Adam(_Forgetting):
    """FedAdam (arXiv 2003.00295): v <- beta2 v + (1 - beta2) d^2."""

    def second(self, change: Tensor, v: Tensor) -> Tensor:
        """v after a round."""
        return self.beta2 * v + (1 - self.beta2) * change**2


@dataclasses.dataclass(frozen=True)
class Yogi(_Forgetting):
    """FedYogi (arXiv 2003.00295): v <- v - (1 - beta2) d^2 sign(v - d^2)."""

    def second(self, change: Tensor, v: Tensor) -> Tensor:
        """v after a round."""
        return v - (1 - self.beta2) * change**2 * torch.sign(v - change**2)


def _sent(view: View, name: str, updates: Sequence[Update], like: Tensor) -> Tensor:
    """True where an entry was sent by somebody; of a shape that broadcasts with the tensor."""
    masks = [view.layout.mask(name, update.kept, like) for update in updates if name in update.tensors]
    return torch.stack(masks).any(dim=0)


def _check(lr: float, **betas: float) -> None:
    if not 0 < lr < float("inf"):
        raise InputError.of("server_optimizer.lr", lr, "a number > 0")
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise InputError.of(f"server_optimizer.{name}", beta, "a number in [0, 1)")
