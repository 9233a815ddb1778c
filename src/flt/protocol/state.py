"""The states of server and clients, all of them written by the codec of :mod:`flt.protocol.messages`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flt.protocol.codec import message
from flt.protocol.messages import BaseDelta, Ids, JobId


@message
@dataclasses.dataclass(frozen=True)
class ClientState:
    """What stays on the client from one of its fits to the next, and never crosses.

    All tensors have the initial rank and are indexed by pair id.
    """

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Tensors of private roles."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """What a local callback keeps, such as SCAFFOLD's ``c_i``."""


@message
@dataclasses.dataclass(frozen=True)
class GroupState:
    """One group of jobs that are averaged with each other."""

    weights: dict[str, Tensor]
    """Adapter and head at the initial rank."""
    scores: dict[str, Tensor]
    """Layer -> importance of each pair (r,)."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """What rule, importance and server optimiser keep, such as SCAFFOLD's ``c``."""


@message
@dataclasses.dataclass(frozen=True)
class BaseState:
    """The versions of the frozen base, and what each client has seen of them.

    A weight is first given by the factors that the rounds added. Once these hold more numbers than the weight itself,
    the oldest are folded into a value, which the same operations in the same order lead to: no bit moves.
    """

    version: int = 0
    folded: dict[str, tuple[int, Tensor]] = dataclasses.field(default_factory=dict)
    """Name -> (version, the weight's value then)."""
    recent: tuple[BaseDelta, ...] = ()
    """Later versions, oldest first."""
    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    """Client -> the last version that was sent to it."""

    def advance(self, change: Mapping[str, tuple[Tensor, ...]], initial: Mapping[str, Tensor]) -> BaseState:
        """The next version: ``change`` on top of this one."""
        if not change:
            return self
        version = self.version + 1
        grown = dataclasses.replace(self, version=version, recent=(*self.recent, BaseDelta(version, dict(change))))
        for name in change:
            while grown._numbers(name) > initial[name].numel():
                grown = grown._fold_oldest(name, initial)
        return grown

    def since(self, version: int, initial: Mapping[str, Tensor]) -> tuple[BaseDelta, ...]:
        """What a client that has seen ``version`` lacks: the missing changes, or a weight's value where smaller.

        Changes of a weight that are larger together than its value have been folded into it by ``advance``.
        """
        missing: dict[int, dict[str, tuple[Tensor, ...]]] = {}
        for name in self.changed():
            later = [(d.version, d.tensors[name]) for d in self.recent if d.version > version and name in d.tensors]
            if name in self.folded and self.folded[name][0] > version:
                later = [(self.version, (self.value(name, initial),))]
            for at, change in later:
                missing.setdefault(at, {})[name] = change
        return tuple(BaseDelta(at, missing[at]) for at in sorted(missing))

    def changed(self) -> list[str]:
        """Names of the weights that some version changed."""
        return sorted({*self.folded, *(name for delta in self.recent for name in delta.tensors)})

    def value(self, name: str, initial: Mapping[str, Tensor]) -> Tensor:
        """The weight as it is now."""
        value = self.folded[name][1] if name in self.folded else initial[name]
        for delta in self.recent:
            if name in delta.tensors:
                value = apply_change(value, delta.tensors[name])
        return value

    def _numbers(self, name: str) -> int:
        return sum(_size(delta.tensors[name]) for delta in self.recent if name in delta.tensors)

    def _fold_oldest(self, name: str, initial: Mapping[str, Tensor]) -> BaseState:
        at = next(i for i, delta in enumerate(self.recent) if name in delta.tensors)
        delta = self.recent[at]
        start = self.folded[name][1] if name in self.folded else initial[name]
        rest = {other: change for other, change in delta.tensors.items() if other != name}
        shorter = (BaseDelta(delta.version, rest),) if rest else ()
        folded = {**self.folded, name: (delta.version, apply_change(start, delta.tensors[name]))}
        return dataclasses.replace(self, folded=folded, recent=(*self.recent[:at], *shorter, *self.recent[at + 1 :]))


@message
@dataclasses.dataclass(frozen=True)
class ServerState:
    """All that the server knows between two rounds."""

    rounds: int
    """Rounds finished: a paper's round t is ``rounds + 1``."""
    groups: dict[int, GroupState]
    alive: dict[str, Ids]
    """Layer -> living pairs, the same for all groups. Pruning changes nothing else: pairs never move."""
    assignment: dict[JobId, int] = dataclasses.field(default_factory=dict)
    """Job -> group. A job that isn't here is at home: in the group that ``home`` names."""
    base: BaseState = dataclasses.field(default_factory=BaseState)
    home: int = 0
    """The group of jobs that no grouping has met yet."""
    scores: dict[JobId, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Job -> layer -> the importance of each pair as the job measured it (r,), nan where it never did; kept only for
    selections that read it."""
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)
    """Job -> what its own training changed over the rounds (features,); kept only for groupings with a memory."""
    ranks: dict[JobId, int] = dataclasses.field(default_factory=dict)
    """Job -> the rank that it has come down to by itself."""
    pruned: float | None = None
    """What the last round's cut took from the product: its relative error in Frobenius norm; None: nothing was cut."""

    @property
    def active(self) -> dict[str, Ids]:
        """Layer -> active components: ``alive``, the name that this has in checkpoints."""
        return self.alive

    @property
    def clusters(self) -> list[int]:
        """Ids of the groups that were trained: all but a home that only waits for jobs, ascending."""
        return sorted(set(self.groups) - {self.home}) or [self.home]

    def group_of(self, job: JobId) -> int:
        """The group whose weights a job gets."""
        return self.assignment.get(job, self.home)


def apply_change(weight: Tensor, change: tuple[Tensor, ...]) -> Tensor:
    """One version's change of one base weight: ``(value,)`` replaces it, ``(B, A)`` adds B A (out, in)."""
    if len(change) == 1:
        return change[0].clone()
    left, right = change
    return weight + (left @ right).to(weight.dtype)


def zero_scores(ranks: Iterable[tuple[str, int]]) -> dict[str, Tensor]:
    """Layer -> zeros (r,): before anything was measured, all pairs tie."""
    return {layer: torch.zeros(rank, dtype=torch.float64) for layer, rank in ranks}


def _size(change: tuple[Tensor, ...]) -> int:
    return sum(part.numel() for part in change)
