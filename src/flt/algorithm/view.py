"""What the parts of the server see of a round."""

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

_SERVER = 2  # keeps these streams apart from the cohort's of the same seed and round


@dataclasses.dataclass(frozen=True)
class View:
    """A read-only look at the state before aggregation, which keeps the parts short."""

    layout: Layout
    state: ServerState
    jobs: int
    """Jobs in the whole federation."""
    seed: int
    plan: Plan = Plan()
    """Of the round that runs."""
    base: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Initial values of the frozen weights that the recipe may change."""
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Head -> jobs that have it, where jobs have different ones."""
    arrived: Mapping[JobId, Update] = dataclasses.field(default_factory=dict)
    """Job -> its update of this round, as it was sent."""
    starts: Mapping[int, GroupState] = dataclasses.field(default_factory=dict)
    """Group -> what it begins the aggregation with, see :meth:`starting`."""

    def sent_to(self, job: JobId) -> dict[str, Tensor]:
        """The weights that the job was sent this round, at the initial rank."""
        return self.state.groups[self.state.group_of(job)].weights

    def sent(self, job: JobId, name: str) -> Tensor:
        """One tensor that the job was sent this round, at the initial rank: of its group, or of the base."""
        weights = self.sent_to(job)
        return weights[name] if name in weights else self.frozen[name]

    @functools.cached_property
    def frozen(self) -> dict[str, Tensor]:
        """The base weights that the recipe may change, as they are before this round."""
        return {name: self.state.base.value(name, self.base) for name in self.base}

    def group(self, gid: int) -> GroupState:
        """What a group begins the aggregation with: entries that nobody sends stay as they are in it."""
        return self.starts[gid] if gid in self.starts else self.state.groups[gid]

    def starting(self, members: Mapping[int, Sequence[Update]], weight: Callable[[Update], int]) -> View:
        """A view in which each group begins with the mean of what its members were sent.

        For members that come from the group itself that is the group as it is. Where they come from several groups, a
        part of the weights that nobody sent is the mean of the members' broadcasts, and a group's change is counted
        from there. Heads that no member has, scores and slots stay those of the group; one that is new has the mean of
        its members' groups'.

        Args:
            members: Group -> the updates that are averaged in it.
            weight: Of an update in that mean.
        """
        return dataclasses.replace(self, starts={gid: self._start(gid, its, weight) for gid, its in members.items()})

    def _start(self, gid: int, members: Sequence[Update], weight: Callable[[Update], int]) -> GroupState:
        shares: Counter[int] = Counter()
        for update in members:
            shares[self.state.group_of(update.job)] += weight(update)
        sources = [(shares[at], self.state.groups[at]) for at in sorted(shares)]
        known = self.state.groups.get(gid)
        weights = _mean([(share, group.weights) for share, group in sources])
        if known is not None:
            sent = {name for update in members for name in update.tensors}
            theirs = {name for name in known.weights if self.layout.entries[name].variant} - sent
            return dataclasses.replace(known, weights={**weights, **{name: known.weights[name] for name in theirs}})
        slots = {slot: _mean([(share, group.slots.get(slot, {})) for share, group in sources])
                 for slot in sorted({slot for _, group in sources for slot in group.slots})}  # fmt: skip
        return GroupState(weights, _mean([(share, group.scores) for share, group in sources]), slots)

    def full(self, update: Update) -> dict[str, Tensor]:
        """An update at the initial rank: what wasn't sent takes its broadcast value."""
        weights = dict(self.sent_to(update.job))
        for name, part in update.tensors.items():
            if name in weights:
                weights[name] = self.layout.put(name, weights[name], update.kept, part)
        return weights

    def untrained_update(self, update: Update) -> Update:
        """The update that the job would have sent without training: the tensors that it was sent."""
        tensors = {name: self.layout.take(name, self.sent(update.job, name), update.kept) for name in update.tensors}
        return dataclasses.replace(update, tensors=tensors)

    def sharers(self, name: str) -> int:
        """Jobs in the whole federation that have a tensor."""
        return self.heads.get(self.layout.entries[name].variant, self.jobs)

    def generator(self, *stream: int) -> np.random.Generator:
        """The generator of one purpose in this round: the same in every process and after every resume."""
        return np.random.default_rng([self.seed, self.state.rounds, _SERVER, *stream])


def _mean(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The weighted mean of each tensor, in its own type; one that some parts lack counts as zero there."""
    if len(parts) == 1:
        return dict(parts[0][1])
    total = sum(share for share, _ in parts)
    kinds = {name: tensor for _, tensors in reversed(parts) for name, tensor in tensors.items()}
    means = {}
    for name, kind in kinds.items():
        terms = [share * tensors[name].double() for share, tensors in parts if name in tensors]
        means[name] = (torch.stack(terms).sum(dim=0) / total).to(kind.dtype)
    return means
