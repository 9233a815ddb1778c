"""The updates of one round: all of them, or only their running sums where the rule is a function of sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from flt.algorithm.rule.base import Rule, Summable, Totals
from flt.algorithm.rule.exact_sum import LARGEST
from flt.algorithm.view import View
from flt.core.errors import InputError, diverged
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update


@dataclasses.dataclass
class Sums:
    """The running sums of a round.

    Attributes:
        totals: Sums over what the members of the cohort sent.
        start: The same sums over their untrained updates: a server optimiser steps from there.
    """

    totals: Totals = dataclasses.field(default_factory=dict)
    start: Totals = dataclasses.field(default_factory=dict)

    def merge(self, other: Sums) -> None:
        """Adds other sums, all of them or none.

        Raises:
            InputError: A sum of both is too large.
        """
        try:
            self.totals, self.start = _added(self.totals, other.totals), _added(self.start, other.start)
        except OverflowError as error:
            raise diverged("updates", error, "smaller numbers") from error


class UpdateAccumulator:
    """Collects the updates of a round one by one, in any order.

    Where the recipe streams, an update is added to the sums as soon as it arrives. Only the names and shapes of its
    tensors stay, so a cohort of any size takes the memory of one update, and some kilobytes for each job's metrics and
    components.

    Args:
        rule: Adds an update to the sums.
        view: The state that the round's payloads came from.
        cohort: The jobs that were sent a payload.
        validate: Checks the update of a job, and returns it under the server's names; raises InputError.
        streams: True if the aggregation needs the sums only.
        steps: True if a server optimiser needs the sums over untrained updates too.
        check_range: True if the round may go on without an update that can't be added. Then ``add`` refuses whatever
            could make a sum too large at the end of the round, and leaves no part of it in the sums.
    """

    def __init__(
        self,
        rule: Rule,
        view: View,
        cohort: Sequence[Job],
        validate: Callable[[Job, Update], Update],
        streams: bool = False,
        steps: bool = False,
        check_range: bool = False,
    ) -> None:
        self.rule, self.validate, self.steps, self.check_range = rule, validate, steps, check_range
        self.jobs = {job.id: job for job in cohort}
        self.updates: dict[JobId, Update] = {}
        self.failures: dict[JobId, Failure] = {}
        """The jobs that the round goes on without."""
        self.sums = Sums() if streams else None
        self._arrived: dict[JobId, Update] = {}
        # One view serves all updates, since it caches the base weights that it computes.
        self._view = dataclasses.replace(view, arrived=self._arrived)

    def add(self, update: Update) -> None:
        """Validates an update, and keeps it or adds it to the sums.

        Raises:
            InputError: The update isn't what its job was asked for, has the wrong shapes, or holds a number that is
                not finite or too large.
        """
        who = f"update of client {update.job[0]}, job {update.job[1]}"
        if update.job not in self.jobs:
            raise InputError.of(who, "?", "a job of the round's cohort")
        valid = self.validate(self.jobs[update.job], update)
        if update.job in self.updates:
            raise InputError.of(who, "twice", "one update of each job")
        if self.check_range:
            self._add_if_small(valid)
        elif self.sums is not None:
            self._include(valid, self.sums)
        self.updates[update.job] = strip_values(valid) if self.sums is not None else valid

    def add_failure(self, failure: Failure) -> None:
        """Notes that a job sends no update."""
        self.failures[failure.job] = failure

    def sendable(self) -> list[Update]:
        """Returns what other processes need of the updates, sorted by job; no tensors if they were summed."""
        streams = self.sums is not None
        return [dataclasses.replace(u, tensors={}) if streams else u for u in self._sorted()]

    def merge(self, updates: Iterable[Update], failures: Iterable[Failure] = ()) -> None:
        """Adds the ``sendable`` updates and the failures of another process; its sums are added separately."""
        for failure in failures:
            self.add_failure(failure)
        for update in updates:
            self.updates[update.job] = self._with_shapes(update) if self.sums is not None else update

    def compute(self) -> tuple[list[Update], Sums | None]:
        """Returns the updates of the round, sorted by job, and their sums where the recipe streams."""
        return self._sorted(), self.sums

    def _sorted(self) -> list[Update]:
        return [self.updates[job] for job in sorted(self.updates)]

    def _with_shapes(self, update: Update) -> Update:
        """Returns an update that came without tensors, with the names and shapes of these."""
        head, plan = self.jobs[update.job].head, self._view.plan
        layout = self._view.layout.for_head(head)
        shapes = {
            self._view.layout.server_name(name, head): torch.empty(layout.shape(name, update.kept), device="meta")
            for name in layout.names(set(plan.train) - set(plan.private))
        }
        return dataclasses.replace(update, tensors=shapes)

    def _include(self, update: Update, sums: Sums) -> None:
        assert isinstance(self.rule, Summable), "recipes with other rules don't stream"
        self._arrived[update.job] = update
        try:
            self.rule.include(self._view, update, sums.totals)
            if self.steps:
                self.rule.include(self._view, self._view.untrained_update(update), sums.start)
        finally:
            del self._arrived[update.job]

    def _add_if_small(self, update: Update) -> None:
        """Refuses an update if a whole cohort of updates as large as this one would overflow a sum.

        Then no sum overflows at the end of the round, and whether an update is refused depends on that update alone,
        not on the order of arrival or on the process that adds it.
        """
        part = Sums()
        reaches = [update.examples * _largest(values) for _, values in update.scores.values()]
        if isinstance(self.rule, Summable):
            self._include(update, part)
            reaches += [total.reach for total in (*part.totals.values(), *part.start.values())]
        elif self.rule.sums_values:
            reaches += [self.rule.weight(update) * max(1.0, _largest(tensor)) for tensor in update.tensors.values()]
        reach = max(reaches, default=0.0)
        if not reach * len(self.jobs) < LARGEST:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise diverged(who, f"numbers up to {reach:.1e}", "smaller numbers")
        if self.sums is not None:
            self.sums.merge(part)


def strip_values(update: Update) -> Update:
    """Returns the update with the names and shapes of its tensors, but without their values."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in update.tensors.items()}
    return dataclasses.replace(update, tensors=shapes)


def _added(one: Totals, other: Totals) -> Totals:
    return {**one, **{key: one[key].plus(term) if key in one else term for key, term in other.items()}}


def _largest(tensor: Tensor) -> float:
    """Returns the largest magnitude, rounded up as exact sums round it."""
    return float(tensor.abs().max().ceil()) if tensor.numel() else 0.0
