"""The round loop and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flt.callbacks.base import FedCallback
from flt.callbacks.server import ServerAggregation
from flt.client import ClientSpec
from flt.engines.serial import Serial, Task
from flt.messages import JobId, Update
from flt.state import ClientState, ServerState
from flt.view import Job

Sampler = Callable[[Sequence[int], int, int], list[int]]
Transform = Callable[[list[Update]], list[Update]]


class Federator:
    """Runs the rounds of a federation.

    ::

        for each round:
            cohort = sampler(seed, round)
            for each client in the cohort, for each of its jobs:          the engine: where, and how many at once
                payload = server.broadcast(state, job, cohort)
                update, private = local_fit(job, payload, private, seed)
            updates = compress(transforms(the client's updates))
            accepted = server.screen(updates)
            state = server.aggregate(state, accepted)                     pure
            evaluate, log, checkpoint                                     callbacks, return nothing

    Args:
        server: The server aggregation callback.
        clients: Client id -> its data and capacity.
        engine: Where jobs are trained.
        sampler: Draws the cohort.
        callbacks: In the order in which their hooks are called.
        rounds: Rounds in all.
        seed: Of the cohorts and of each fit.
        state: The state to begin with.
        transforms: Act on a client's updates together, in their order; what comes out is compressed.
    """

    def __init__(
        self,
        server: ServerAggregation,
        clients: Mapping[int, ClientSpec],
        engine: Serial,
        sampler: Sampler,
        callbacks: Sequence[FedCallback],
        rounds: int,
        seed: int,
        state: ServerState,
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.server, self.clients, self.engine, self.sampler = server, clients, engine, sampler
        self.callbacks, self.rounds, self.seed, self.state = callbacks, rounds, seed, state
        self.transforms = transforms
        self.client_states: dict[JobId, ClientState] = {}
        self.history: list[dict[str, float]] = []
        self.cohort: list[Job] = []
        self.updates: list[Update] = []
        """Of the round that runs; once all have arrived, as they were sent."""
        self.metrics: dict[str, float] = {}
        self.should_stop = False
        """Set by a callback: no round follows the one that runs."""
        layers = server.layout.layers.values()
        self._rank = max((layer.rank for layer in layers), default=0)

    @property
    def round(self) -> int:
        """The round that runs, counted from 1; between rounds, the one that ended last."""
        return int(self.metrics.get("round", self.state.rounds))

    def fit(self) -> ServerState:
        """Runs the rounds that are left, or until a callback sets ``should_stop``, and returns the last state."""
        try:
            self.call("on_fit_start")
            # after a resume the resident module lacks versions of the base that the clients have, and won't be sent
            self.engine.load(self.state, self.state.home)
            while self.state.rounds < self.rounds and not self.should_stop:
                self._round()
            self.call("on_fit_end")
        except BaseException as exception:
            self.call("on_exception", exception)
            raise
        return self.state

    def log(self, metrics: Mapping[str, float]) -> None:
        """Leaves figures of this round, for TensorBoard, the table and the checkpoint."""
        self.metrics.update({key: value if isinstance(value, int) else float(value) for key, value in metrics.items()})

    def call(self, hook: str, *args: Any) -> None:
        """Calls one hook of the server and of every callback, in their order: the one place where hooks are called."""
        for callback in (self.server, *self.callbacks):
            getattr(callback, hook)(self, *args)

    def _round(self) -> None:
        self.metrics, self.updates = {"round": self.state.rounds + 1}, []
        self.cohort = self._draw()
        self.call("on_round_start")
        private = {}
        for update, client_state in self.engine.run(self._tasks()):
            self.call("on_job_end", update)
            self.updates.append(update)
            private[update.job] = client_state
        self.updates = self._transformed()
        accepted = self.server.screen(self.state, self.cohort, self.updates)
        self.state = self.server.aggregate(self.state, accepted)
        self.client_states.update({update.job: private[update.job] for update in accepted})
        self.call("on_round_end")
        self.history.append(self.metrics)
        self.call("on_log", self.metrics)

    def _draw(self) -> list[Job]:
        """The jobs of the round; a client that has none in it isn't drawn, so a cohort may be smaller, or empty."""
        there = {
            number: [job for job in client.jobs(self._rank) if client.data[job.index].takes_part(self.state.rounds + 1)]
            for number, client in self.clients.items()
        }
        chosen = self.sampler(sorted(number for number in there if there[number]), self.seed, self.state.rounds)
        return [job for number in chosen for job in there[number]]

    def _tasks(self) -> Iterator[Task]:
        for job in self.cohort:
            payload = self.server.broadcast(self.state, job, self.cohort)
            self.call("on_job_start", payload)
            yield Task(payload, self.client_states.get(job.id, ClientState()), self._job_seed(job))

    def _job_seed(self, job: Job) -> int:
        """Every fit has a seed of its own, so neither the order of clients nor the size of the cohort matters."""
        return int(np.random.SeedSequence([self.seed, self.state.rounds, *job.id]).generate_state(1)[0])

    def _transformed(self) -> list[Update]:
        ordered = sorted(self.updates, key=lambda update: update.job)
        clients = [list(its) for _, its in itertools.groupby(ordered, key=lambda update: update.job[0])]
        for transform in (*self.transforms, self.server.compress):
            clients = [transform(its) for its in clients]
        return [update for its in clients for update in its]
