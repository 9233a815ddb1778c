"""Read-only view of a round for the parts that run on the server."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Plan, Update
from flt.protocol.state import GroupState, ServerState

_SERVER = 2  # keeps these random streams apart from the cohort's, which have the same seed and round


@dataclasses.dataclass(frozen=True)
class View:
    """Read-only view of the state before aggregation, with what the parts need of the round."""

    layout: Layout
    state: ServerState
    jobs: int
    """Number of jobs in the whole federation."""
    seed: int
    plan: Plan = Plan()
    """Plan of the current round."""
    base: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Initial values of the frozen weights that the recipe may change."""
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of jobs with each head, if jobs have different heads."""
    arrived: Mapping[JobId, Update] = dataclasses.field(default_factory=dict)
    """Update of each job in this round, as received by the server."""
    starts: Mapping[int, GroupState] = dataclasses.field(default_factory=dict)
    """State with which each group begins the aggregation, see :meth:`with_group_starts`."""

    def sent_to(self, job: JobId) -> dict[str, Tensor]:
        """Returns the weights that the job was sent in this round, at the initial rank."""
        return self.state.groups[self.state.group_of(job)].weights

    def sent(self, job: JobId, name: str) -> Tensor:
        """Returns one tensor that the job was sent in this round, at the initial rank: its group's or the base's."""
        weights = self.sent_to(job)
        return weights[name] if name in weights else self.frozen[name]

    @functools.cached_property
    def frozen(self) -> dict[str, Tensor]:
        """Values before this round of the base weights that the recipe may change."""
        return {name: self.state.base.value(name, self.base) for name in self.base}

    def group(self, gid: int) -> GroupState:
        """Returns the state with which a group begins the aggregation. Entries that no client sends keep its values."""
        return self.starts[gid] if gid in self.starts else self.state.groups[gid]

    def with_group_starts(self, members: Mapping[int, Sequence[Update]], weight: Callable[[Update], int]) -> View:
        """Returns a view in which each group begins with the mean of the weights that its members were sent.

        If all members come from the group itself, this mean is the group's own weights. If they come from several
        groups, entries that no client sent are the mean of the members' broadcasts, and the group's change is measured
        from this mean. A group keeps its scores, its slots and the heads that no member has. A new group gets the mean
        over its members' groups for these too.

        Args:
            members: Updates that are averaged in each group.
            weight: Returns the weight of an update in the mean.
        """
        starts = {gid: self._start(gid, updates, weight) for gid, updates in members.items()}
        return dataclasses.replace(self, starts=starts)

    def _start(self, gid: int, members: Sequence[Update], weight: Callable[[Update], int]) -> GroupState:
        shares: Counter[int] = Counter()
        for update in members:
            shares[self.state.group_of(update.job)] += weight(update)
        sources = [(shares[at], self.state.groups[at]) for at in sorted(shares)]
        known = self.state.groups.get(gid)
        weights = _mean([(share, group.weights) for share, group in sources])
        if known is not None:
            sent = {name for update in members for name in update.tensors}
            others = {name for name in known.weights if self.layout.entries[name].variant} - sent  # heads
            return dataclasses.replace(known, weights={**weights, **{name: known.weights[name] for name in others}})
        slots = {slot: _mean([(share, group.slots.get(slot, {})) for share, group in sources])
                 for slot in sorted({slot for _, group in sources for slot in group.slots})}  # fmt: skip
        return GroupState(weights, _mean([(share, group.scores) for share, group in sources]), slots)

    def full(self, update: Update) -> dict[str, Tensor]:
        """Returns an update's weights at the initial rank. Entries that weren't sent have their broadcast value."""
        weights = dict(self.sent_to(update.job))
        for name, part in update.tensors.items():
            if name in weights:
                weights[name] = self.layout.put(name, weights[name], update.kept, part)
        return weights

    def untrained_update(self, update: Update) -> Update:
        """Returns the update that the job would have sent without training: the values that it was sent."""
        tensors = {name: self.layout.take(name, self.sent(update.job, name), update.kept) for name in update.tensors}
        return dataclasses.replace(update, tensors=tensors)

    def sharers(self, name: str) -> int:
        """Returns the number of jobs in the whole federation that have a tensor."""
        return self.heads.get(self.layout.entries[name].variant, self.jobs)

    def generator(self, *stream: int) -> np.random.Generator:
        """Returns the random generator of one purpose in this round, the same in every process and after a resume."""
        return np.random.default_rng([self.seed, self.state.rounds, _SERVER, *stream])


def _mean(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Returns the weighted mean of each tensor, in the tensor's type. A part without the tensor counts as zero."""
    if len(parts) == 1:
        return dict(parts[0][1])
    total = sum(share for share, _ in parts)
    kinds = {name: tensor for _, tensors in reversed(parts) for name, tensor in tensors.items()}
    means = {}
    for name, kind in kinds.items():
        terms = [share * tensors[name].double() for share, tensors in parts if name in tensors]
        means[name] = (torch.stack(terms).sum(dim=0) / total).to(kind.dtype)
    return means
