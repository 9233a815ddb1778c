"""Accumulator of the updates of one round. If the rule needs only sums over the updates, only these sums are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from flt.algorithm.buffers import BuffersPart
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
        totals: Sums over the updates that were added.
        start: The same sums over the updates that these jobs would have sent without training. A server optimiser
            starts its step from the weights that these sums give. Empty without a server optimiser.
    """

    totals: Totals = dataclasses.field(default_factory=dict)
    start: Totals = dataclasses.field(default_factory=dict)

    def merge(self, other: Sums) -> None:
        """Adds the sums of ``other`` to these sums. If one of the results is too large, nothing is added.

        Raises:
            InputError: A result is too large.
        """
        try:
            self.totals, self.start = _added(self.totals, other.totals), _added(self.start, other.start)
        except OverflowError as error:
            raise diverged("updates", error, "smaller numbers") from error


class UpdateAccumulator:
    """Collects the updates of a round one by one, in any order.

    With ``streams``, an update is added to the running sums as soon as it arrives, and the values of its tensors are
    then discarded. A cohort of any size therefore takes the memory of one update, and some kilobytes for each job: the
    names and shapes of its tensors, its metrics and its component ids. Without ``streams``, whole updates are kept.

    Args:
        rule: Rule that adds an update to the sums.
        buffers: Policy that adds the buffers of an update to the sums.
        view: View of the state from which the round's payloads were built.
        cohort: Jobs of the round.
        validate: Function that checks the update of a job, and returns it with the server's tensor names (see
            :meth:`Layout.split`). It raises InputError if the update is invalid.
        streams: True if the aggregation needs only sums over the updates. If False, the updates are kept.
        steps: True if a server optimiser also needs the sums over updates without training, ``Sums.start``.
        further_sums: Functions that add terms of an update to the sums, beside those of the rule (see
            :attr:`ServerAggregation.further_sums`). They aren't called without ``streams``.
        check_range: True if a single update may be refused without ending the round. Then ``add`` refuses an update
            with numbers so large that a sum could overflow at the end of the round. No part of a refused update is
            added.
    """

    def __init__(
        self,
        rule: Rule,
        buffers: BuffersPart,
        view: View,
        cohort: Sequence[Job],
        validate: Callable[[Job, Update], Update],
        streams: bool = False,
        steps: bool = False,
        check_range: bool = False,
        further_sums: Sequence[Callable[[View, Update, Totals], None]] = (),
    ) -> None:
        self.further_sums = further_sums
        self.rule, self.buffers, self.validate = rule, buffers, validate
        self.steps, self.check_range = steps, check_range
        self.jobs = {job.id: job for job in cohort}
        self.updates: dict[JobId, Update] = {}
        self.failures: dict[JobId, Failure] = {}
        """Failures of the jobs that send no update, by job."""
        self.sums = Sums() if streams else None
        self._arrived: dict[JobId, Update] = {}
        # The same view is used for all updates, because a view caches the base weights that it computes.
        self._view = dataclasses.replace(view, arrived=self._arrived)

    def add(self, update: Update) -> None:
        """Validates an update, then adds it to the sums or, without sums, keeps it.

        Raises:
            InputError: The update doesn't match its job's payload, its tensors have wrong shapes, or a number in it is
                too large or not finite.
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
        """Records that a job sends no update."""
        self.failures[failure.job] = failure

    def sendable(self) -> list[Update]:
        """Returns the updates for the other processes, sorted by job. With ``streams``, the updates have no tensors."""
        streams = self.sums is not None
        return [dataclasses.replace(u, tensors={}, buffers={}) if streams else u for u in self._sorted()]

    def merge(self, updates: Iterable[Update], failures: Iterable[Failure] = ()) -> None:
        """Adds the ``sendable`` updates and the failures of a process. The engine itself merges the running sums."""
        for failure in failures:
            self.add_failure(failure)
        for update in updates:
            self.updates[update.job] = self._with_shapes(update) if self.sums is not None else update

    def compute(self) -> tuple[list[Update], Sums | None]:
        """Returns the updates of the round, sorted by job, and the sums over them (None without ``streams``)."""
        return self._sorted(), self.sums

    def _sorted(self) -> list[Update]:
        return [self.updates[job] for job in sorted(self.updates)]

    def _with_shapes(self, update: Update) -> Update:
        """Adds tensors with names and shapes, but without values, to an update that was sent without tensors."""
        head, plan = self.jobs[update.job].head, self._view.plan
        layout = self._view.layout.for_head(head)
        shapes = {name: torch.empty(layout.shape(name, update.kept), device="meta") for name in layout.sent(plan)}
        return dataclasses.replace(update, tensors=self._view.layout.split(shapes, head))

    def _include(self, update: Update, sums: Sums) -> None:
        assert isinstance(self.rule, Summable), "recipes with other rules don't stream"
        self._arrived[update.job] = update
        try:
            self.rule.include(self._view, update, sums.totals)
            self.buffers.include(self._view, update, self.rule.weight(update), sums.totals)
            for include in self.further_sums:
                include(self._view, update, sums.totals)
            if self.steps:
                self.rule.include(self._view, self._view.untrained_update(update), sums.start)
        finally:
            del self._arrived[update.job]

    def _add_if_small(self, update: Update) -> None:
        """Adds an update, or refuses it if a whole cohort of equally large updates would overflow a sum.

        With this test no sum can overflow at the end of the round. The test reads only the update itself, so its
        result depends neither on the order of arrival nor on the process that adds the update.

        Raises:
            InputError: The update is refused.
        """
        part = Sums()
        reaches = [update.examples * _largest(values) for _, values in update.scores.values()]
        if isinstance(self.rule, Summable):
            self._include(update, part)
            reaches += [total.reach for total in (*part.totals.values(), *part.start.values())]
        elif self.rule.sums_values:
            reaches += [self.rule.weight(update) * max(1.0, _largest(tensor)) for tensor in update.tensors.values()]
            self.buffers.include(self._view, update, self.rule.weight(update), part.totals)
            reaches += [total.reach for total in part.totals.values()]
        reach = max(reaches, default=0.0)
        if not reach * len(self.jobs) < LARGEST:
            who = f"update of client {update.job[0]}, job {update.job[1]}"
            raise diverged(who, f"numbers up to {reach:.1e}", "smaller numbers")
        if self.sums is not None:
            self.sums.merge(part)


def strip_values(update: Update) -> Update:
    """Returns the update with the names and shapes of its tensors, but without their values."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in update.tensors.items()}
    return dataclasses.replace(update, tensors=shapes, buffers={})


def _added(one: Totals, other: Totals) -> Totals:
    return {**one, **{key: one[key].plus(term) if key in one else term for key, term in other.items()}}


def _largest(tensor: Tensor) -> float:
    """Returns the largest magnitude in a tensor, rounded up as in ``ExactSum.reach``. Returns 0 for an empty tensor."""
    return float(tensor.abs().max().ceil()) if tensor.numel() else 0.0
