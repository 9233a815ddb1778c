"""Aggregation on the server. Applies the parts of a recipe to build payloads and to compute the next state."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from flt.algorithm.buffers import check_buffers
from flt.algorithm.grouping.base import Groups
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Combined, Summable, Totals
from flt.algorithm.view import View
from flt.protocol.job import Job
from flt.protocol.layout import LORA_FACTORS, TRAVELLING, Layout
from flt.protocol.messages import JobId, Payload, Plan, Update
from flt.protocol.quantised_components import unpack_update
from flt.protocol.state import GroupState, ServerState, zero_scores
from flt.server.accumulator import Sums, UpdateAccumulator
from flt.server.callback import FedCallback
from flt.server.held_out_loss import HeldOutLoss
from flt.server.validation import validate

if TYPE_CHECKING:
    from flt.server.federator import Federator


class ServerAggregation(FedCallback):
    """Builds each job's payload (``broadcast``) and computes the state after a round (``aggregate``).

    Both methods are pure functions: every process can call them, and payloads can be built in any order. The object is
    also a callback, whose hooks the federator calls. No other callback computes payloads or states.

    Args:
        recipe: Parts of the algorithm.
        layout: Names and roles of the server's tensors, including the tensors of all heads.
        jobs: Number of jobs in the whole federation.
        seed: Seed of the random choices on the server (in selections and clusterings, and for new adapters).
        base: Initial values of the frozen weights that the recipe may change; empty if the recipe changes none.
        heads: Name of a head -> number of jobs with this head. The name is empty if all jobs have the same head.
        buffers: Initial values of the module's buffers, by name. If None, the module has no buffers.
    """

    def __init__(
        self, recipe: Recipe, layout: Layout, jobs: int, seed: int, base: Mapping[str, Tensor],
        heads: Mapping[str, int] | None = None, buffers: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.layout, self.jobs, self.seed, self.base = recipe, layout, jobs, seed, base
        self.heads, self.buffers = heads or {}, buffers or {}
        self.further_sums: list[Callable[[View, Update, Totals], None]] = []
        """Functions with which callbacks add terms of each valid update to the sums of a round that streams."""
        self.held_out: HeldOutLoss | None = None
        """Measures losses on held-out examples of clients. Set when a federation begins whose recipe reads them."""

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins or resumes; takes its engine and clients, if the recipe needs losses."""
        if self.recipe.reads_held_out:
            self.held_out = HeldOutLoss(federator.engine, federator.clients)

    def initial(self, weights: Mapping[str, Tensor]) -> ServerState:
        """Returns the state before round 1. It has one group, with the module's initial weights.

        Args:
            weights: Name of each tensor of the module -> initial value.
        """
        named = {name: weights[name].detach().cpu().clone() for name in self.layout.names(TRAVELLING)}
        scores = zero_scores((name, layer.rank) for name, layer in self.layout.layers.items())
        state = ServerState(0, {0: GroupState(named, scores)}, self.layout.all_components())
        return self.recipe.schedule(state, self.layout)  # a rising rank budget begins below the initial rank

    def broadcast(self, state: ServerState, job: Job, cohort: Sequence[Job]) -> Payload:
        """Returns the payload that the server sends to a job.

        Args:
            state: State of the server before the round.
            job: Job that receives the payload.
            cohort: All jobs of the round.
        """
        plan = self.recipe.plan(state.rounds)
        held, kept = self.recipe.selection(self.view(state), job, cohort)
        group = state.groups[state.group_of(job.id)]
        layout = self.layout.for_head(job.head)
        public = [name for name in layout.names({*TRAVELLING, *plan.train} - set(plan.private))
                  if name not in layout.local]  # fmt: skip

        def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            own = self.layout.joined(tensors, job.head)
            return {name: layout.take(name, own[name], held) for name in public if name in own}

        slots = {slot: gather(group.slots[slot]) for slot in self.recipe.rule.sent_slots if slot in group.slots}
        first = min(other.index for other in cohort if other.client == job.client)
        # A client gets the missing base versions once, with the first of its jobs.
        seen = state.base.seen.get(job.client, 0) if job.index == first else state.base.version
        base, version = state.base.since(seen, self.base), state.base.version
        payload = Payload(
            job.id, state.rounds, plan, gather(group.weights), held, kept, slots, version, base, group.buffers
        )
        jobs = sum(other.client == job.client for other in cohort)
        return self.recipe.compression.compress_payload(self.layout, payload, group.scores, jobs)

    def compress(self, updates: list[Update]) -> list[Update]:
        """Compresses the updates of one client's jobs, on the client. The recipe defines how they are compressed."""
        return self.recipe.compression.compress_updates(self.layout, updates)

    def accumulator(self, state: ServerState, cohort: Sequence[Job], check_range: bool = False) -> UpdateAccumulator:
        """Returns an empty accumulator for the updates of one round.

        Args:
            state: State of the server before the round.
            cohort: Jobs of the round.
            check_range: See :class:`UpdateAccumulator`.
        """
        recipe, validate_update = self.recipe, functools.partial(self.validated, state)
        steps = recipe.server_optimizer.steps
        return UpdateAccumulator(
            recipe.rule, recipe.buffers, self.view(state), cohort, validate_update, recipe.streams, steps, check_range,
            self.further_sums,
        )  # fmt: skip

    def validated(self, state: ServerState, job: Job, update: Update) -> Update:
        """Unpacks and checks the update of a job, and returns it with the server's tensor names.

        These names contain the name of the head if jobs have different heads, see :meth:`Layout.split`.

        Raises:
            InputError: The update doesn't match its job's payload, its tensors have wrong shapes, or a number in it
                isn't finite.
        """
        plan = self.recipe.plan(state.rounds)
        opened, layout = unpack_update(update, self.layout, plan), self.layout.for_head(job.head)
        validate(opened, layout, state.active, plan, state.rounds)
        who = f"update of client {update.job[0]}, job {update.job[1]}"
        check_buffers(who, opened, self.recipe.buffers, layout, plan)
        return dataclasses.replace(opened, tensors=self.layout.split(opened.tensors, job.head))

    def aggregate(self, state: ServerState, updates: Sequence[Update], sums: Sums | None = None) -> ServerState:
        """Returns the state after a round.

        Args:
            state: State of the server before the round.
            updates: Validated updates, sorted by job.
            sums: Sums over these updates. If given, the tensors of the updates aren't read. If None, the updates must
                contain the values of their tensors.
        """
        view = dataclasses.replace(self.view(state), arrived={update.job: update for update in updates})
        grouped = self.recipe.grouping(view, updates)
        view = view.with_group_starts(grouped.members, self.recipe.rule.weight)
        groups, change = dict(state.groups), {}
        combined = {gid: self._combined(view, gid, members, sums) for gid, members in sorted(grouped.members.items())}
        new = self._transferred(view, grouped, combined)
        for gid, out in combined.items():
            before, members = view.group(gid), grouped.members[gid]
            weights = {name: value for name, value in new[gid].items() if name not in self.base}
            buffers = {**before.buffers, **self._buffers(view, gid, members, sums)}
            after = GroupState(weights, before.scores, out.slots, buffers)
            groups[gid] = self.recipe.importance(view, before, after, members)
            change.update(out.base)
            change.update({name: (value,) for name, value in out.new.items() if name in self.base})
        assigned = {u.job: gid for gid, members in grouped.members.items() for u in members}
        assignment = {**state.assignment, **grouped.joining, **assigned}
        seen = {**state.base.seen, **{u.job[0]: u.base_version for u in updates if u.base_version}}
        base = dataclasses.replace(state.base, seen=seen).advance(change, self.base)
        done = dataclasses.replace(
            state,
            rounds=state.rounds + 1,
            groups=groups,
            assignment=dict(sorted(assignment.items())),
            base=base,
            scores=self._own_scores(view, updates),
            directions=dict(sorted({**state.directions, **grouped.directions}.items())),
            ranks=dict(sorted({**state.ranks, **self.recipe.selection.ranks(updates)}.items())),
            pruned=None,
            bandit=grouped.bandit or state.bandit,
        )
        cut = self.recipe.schedule(done, self.layout)
        # If A or B is private, the server lacks the product B A, so it can't compute the error that pruning causes.
        return dataclasses.replace(cut, pruned=None) if set(LORA_FACTORS) & set(view.plan.private) else cut

    def _transferred(
        self, view: View, grouped: Groups, combined: Mapping[int, Combined]
    ) -> dict[int, dict[str, Tensor]]:
        """Returns group id -> weights after the transfer, which is the recipe's unless the grouping chooses one."""
        if self.held_out is not None:
            self.held_out.begin(view.state, grouped.members)
            view = dataclasses.replace(view, held_out=self.held_out)
        transfer = grouped.transfer or self.recipe.transfer
        return transfer(view, {gid: out.new for gid, out in combined.items()})

    def _combined(self, view: View, gid: int, members: Sequence[Update], sums: Sums | None) -> Combined:
        rule, optimizer = self.recipe.rule, self.recipe.server_optimizer
        if isinstance(rule, Summable) and sums is not None:
            out = rule.finish(view, gid, sums.totals)
        else:
            out = rule.combine(view, gid, members)
        if not optimizer.steps:
            return out
        if isinstance(rule, Summable) and sums is not None:
            start = rule.finish(view, gid, sums.start).new
        else:
            start = rule.combine(view, gid, [view.untrained_update(update) for update in members]).new
        return optimizer(view, gid, members, out, start)

    def _buffers(self, view: View, gid: int, members: Sequence[Update], sums: Sums | None) -> dict[str, Tensor]:
        if sums is not None:
            return self.recipe.buffers.finish(view, gid, sums.totals)
        return self.recipe.buffers.combine(view, gid, members, self.recipe.rule)

    def _own_scores(self, view: View, updates: Sequence[Update]) -> dict[JobId, dict[str, Tensor]]:
        if not self.recipe.selection.uses_own_scores:
            return view.state.scores
        measured = {update.job: self.recipe.importance.own_scores(view, update) for update in updates}
        return dict(sorted({**view.state.scores, **measured}.items()))

    def on_log(self, federator: Federator, metrics: dict[str, float]) -> None:
        """Called when the metrics of a round are complete; keeps the validation loss for a schedule that reads it.

        Only the first process evaluates the global model, and every process computes the next state.
        """
        schedule, state = self.recipe.schedule, federator.state
        if not schedule.reads_validation:
            return
        told = federator.engine.processes.broadcast_from_first(lambda: json.dumps(schedule.validated(metrics)))
        if (value := json.loads(told)) is not None:
            federator.state = dataclasses.replace(state, validation={**state.validation, state.rounds: value})

    def has_global(self, plan: Plan) -> bool:
        """Returns whether a round with this plan has a global model: no client trains tensors that it doesn't send."""
        return not set(plan.train) & set(plan.private) and self.recipe.buffers.has_global(self.recipe, self.layout)

    def view(self, state: ServerState) -> View:
        """Returns the view of the round that begins with this state. The recipe's parts can only read the view."""
        plan = self.recipe.plan(state.rounds)
        return View(self.layout, state, self.jobs, self.seed, plan, self.base, self.heads, buffers=self.buffers)
