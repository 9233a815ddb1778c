"""States that the server and the clients keep between rounds, encoded by :mod:`flt.protocol.messages`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flt.protocol.codec import OMITTED_IF_EMPTY
from flt.protocol.field_types import Finite, Whole
from flt.protocol.messages import BaseDelta, Ids, JobId, message


@message
@dataclasses.dataclass(frozen=True)
class ClientState:
    """State that a client keeps for one job from one fit to the next, and never sends.

    All tensors have the initial rank. Rows of A and columns of B are indexed by component id.
    """

    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Tensors whose roles are private, by name."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Slot -> name of a tensor -> extra tensor of a local callback, such as SCAFFOLD's ``c_i``."""
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """Name of a buffer -> its value, for the private buffers that the job's training has changed."""


@message
@dataclasses.dataclass(frozen=True)
class StoredClientState:
    """Content of a file with a client state. It names the run and the job, so that files can't be mixed up."""

    run: str
    """Identity of the run, see :mod:`flt.callbacks.checkpoint_files`. Empty if the run has none."""
    job: JobId
    state: ClientState


@message
@dataclasses.dataclass(frozen=True)
class GroupState:
    """State of one group of jobs. The updates of a group are aggregated into one set of weights."""

    weights: dict[str, Tensor]
    """Tensors of the adapter and the head at the initial rank, by name."""
    scores: dict[str, Tensor]
    """Layer -> importance of each component, shape (r,)."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Slot -> name of a tensor -> extra tensor of the aggregation rule, the importance or the server optimiser.

    An example is SCAFFOLD's ``c``.
    """
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """Name of a buffer -> its value, for the buffers that training has changed. Others have their initial values."""


@message
@dataclasses.dataclass(frozen=True)
class BaseState:
    """Versions of the base weights, and the version that each client has received.

    The changes of a weight are first kept as they are in ``BaseDelta``: as two factors, or as a new value. As soon as
    the kept changes of a weight contain more numbers than the weight itself, the oldest change is folded: the change is
    applied to the weight, and only the resulting value is kept. Folding applies the same operations in the same order
    as a client that receives the changes one by one. The folded weight is therefore bit-identical to the client's.
    """

    version: Whole = 0
    """Number of the current version. The initial weights are version 0."""
    folded: dict[str, tuple[Whole, Tensor]] = dataclasses.field(default_factory=dict)
    """Name of a weight -> (version up to which changes are folded, value of the weight at this version)."""
    recent: tuple[BaseDelta, ...] = ()
    """Changes that aren't folded yet, oldest first."""
    seen: dict[int, Whole] = dataclasses.field(default_factory=dict)
    """Client -> version with which the client trained its latest update. A client without an entry has version 0."""

    def advance(self, change: Mapping[str, tuple[Tensor, ...]], initial: Mapping[str, Tensor]) -> BaseState:
        """Returns the state with one more version of the base weights.

        Args:
            change: Name of a weight -> its change, as in ``BaseDelta``. If empty, there is no new version.
            initial: Name of a weight -> its value in version 0.
        """
        if not change:
            return self
        version = self.version + 1
        grown = dataclasses.replace(self, version=version, recent=(*self.recent, BaseDelta(version, dict(change))))
        for name in change:
            while grown._numbers(name) > initial[name].numel():
                grown = grown._fold_oldest(name, initial)
        return grown

    def since(self, version: int, initial: Mapping[str, Tensor]) -> tuple[BaseDelta, ...]:
        """Returns the changes that a client with ``version`` has not received yet.

        If one of the missing changes of a weight has been folded, the weight's current value replaces all its missing
        changes.
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
        """Returns the names of the weights that have changed since version 0."""
        return sorted({*self.folded, *(name for delta in self.recent for name in delta.tensors)})

    def value(self, name: str, initial: Mapping[str, Tensor]) -> Tensor:
        """Returns the value of a weight in the current version."""
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

    rounds: Whole
    """Number of finished rounds. During a paper's round t, this number is t - 1."""
    groups: dict[Whole, GroupState]
    alive: dict[str, Ids]
    """Layer -> ids of the active components, the same for all groups.

    The active components are those that remain under the current rank budget. Pruning by scores changes only this
    field: all components keep their ids and their places in the tensors.
    """
    assignment: dict[JobId, Whole] = dataclasses.field(default_factory=dict)
    """Job -> id of its group. A job without an entry belongs to the group ``home``."""
    base: BaseState = dataclasses.field(default_factory=BaseState)
    """State of the base weights."""
    home: Whole = 0
    """Id of the group of the jobs that no grouping has assigned to a group yet."""
    scores: dict[JobId, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Job -> layer -> importance of each component as measured by the job itself, shape (r,).

    The importance is nan for a component that the job has never measured. Filled only with ``selection.scores=client``.
    """
    directions: dict[JobId, Tensor] = dataclasses.field(default_factory=dict)
    """Job -> what the grouping remembers of the changes that the job's training has made, shape (features,).

    All vectors have the same length. Filled only with ``grouping.memory``: a sum over the rounds, or the rounds side by
    side.
    """
    ranks: dict[JobId, Whole] = dataclasses.field(default_factory=dict)
    """Job -> rank to which the job has reduced itself by self-pruning. Other jobs have no entry."""
    pruned: float | None = None
    """Relative error, in Frobenius norm, that pruning has caused in the products B A in the most recent round.

    None if nothing was pruned in that round. Also None if A or B is private: the server can't compute the error then.
    """
    validation: dict[Whole, float] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """Number of a round -> validation loss of its global model. Filled only if the schedule reads it."""

    bandit: dict[str, tuple[Finite, ...]] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """State of ``grouping=bandit``, see :class:`flt.algorithm.grouping.bandit.BanditGrouping`.

    ``choices`` and ``rewards`` have a number for each arm; ``latest`` has the place of the latest arm and its loss.
    """

    @property
    def active(self) -> dict[str, Ids]:
        """Layer -> ids of the active components. The field is called ``alive`` because checkpoints use this name."""
        return self.alive

    @property
    def clusters(self) -> list[int]:
        """Ids of the trained groups, ascending.

        These are all groups except ``home``. If there is no other group, ``home`` itself is trained.
        """
        return sorted(set(self.groups) - {self.home}) or [self.home]

    def group_of(self, job: JobId) -> int:
        """Returns the id of the group whose weights a job receives."""
        return self.assignment.get(job, self.home)


def apply_change(weight: Tensor, change: tuple[Tensor, ...]) -> Tensor:
    """Returns a base weight after a change: ``(value,)`` replaces the weight, ``(B, A)`` adds the product B A to it."""
    if len(change) == 1:
        return change[0].clone()
    left, right = change
    return weight + (left @ right).to(weight.dtype)


def zero_scores(ranks: Iterable[tuple[str, int]]) -> dict[str, Tensor]:
    """Returns layer -> a score of zero for each component, shape (r,).

    Before the first measurement, all components count as equally important.

    Args:
        ranks: (name, initial rank r) of each layer.
    """
    return {layer: torch.zeros(rank, dtype=torch.float64) for layer, rank in ranks}


def _size(change: tuple[Tensor, ...]) -> int:
    return sum(part.numel() for part in change)
