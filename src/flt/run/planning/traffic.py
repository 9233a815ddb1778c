"""Simulation of a run's messages, round by round, and the count of their bytes."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from flt.algorithm.selection.self_pruning import SelfPruning
from flt.callbacks.fault_injection import Faults
from flt.callbacks.fleet import Fleet, count_key
from flt.protocol.job import Job
from flt.protocol.messages import Payload, Plan, Update
from flt.protocol.state import ServerState
from flt.run.planning.dry_trainer import DryTrainer
from flt.run.planning.sizes import NOTHING, Size, Sizes
from flt.server.callback import FedCallback
from flt.server.federator import Federator


@dataclasses.dataclass(frozen=True)
class RoundTraffic:
    """Messages of one round.

    Attributes:
        round: Number of the round, from 1.
        plan: What is trained in the round.
        jobs: Number of jobs that send an update.
        clients: Number of clients of these jobs.
        components: Active components per layer, as a mean over the layers. 0 without LoRA.
        down: Bytes from the server to the clients.
        up: Bytes from the clients to the server.
        params_up: Numbers that a client sends, as a mean over the clients.
        simulated_seconds: Length of the round by the simulated clock of a fleet. None without a fleet.
    """

    round: int
    plan: Plan
    jobs: int
    clients: int
    components: float
    down: Size
    up: Size
    params_up: float
    simulated_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class _Template:
    """Messages of one job without their values. Jobs of the same class have messages of the same shapes."""

    payload: Payload
    update: Update
    numbers: int


class Traffic(FedCallback):
    """Simulates the rounds of a dry run.

    The federator of the dry run is the run's own, with a :class:`DryTrainer`. A round is simulated in full if the
    shapes of its messages may differ from those of earlier rounds: the first rounds, each new stage of the plan, each
    new rank budget, each kind of job that took part for the first time, and all rounds of rules that change the base.
    Of the other rounds, only the bytes are counted, from messages of earlier rounds with the job, round, plan, and
    missing changes of the base replaced.

    Args:
        federator: Federator of the dry run, without callbacks.
        trainer: Local trainer of the dry run.
        watch: Called after each round with the number of simulated rounds.
        fleet: Simulates the devices of the clients. None: there are none.
    """

    def __init__(
        self, federator: Federator, trainer: DryTrainer, watch: Callable[[int], None] | None = None,
        fleet: Fleet | None = None,
    ) -> None:  # fmt: skip
        self.federator, self.trainer, self.watch = federator, trainer, watch or (lambda rounds: None)
        self.recipe, self.last, self.fleet = federator.server.recipe, federator.rounds, fleet
        self.sizes = Sizes(federator.server.layout, self.recipe)
        self.down: Counter[int] = Counter()
        """Client -> bytes that it has received."""
        self.up: Counter[int] = Counter()
        """Client -> bytes that it has sent."""
        self.fits: Counter[int] = Counter()
        """Client -> number of its fits."""
        self.simulated = 0
        """Number of rounds that were simulated in full."""
        self.seconds = 0.0
        """Time that these rounds took, without their fits."""
        self.first = federator.state
        """State of the server before round 1."""
        self._templates: dict[tuple[Any, ...], _Template] = {}
        self._counted: dict[tuple[Any, ...], tuple[Size, Size]] = {}
        self._payloads: dict[tuple[int, int], Payload] = {}
        self._updates: dict[tuple[int, int], Update] = {}
        self._received = self._sent = NOTHING
        self._work: Counter[str] = Counter()  # of the present round, as a fleet counts it
        self._shape: Any = None
        federator.callbacks = [*federator.callbacks, self]

    def rounds(self) -> Iterator[RoundTraffic]:
        """Yields the traffic of each round."""
        while self.federator.state.rounds < self.last:
            cohort = self.federator.draw_cohort()
            self._received = self._sent = NOTHING
            self._work = Counter()
            repeated = all(self._class(job) in self._templates for job in cohort) and self._may_repeat(cohort)
            yield self._repeated(cohort) if repeated else self._simulated()
            self._forget()
            self.watch(self.federator.state.rounds)

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn; forgets the messages of the round before, or of a failed attempt."""
        self._payloads, self._updates = {}, {}

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when the server sends a payload; counts its bytes."""
        self._add(payload.job[0], received=self.sizes.of_payload(payload))
        self._add_fit(payload)
        self._payloads[payload.job] = payload

    def on_update(self, federator: Federator, update: Update) -> None:
        """Called when a client sends an update; counts its bytes."""
        self._add(update.job[0], sent=self.sizes.of_update(update))
        self._updates[update.job] = update

    def _simulated(self) -> RoundTraffic:
        """Lets the federator run one round."""
        federator, before = self.federator, self.federator.state
        federator.rounds = before.rounds + 1
        began, fits = time.perf_counter(), self.trainer.seconds
        federator.fit()
        self.seconds += time.perf_counter() - began - (self.trainer.seconds - fits)
        self.simulated += 1
        numbers = {u.job: sum(t.numel() for t in u.tensors.values()) for u in federator.updates}
        if before.rounds:  # in round 1, components are dealt over the cohort
            for job in (job for job in federator.cohort if job.id in numbers):
                messages = _without_values(self._payloads[job.id]), _without_values(self._updates[job.id])
                self._templates[self._class(job, before)] = _Template(*messages, numbers[job.id])
        return self._traffic(before, {job.id: numbers[job.id] for job in federator.cohort if job.id in numbers})

    def _repeated(self, cohort: list[Job]) -> RoundTraffic:
        """Counts the bytes of a round whose messages have the shapes of earlier ones."""
        federator, state = self.federator, self.federator.state
        plan, numbers, first = self.recipe.plan(state.rounds), {}, set[int]()
        for job in cohort:
            seen = state.base.version if job.client in first else state.base.seen.get(job.client, 0)
            first.add(job.client)
            self._add(job.client, *self._like_earlier(job, plan, seen))
            numbers[job.id] = self._templates[self._class(job)].numbers
        federator.state = self._next(state, plan, first)
        return self._traffic(state, numbers)

    def _like_earlier(self, job: Job, plan: Plan, seen: int) -> tuple[Size, Size]:
        """Returns the sizes of a job's payload and update, from messages of its class in an earlier round.

        Args:
            job: The job.
            plan: Plan of the round.
            seen: Version of the base that the client has.
        """
        state, data = self.federator.state, self.federator.clients[job.client].data[job.index]
        template, version = self._templates[self._class(job)], state.base.version
        self._add_fit(dataclasses.replace(template.payload, job=job.id, plan=plan))
        base, steps = state.base.since(seen, self.federator.server.base), self.trainer.steps(plan, data)
        texts = (job.client, state.rounds, version, data.examples, steps, plan.lr_factor)
        key = (self._class(job), *(len(str(number)) for number in texts))
        if base or key not in self._counted:
            same: dict[str, Any] = {"job": job.id, "round": state.rounds, "base_version": version}
            payload = dataclasses.replace(template.payload, **same, plan=plan, base=base)
            update = dataclasses.replace(template.update, **same, examples=data.examples, steps=steps)
            sizes = self.sizes.of_payload(payload), self.sizes.of_update(update)
            if base:
                return sizes
            self._counted[key] = sizes
        return self._counted[key]

    def _next(self, state: ServerState, plan: Plan, clients: set[int]) -> ServerState:
        """Returns the state after a round whose updates have the received values: only shapes matter."""
        server, base = self.federator.server, state.base
        if clients and base.version:
            base = dataclasses.replace(base, seen={**base.seen, **dict.fromkeys(clients, base.version)})
        if clients:
            trained = [name for name in server.layout.sent(plan) if name in server.base]
            base = base.advance({name: (server.base[name],) for name in trained}, server.base)
        done = dataclasses.replace(state, rounds=state.rounds + 1, base=base)
        return self.recipe.schedule(done, server.layout)

    def _class(self, job: Job, state: ServerState | None = None) -> tuple[Any, ...]:
        """Returns all on which the shapes of a job's messages depend."""
        state = state or self.federator.state
        plan, data = self.recipe.plan(state.rounds), self.federator.clients[job.client].data[job.index]
        own = job.client if self.recipe.compression.packs else None  # budgets differ between clients
        shared = dataclasses.replace(plan, lr_factor=1.0)
        return (job.index, job.rank, state.ranks.get(job.id), job.head, len(data.held_out) > 0, own, shared)

    def _may_repeat(self, cohort: list[Job]) -> bool:
        """Returns whether the messages of a round are known to have the shapes of earlier ones."""
        recipe, state = self.recipe, self.federator.state
        faults = [part.faults for part in self.federator.transforms if isinstance(part, Faults)]
        if recipe.rule.changes_base or any(fault.drop or fault.nan for fault in faults):
            return False
        if recipe.grouping.several and any(group.buffers for group in state.groups.values()):
            return False  # a group has no buffers before its first update
        prunes = self.trainer.shrinks and isinstance(recipe.selection, SelfPruning)
        return not prunes or all(state.ranks.get(job.id, job.rank) == 1 for job in cohort)

    def _forget(self) -> None:
        """Drops the templates if the shapes in the server's state have changed."""
        state = self.federator.state
        slots = {name for group in state.groups.values() for slot in self.recipe.rule.sent_slots
                 for name in group.slots.get(slot, ())}  # fmt: skip
        shape = (state.active, slots, {name for group in state.groups.values() for name in group.buffers})
        if shape != self._shape:
            self._shape, self._templates, self._counted = shape, {}, {}

    def _add(self, client: int, received: Size = NOTHING, sent: Size = NOTHING) -> None:
        self._received, self._sent = self._received + received, self._sent + sent
        self.down[client] += received.bytes
        self.up[client] += sent.bytes
        self.fits[client] += sent != NOTHING
        self._work[count_key("down", client)] += received.bytes
        self._work[count_key("up", client)] += sent.bytes

    def _add_fit(self, payload: Payload) -> None:
        """Counts the operations of a fit, for the simulated clock."""
        if self.fleet is not None:
            client, index = payload.job
            data = self.federator.clients[client].data[index]
            flops = self.fleet.cost.flops(payload.plan, data, payload.held, payload.kept)
            self._work[count_key("flops", client)] += flops

    def _traffic(self, state: ServerState, numbers: dict[tuple[int, int], int]) -> RoundTraffic:
        clients, active = {client for client, _ in numbers}, state.active.values()
        return RoundTraffic(
            state.rounds + 1, self.recipe.plan(state.rounds), len(numbers), len(clients),
            sum(map(len, active)) / len(active) if active else 0.0, self._received, self._sent,
            sum(numbers.values()) / len(clients) if clients else 0.0,
            self.fleet.spent(self._work, sorted(clients), state.rounds).seconds if self.fleet else None,
        )  # fmt: skip


def _without_values(value: Any) -> Any:
    """Returns a message whose tensors have their shapes and types, but no values."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, dict):
        return {key: _without_values(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_without_values, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{f.name: _without_values(getattr(value, f.name))
                                             for f in dataclasses.fields(value)})  # fmt: skip
    return value
