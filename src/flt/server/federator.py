"""Round loop of a federation."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.protocol.failure import Failure, Late
from flt.protocol.job import Job
from flt.protocol.messages import Update
from flt.protocol.state import ClientState, ServerState
from flt.server.accumulator import Sums, UpdateAccumulator
from flt.server.aggregation import ServerAggregation
from flt.server.callback import FedCallback
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Assignment, Engine, Outcome
from flt.server.failure_policy import STRICT, FailurePolicy
from flt.server.validation import check_client_state

Sampler = Callable[[Sequence[int], int, int], list[int]]
Transform = Callable[[list[Update]], list[Update]]
Sent = list[Update | Failure]
"""Messages of a client in a round: the updates of its jobs, or a failure in the place of an update."""
Arrivals = Callable[[Iterator[Sent]], Iterator[Sent]]


class Federator:
    """Runs the rounds of a federation.

    ::

        for each round:
            cohort = sampler(seed, round)
            for each client in the cohort, for each of its jobs:      the engine decides where, and how many at once
                payload = server.broadcast(state, job, cohort)
                update, private = local_fit(job, payload, private, seed)
                updates = compress(transforms(the client's updates))
                updates = arrivals(updates)                           without those that come too late
                accumulator.add(updates)                              validates updates, then sums or keeps them
            engine.exchange(accumulator)                              merges the results of all processes
            repeat with another cohort if too few updates arrived     the failure policy decides
            state = server.aggregate(state, accumulator)              is a pure function
            evaluate, log, checkpoint                                 the callbacks do this

    Args:
        server: Builds the payloads and computes the next state.
        clients: Client id -> data and rank of the client.
        engine: Trains the jobs.
        sampler: Draws the clients of a round: (ids to choose from, seed, number of finished rounds) -> chosen ids.
        callbacks: Callbacks, in the order in which their hooks are called.
        rounds: Total number of rounds.
        seed: Seed of the cohorts and of every fit.
        state: State of the server before the first round of this run.
        transforms: Functions that take and return all updates of one client. They are applied in this order, before
            the updates are compressed.
        failure_policy: Conditions under which a round succeeds although jobs failed.
        arrivals: Function that takes what the clients send, client by client, and yields what arrives in time. In the
            place of an update that doesn't, it yields a :class:`Late`. If None, everything arrives in time.
    """

    def __init__(
        self,
        server: ServerAggregation,
        clients: Mapping[int, ClientSpec],
        engine: Engine,
        sampler: Sampler,
        callbacks: Sequence[FedCallback],
        rounds: int,
        seed: int,
        state: ServerState,
        transforms: Sequence[Transform] = (),
        failure_policy: FailurePolicy = STRICT,
        arrivals: Arrivals | None = None,
    ) -> None:
        self.server, self.clients, self.engine, self.sampler = server, clients, engine, sampler
        self.callbacks, self.rounds, self.seed, self.state = callbacks, rounds, seed, state
        self.transforms, self.failure_policy = transforms, failure_policy
        self.arrivals: Arrivals = arrivals or iter
        engine.set_failure_policy(failure_policy)
        self.attempt = 0
        """Number of earlier attempts at the current round."""
        self.counts_of_failed_attempts: Counter[str] = Counter()
        """Numbers that callbacks counted in failed attempts at the current round, summed over all processes."""
        self.client_states = ClientStateStore()
        self.history: list[dict[str, float]] = []
        self.cohort: list[Job] = []
        self.updates: list[Update] = []
        """Accepted updates of the current round, sorted by job. Their tensors have no values if the recipe streams."""
        self.sums: Sums | None = None
        """Sums over the updates of the current round. None if the recipe doesn't stream."""
        self.counts: Counter[str] = Counter()
        """Numbers that callbacks count in the current attempt at a round, such as bytes.

        Once the last job of the attempt has ended, the numbers are summed over all processes.
        """
        self.metrics: dict[str, float] = {}
        self.should_stop = False
        """A callback sets this to True to end the run after the current round."""
        layers = server.layout.layers.values()
        self._rank = max((layer.rank for layer in layers), default=0)
        # Clients whose jobs exist in every round are listed once, not once a round.
        self._part_time = [number for number, client in clients.items() if any(job.is_temporary for job in client.data)]
        self._full_time = sorted(set(clients) - set(self._part_time))

    @property
    def round(self) -> int:
        """Number of the current round, counted from 1. Between two rounds, this is the number of the finished round."""
        return int(self.metrics.get("round", self.state.rounds))

    def fit(self) -> ServerState:
        """Runs the remaining rounds, and returns the final state. Stops early if a callback sets ``should_stop``."""
        try:
            self.call("on_fit_start")
            self.should_stop = self.engine.processes.agree_to_stop(self.should_stop)
            # After a resume, the resident module lacks the changes that earlier rounds have made to the base weights.
            self.engine.local_trainer.load(self.state, self.state.home)
            while self.state.rounds < self.rounds and not self.should_stop:
                self._round()
            self.call("on_fit_end")
        except BaseException as exception:
            self.engine.processes.report_failure(exception)
            self.call("on_exception", exception)
            raise
        return self.state

    def log(self, metrics: Mapping[str, float]) -> None:
        """Records metrics of this round, which go to the loggers, the printed table and the checkpoint."""
        self.metrics.update({key: value if isinstance(value, int) else float(value) for key, value in metrics.items()})

    def call(self, hook: str, *args: Any) -> None:
        """Calls one hook of the server and then of every callback, in order. All hooks are called by this method."""
        for callback in (self.server, *self.callbacks):
            getattr(callback, hook)(self, *args)

    def _round(self) -> None:
        self.attempt, self.counts_of_failed_attempts = 0, Counter()
        accumulator = self._attempt()
        while not self.failure_policy.is_met(len(accumulator.updates), len(self.cohort) - _late(accumulator)):
            self.client_states.accept(())
            self.counts_of_failed_attempts.update(self.counts)
            self.failure_policy.check_retry(self.attempt, self.round, len(accumulator.updates), len(self.cohort))
            self.attempt += 1
            accumulator = self._attempt()
        self.updates, self.sums = accumulator.compute()
        self.state = self.server.aggregate(self.state, self.updates, self.sums)
        self.client_states.accept(accumulator.updates)
        self.call("on_round_end")
        self.history.append(self.metrics)
        self.call("on_log", self.metrics)
        self.should_stop = self.engine.processes.agree_to_stop(self.should_stop)

    def _attempt(self) -> UpdateAccumulator:
        """Trains one cohort and returns its updates and failures."""
        self.metrics, self.updates = {"round": self.state.rounds + 1}, []
        self.cohort, self.counts = self.draw_cohort(), Counter()
        self.call("on_round_start")
        accumulator = self.server.accumulator(self.state, self.cohort, check_range=not self.failure_policy.strict)
        for sent in itertools.chain.from_iterable(self.arrivals(self._sent())):
            if isinstance(sent, Failure):
                accumulator.add_failure(sent)
                continue
            self.call("on_update", sent)
            refused = self.failure_policy.guard(sent.job, functools.partial(accumulator.add, sent))
            if refused is not None:
                accumulator.add_failure(refused)
        self.engine.exchange(accumulator, self.counts, self.client_states)
        failures = [accumulator.failures[job] for job in sorted(accumulator.failures)]
        if failed := [failure for failure in failures if not isinstance(failure, Late)]:
            self.call("on_failures", failed)
        return accumulator

    def draw_cohort(self) -> list[Job]:
        """Returns the jobs of the next round, from the clients that have jobs in it. The list may be empty."""
        joining = {number: jobs for number in self._part_time if (jobs := self._jobs(number))}
        present = sorted([*self._full_time, *joining]) if joining else self._full_time
        # The seed of a retry differs, so that the retry draws another cohort.
        sequence = np.random.SeedSequence([self.seed, self.attempt])
        seed = int(sequence.generate_state(1)[0]) if self.attempt else self.seed
        chosen = self.sampler(present, seed, self.state.rounds)
        return [job for number in chosen for job in joining.get(number) or self._jobs(number)]

    def _jobs(self, number: int) -> list[Job]:
        client = self.clients[number]
        return [job for job in client.jobs(self._rank) if client.data[job.index].takes_part(self.state.rounds + 1)]

    def _assignments(self) -> Iterator[Assignment]:
        for job in self.engine.deal(self.cohort):
            payload = self.server.broadcast(self.state, job, self.cohort)
            self.call("on_job_start", payload)
            yield Assignment(payload, self.client_states.get(job.id, ClientState()), self._job_seed(job))

    def _job_seed(self, job: Job) -> int:
        """Returns the seed of a fit, which depends neither on the order of clients nor on the size of the cohort."""
        return int(np.random.SeedSequence([self.seed, self.state.rounds, *job.id]).generate_state(1)[0])

    def _sent(self) -> Iterator[Sent]:
        """Trains this process's jobs, and yields the failures and each client's updates.

        The updates of a client are yielded together, once all jobs of the client have ended.
        """
        remaining, fitted = Counter(job.client for job in self.cohort), defaultdict[int, list[Update]](list)
        for outcome in map(self._checked, self.engine.run(self._assignments())):
            if isinstance(outcome, Failure):
                client = outcome.job[0]
                yield [outcome]
            else:
                update, client_state = outcome
                client = update.job[0]
                self.call("on_job_end", update)
                self.client_states.put(update.job, client_state, self.state.rounds + 1, self.attempt)
                fitted[client].append(update)
            remaining[client] -= 1
            if not remaining[client]:
                yield self._transformed(fitted.pop(client, []))

    def _checked(self, outcome: Outcome) -> Outcome:
        """Returns the outcome of a job, or a failure if the new client state has a number that isn't finite."""
        if isinstance(outcome, Failure):
            return outcome
        update, client_state = outcome
        refused = self.failure_policy.guard(update.job, lambda: check_client_state(update.job, client_state))
        return refused or outcome

    def _transformed(self, updates: list[Update]) -> Sent:
        """Transforms and compresses a client's updates. Returns a failure for each update that isn't sent."""
        if not updates:
            return []
        updates = sorted(updates, key=lambda update: update.job)
        sent = self.failure_policy.guard(updates[0].job, lambda: self._compressed(updates))
        if isinstance(sent, Failure):
            return [dataclasses.replace(sent, job=update.job) for update in updates]
        kept_back = {update.job for update in updates} - {update.job for update in sent}
        return [*sent, *(Failure(job, "its update wasn't sent") for job in sorted(kept_back))]

    def _compressed(self, updates: list[Update]) -> list[Update]:
        for transform in (*self.transforms, self.server.compress):
            updates = transform(updates) if updates else updates
            if not isinstance(updates, list | tuple) or not all(isinstance(update, Update) for update in updates):
                name = getattr(transform, "__name__", type(transform).__name__)
                raise InputError.of(f"result of transform {name}", type(updates).__name__, "a list of updates")
        return updates


def _late(accumulator: UpdateAccumulator) -> int:
    """Returns the number of jobs whose updates came too late."""
    return sum(isinstance(failure, Late) for failure in accumulator.failures.values())
