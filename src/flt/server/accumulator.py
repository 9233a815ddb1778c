"""What has arrived of a round: all updates, or for sums over clients, the sums alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flt.algorithm.rule.base import Summable, Totals
from flt.algorithm.rule.exact_sum import LARGEST
from flt.core.errors import InputError
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update
from flt.protocol.state import ServerState

if TYPE_CHECKING:
    from flt.server.aggregation import ServerAggregation


@dataclasses.dataclass
class Sums:
    """The running sums of a round whose recipe streams.

    Attributes:
        totals: Of what the members sent.
        start: Of what they were sent, where a server optimiser steps from there.
    """

    totals: Totals = dataclasses.field(default_factory=dict)
    start: Totals = dataclasses.field(default_factory=dict)

    def merge(self, other: Sums) -> None:
        """Adds other sums, all of them or none.

        Raises:
            InputError: They are too large together.
        """
        try:
            self.totals, self.start = _together(self.totals, other.totals), _together(self.start, other.start)
        except OverflowError as error:
            raise InputError.of("updates", error, "smaller numbers; lower local.lr") from error


class UpdateAccumulator:
    """Takes the updates of a round one by one, in any order.

    Where the recipe streams, an update is added to the sums as soon as it is there, and what stays of it has the
    shapes of its tensors and no numbers: a cohort of any size takes the room of one update, and some kilobytes for
    each job's metrics and pairs.

    Args:
        server: Checks and sums.
        state: The state that the round's payloads came from.
        cohort: The jobs that were asked.
        careful: Whether the round goes on where an update can't be added: then nothing of it may be in the sums, and
            what couldn't be added at the round's end is refused when it arrives.
    """

    def __init__(
        self, server: ServerAggregation, state: ServerState, cohort: Sequence[Job], check_range: bool = False
    ) -> None:
        self.server, self.state, self.check_range = server, state, check_range
        self.asked = {job.id: job for job in cohort}
        self.updates: dict[JobId, Update] = {}
        self.failures: dict[JobId, Failure] = {}
        """Of the jobs that the round goes on without."""
        self.sums = Sums() if server.recipe.streams else None
        self._arrived: dict[JobId, Update] = {}
        # one view for all updates, since it holds the base weights that it had to compute
        self._view = dataclasses.replace(server.view(state), arrived=self._arrived)

    def take(self, update: Update) -> None:
        """Checks an update, and keeps it or adds it to the sums.

        Raises:
            InputError: It isn't what was asked for, has the wrong shapes, or holds a number that isn't finite, or one
                that is too large.
        """
        job = self.asked.get(update.job)
        (validated,) = self.server.validate(self.state, [job] if job else [], [update])
        if update.job in self.updates:
            raise InputError.of(f"update of client {update.job[0]}, job {update.job[1]}", "twice", "one of each job")
        if self.check_range:
            self._add_if_small(validated)
        elif self.sums is not None:
            self._include(validated, self.sums)
        self.updates[update.job] = strip_values(validated) if self.sums is not None else validated

    def sendable(self) -> list[Update]:
        """What another process needs of the updates, by job: without tensors where they were added to the sums."""
        stripped = self.sums is not None
        return [dataclasses.replace(u, tensors={}) if stripped else u for u in self.sorted()]

    def fail(self, failure: Failure) -> None:
        """Notes that a job sends no update."""
        self.failures[failure.job] = failure

    def receive(self, updates: Iterable[Update], failures: Iterable[Failure] = ()) -> None:
        """Takes what another process found ``sendable``, and its failures; the sums come apart from it."""
        for failure in failures:
            self.fail(failure)
        for update in updates:
            self.updates[update.job] = self._shaped(update) if self.sums is not None else update

    def _shaped(self, update: Update) -> Update:
        plan, head = self.server.recipe.plan(self.state.rounds), self.asked[update.job].head
        layout = self.server.layout.for_head(head)
        shapes = {
            self.server.layout.at(name, head): torch.empty(layout.shape(name, update.kept), device="meta")
            for name in layout.names(set(plan.train) - set(plan.private))
        }
        return dataclasses.replace(update, tensors=shapes)

    def sorted(self) -> list[Update]:
        """The updates by job."""
        return [self.updates[job] for job in sorted(self.updates)]

    def _include(self, update: Update, sums: Sums) -> None:
        rule = self.server.recipe.rule
        assert isinstance(rule, Summable), "recipes with others don't stream"
        self._arrived[update.job] = update
        try:
            rule.include(self._view, update, sums.totals)
            if self.server.recipe.server_optimizer.steps:
                rule.include(self._view, self.server.untrained_update(self._view, update), sums.start)
        finally:
            del self._arrived[update.job]

    def _add_if_small(self, update: Update) -> None:
        """Refuses an update of which as many as were asked could be too large together, whether or not they stream.

        So the round's end meets no sum that is too large, and what is dropped depends on the update alone, and neither
        on the order of arrival nor on who added it up.
        """
        rule, part = self.server.recipe.rule, Sums()
        reaches = [update.examples * _largest(values) for _, values in update.scores.values()]
        if isinstance(rule, Summable):
            self._include(update, part)
            reaches += [its.reach for its in (*part.totals.values(), *part.start.values())]
        elif rule.adds:
            reaches += [rule.weight(update) * max(1.0, _largest(tensor)) for tensor in update.tensors.values()]
        reach = max(reaches, default=0.0)
        if not reach * len(self.asked) < LARGEST:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise InputError.of(who, f"numbers up to {reach:.1e}", "smaller numbers; lower local.lr")
        if self.sums is not None:
            self.sums.merge(part)


def _together(one: Totals, other: Totals) -> Totals:
    return {**one, **{key: one[key].plus(term) if key in one else term for key, term in other.items()}}


def _largest(tensor: Tensor) -> float:
    """The largest magnitude, rounded up as exact sums do it."""
    return float(tensor.abs().max().ceil()) if tensor.numel() else 0.0


def strip_values(update: Update) -> Update:
    """An update with the names and shapes of its tensors, without their numbers."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in update.tensors.items()}
    return dataclasses.replace(update, tensors=shapes)
