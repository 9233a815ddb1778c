"""Read-only view of a round for the parts that run on the server."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from flt.protocol.layout import Layout
from flt.protocol.messages import JobId, Plan, Update
from flt.protocol.state import GroupState, ServerState


class HeldOut(Protocol):
    """Measures the loss of weights on the examples that the clients of a cluster hold out."""

    def loss(self, gid: int, weights: Mapping[str, Tensor], examples: int) -> float | None:
        """Returns the mean loss over at most ``examples`` held-out examples of the jobs in a group of this round.

        None if these jobs hold out no examples.
        """

    def record(self, gid: int, shares: Mapping[int, float], gain: float) -> None:
        """Notes what was chosen for a group: other group -> its share, and by how much the loss falls."""


_SERVER = 2  # part of the random seeds below, so that they differ from the seeds of the cohorts


@dataclasses.dataclass(frozen=True)
class View:
    """Read-only view of a round: the state before the aggregation, and further inputs of the parts."""

    layout: Layout
    state: ServerState
    jobs: int
    """Number of jobs in the whole federation."""
    seed: int
    """Seed of the run."""
    plan: Plan = Plan()
    """Plan of the current round."""
    base: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Initial values of the base weights that the recipe may change, by name; empty if it changes none."""
    heads: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Number of jobs with each head, by the name (variant) of the head; empty if all jobs have the same head."""
    arrived: Mapping[JobId, Update] = dataclasses.field(default_factory=dict)
    """Updates that the server received in this round, by job.

    It is empty before the aggregation. While updates are added to running sums, it contains only the update that is
    being added.
    """
    buffers: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    """Initial values of the module's buffers, by name."""
    held_out: HeldOut | None = None
    """Held-out examples of the round's groups. None if the recipe doesn't use them, or if nothing can be evaluated."""
    starts: Mapping[int, GroupState] = dataclasses.field(default_factory=dict)
    """State with which each group begins the aggregation, by group id; set by :meth:`with_group_starts`."""

    def sent_to(self, job: JobId) -> dict[str, Tensor]:
        """Returns the weights of the job's group at the initial rank. The payload of the job was built from them."""
        return self.state.groups[self.state.group_of(job)].weights

    def sent(self, job: JobId, name: str) -> Tensor:
        """Returns a tensor that the job was sent, at the initial rank: a tensor of the job's group or of the base."""
        weights = self.sent_to(job)
        return weights[name] if name in weights else self.frozen[name]

    @functools.cached_property
    def frozen(self) -> dict[str, Tensor]:
        """Base weights that the recipe may change, by name, with their values before this round."""
        return {name: self.state.base.value(name, self.base) for name in self.base}

    def sent_buffer(self, job: JobId, name: str) -> Tensor:
        """Returns the value of a buffer with which the job began its fit."""
        return self.state.groups[self.state.group_of(job)].buffers.get(name, self.buffers[name])

    def group_buffer(self, gid: int, name: str) -> Tensor:
        """Returns the value of a buffer with which a group begins the aggregation."""
        return self.group(gid).buffers.get(name, self.buffers[name])

    def group(self, gid: int) -> GroupState:
        """Returns the state with which a group begins the aggregation. The group's change is relative to this state."""
        return self.starts[gid] if gid in self.starts else self.state.groups[gid]

    def with_group_starts(self, members: Mapping[int, Sequence[Update]], weight: Callable[[Update], int]) -> View:
        """Returns a view in which each group begins with the mean of the weights that its members were sent.

        If all members were in this group before, the mean equals the group's own weights. If members come from other
        groups, the group's change is measured from the mean, and an entry that no client sent gets the mean's value.
        An existing group keeps its scores, its slots, its buffers, and the heads that no member has. The scores, slots
        and heads of a new group are means over its members' previous groups. Its buffers are those of the previous
        group of most members.

        Args:
            members: Updates that are averaged in each group, by group id.
            weight: Function that returns the weight of an update in the mean.
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
        _, nearest = max(sources, key=lambda source: source[0])  # buffers such as counters have no mean
        scores = _mean([(share, group.scores) for share, group in sources])
        return GroupState(weights, scores, slots, nearest.buffers)

    def full(self, update: Update) -> dict[str, Tensor]:
        """Returns an update's weights at the initial rank. Entries that weren't sent back have the received values."""
        weights = dict(self.sent_to(update.job))
        for name, part in update.tensors.items():
            if name in weights:
                weights[name] = self.layout.put(name, weights[name], update.kept, part)
        return weights

    def untrained_update(self, update: Update) -> Update:
        """Returns the update that the job would have sent without training. It contains the received values."""
        tensors = {name: self.layout.take(name, self.sent(update.job, name), update.kept) for name in update.tensors}
        return dataclasses.replace(update, tensors=tensors)

    def sharers(self, name: str) -> int:
        """Returns the number of jobs in the federation whose model has this tensor. Heads can differ between jobs."""
        return self.heads.get(self.layout.entries[name].variant, self.jobs)

    def generator(self, *stream: int) -> np.random.Generator:
        """Returns a random generator for one purpose in this round. It is the same in every process and after a resume.

        Args:
            stream: Numbers that distinguish the purpose from others in the same round.
        """
        return np.random.default_rng([self.seed, self.state.rounds, _SERVER, *stream])


def _mean(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Returns the weighted mean of each tensor, in the tensor's dtype. Where a tensor is missing, it counts as zero."""
    if len(parts) == 1:
        return dict(parts[0][1])
    total = sum(share for share, _ in parts)
    kinds = {name: tensor for _, tensors in reversed(parts) for name, tensor in tensors.items()}
    means = {}
    for name, kind in kinds.items():
        terms = [share * tensors[name].double() for share, tensors in parts if name in tensors]
        means[name] = (torch.stack(terms).sum(dim=0) / total).to(kind.dtype)
    return means
