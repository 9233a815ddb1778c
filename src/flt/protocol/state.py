"""States of the server and of the clients. The codec of :mod:`flt.protocol.wire_format` writes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flt.protocol.messages import BaseDelta, Ids, JobId
from flt.protocol.wire_format import message


@message
@dataclasses.dataclass(frozen=True)
class ClientState:
    """Private state that a client keeps from one fit to the next and never sends.

    All tensors have the initial rank and are indexed by component id.
    """

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Tensors of private roles."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Tensors that local callbacks keep, such as SCAFFOLD's ``c_i``."""


@message
@dataclasses.dataclass(frozen=True)
class GroupState:
    """State of one group of jobs whose updates are averaged with each other."""

    weights: dict[str, Tensor]
    """Adapter and head at the initial rank."""
    scores: dict[str, Tensor]
    """Importance of each component (r,), by layer."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Tensors that the rule, the importance and the server optimiser keep, such as SCAFFOLD's ``c``."""


@message
@dataclasses.dataclass(frozen=True)
class BaseState:
    """Versions of the frozen base weights, and the version that each client has received.

    The changes of a weight are first kept as the factors that the rounds added. Once these factors hold more numbers
    than the weight itself, the oldest ones are folded into a value of the weight. Folding applies the same operations
    in the same order, so the result is the same bit by bit.
    """

    version: int = 0
    folded: dict[str, tuple[int, Tensor]] = dataclasses.field(default_factory=dict)
    """Name -> (version, value of the weight at this version)."""
    recent: tuple[BaseDelta, ...] = ()
    """Changes that aren't folded yet, oldest first."""
    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    """Last version that each client has received, by client."""

    def advance(self, change: Mapping[str, tuple[Tensor, ...]], initial: Mapping[str, Tensor]) -> BaseState:
        """Returns the state after the next version, which applies ``change`` to the current weights."""
        if not change:
            return self
        version = self.version + 1
        grown = dataclasses.replace(self, version=version, recent=(*self.recent, BaseDelta(version, dict(change))))
        for name in change:
            while grown._numbers(name) > initial[name].numel():
                grown = grown._fold_oldest(name, initial)
        return grown

    def since(self, version: int, initial: Mapping[str, Tensor]) -> tuple[BaseDelta, ...]:
        """Returns the changes that a client at ``version`` lacks, or a weight's value where that is smaller.

        If the changes of a weight are together larger than its value, ``advance`` has folded them into the value.
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
        """Returns the names of the weights that any version changed."""
        return sorted({*self.folded, *(name for delta in self.recent for name in delta.tensors)})

    def value(self, name: str, initial: Mapping[str, Tensor]) -> Tensor:
        """Returns the current value of a weight."""
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
    """Complete state of the server between two rounds."""

    rounds: int
    """Number of finished rounds: a paper's round t is ``rounds + 1``."""
    groups: dict[int, GroupState]
    alive: dict[str, Ids]
    """Ids of the active components by layer, the same for all groups. Pruning changes only this field: components keep
    their ids and their places in the tensors."""
    assignment: dict[JobId, int] = dataclasses.field(default_factory=dict)
    """Group of each job. A job without an entry belongs to the group ``home``."""
    base: BaseState = dataclasses.field(default_factory=BaseState)
    home: int = 0
    """Group of the jobs that no grouping has assigned yet."""
    scores: dict[JobId, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Importance of each component as the job itself measured it (r,), by job and layer; nan where it never did. Kept
    only for selections that read it."""
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)
    """Change that the job's own training made over the rounds (features,), by job. Kept only for groupings with a
    memory."""
    ranks: dict[JobId, int] = dataclasses.field(default_factory=dict)
    """Rank to which the job has pruned itself, by job."""
    pruned: float | None = None
    """Relative error in Frobenius norm that the last round's pruning caused in the product BA; None: nothing pruned."""

    @property
    def active(self) -> dict[str, Ids]:
        """Ids of the active components by layer. The field is called ``alive`` because checkpoints use this name."""
        return self.alive

    @property
    def clusters(self) -> list[int]:
        """Ids of the trained groups, ascending: all groups but ``home``, or ``home`` if there is no other group."""
        return sorted(set(self.groups) - {self.home}) or [self.home]

    def group_of(self, job: JobId) -> int:
        """Returns the id of the group whose weights a job gets."""
        return self.assignment.get(job, self.home)


def apply_change(weight: Tensor, change: tuple[Tensor, ...]) -> Tensor:
    """Applies a change to a base weight: ``(value,)`` replaces the weight, ``(B, A)`` adds B A (out, in)."""
    if len(change) == 1:
        return change[0].clone()
    left, right = change
    return weight + (left @ right).to(weight.dtype)


def zero_scores(ranks: Iterable[tuple[str, int]]) -> dict[str, Tensor]:
    """Returns scores of zero (r,) by layer: before anything is measured, all components are equally important."""
    return {layer: torch.zeros(rank, dtype=torch.float64) for layer, rank in ranks}


def _size(change: tuple[Tensor, ...]) -> int:
    return sum(part.numel() for part in change)
