"""What the parts of the server see of a round."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from flt.layout import TRAVELLING, Layout
from flt.messages import JobId, Plan, Update
from flt.state import GroupState, ServerState

_SERVER = 2  # keeps these streams apart from the cohort's of the same seed and round


@dataclasses.dataclass(frozen=True)
class Job:
    """The unit of local training, as the server knows it: no task, no data."""

    client: int
    index: int
    rank: int
    """Pairs per layer that the client can train."""
    head: str = ""
    """Which head it has, where jobs have different ones: heads of different shapes can't be kept from the server."""

    @property
    def id(self) -> JobId:
        """The key of the job in messages and states."""
        return (self.client, self.index)


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
        """The group before this round; one that is new this round begins as its members' home."""
        return self.state.groups.get(gid, self.state.groups[self.state.home])

    def full(self, update: Update) -> dict[str, Tensor]:
        """An update at the initial rank: what wasn't sent takes its broadcast value."""
        weights = dict(self.sent_to(update.job))
        for name, part in update.tensors.items():
            if name in weights:
                weights[name] = self.layout.put(name, weights[name], update.kept, part)
        return weights

    def sharers(self, name: str) -> int:
        """Jobs in the whole federation that have a tensor."""
        return self.heads.get(self.layout.entries[name].variant, self.jobs)

    def generator(self, *stream: int) -> np.random.Generator:
        """The generator of one purpose in this round: the same in every process and after every resume."""
        return np.random.default_rng([self.seed, self.state.rounds, _SERVER, *stream])

    @functools.cached_property
    def travelling(self) -> list[str]:
        """Names of the tensors that every job has, in name order: where heads differ, without them."""
        return [name for name in self.layout.names(TRAVELLING) if not self.layout.entries[name].variant]
