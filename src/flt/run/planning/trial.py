"""Time of a run, extrapolated from a short trial on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from flt.client.trainer import LocalTrainer
from flt.engines.distributed import INNER_ENGINES, DistributedSettings
from flt.engines.serial import SerialEngine, SerialSettings
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import Plan
from flt.protocol.state import ClientState, ServerState
from flt.server.engine import Assignment
from flt.server.federator import Federator

FEW, MANY = 1, 5
"""Numbers of steps of the timed fits. The difference of their times is the time of the steps alone."""
REPEATS = 3
"""Number of times that each fit is timed. The shortest time counts."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """Times in seconds, measured in fits with one plan.

    Attributes:
        step: An optimiser step of one job.
        fit: All of a fit besides its steps: its start, the evaluations before and after it, and its update.
    """

    step: float
    fit: float


@dataclasses.dataclass
class Trial:
    """Times fits of a few steps on a few jobs, with the run's own engine, and an evaluation of the global model.

    The fits begin from the run's first state, and what they learn is forgotten.

    Attributes:
        federator: Federator of the dry run.
        trainer: Local trainer that really trains.
        first: State of the server before round 1.
        settings: Settings of the engine.
        jobs: Number of jobs that are timed together, which an engine may train at once.
    """

    federator: Federator
    trainer: LocalTrainer
    first: ServerState
    settings: Any
    jobs: int

    def pace(self, plan: Plan) -> Pace:
        """Returns the times of fits with a plan."""
        engine = self._engine()
        cohort = [job for _, client in sorted(self.federator.clients.items()) for job in client.jobs(self._rank())]
        chosen = cohort[: self.jobs]
        self._seconds(engine, chosen, plan, FEW)  # not counted, because the first fit also allocates memory
        few, many = (
            min(self._seconds(engine, chosen, plan, steps) for _ in range(REPEATS)) / len(chosen)
            for steps in (FEW, MANY)
        )
        step = max(0.0, many - few) / (MANY - FEW)
        return Pace(step, max(0.0, few - FEW * step))

    def evaluation(self, sets: Mapping[str, Dataset], heads: Mapping[str, str]) -> float:
        """Returns the seconds of an evaluation of the global model.

        Args:
            sets: Task, or subset of a task -> examples.
            heads: The same names -> name of the head. Empty if all jobs have the same head.
        """
        total = 0.0
        for name, dataset in sets.items():
            size = len(dataset)  # type: ignore[arg-type]  # has a length
            timed = min(size, 2 * self.trainer.settings.eval_batch_size)
            part = Subset(dataset, range(timed))
            times = []
            for _ in range(2):  # the first time includes allocations
                began = time.perf_counter()
                self.trainer.evaluate_group(self.first, self.first.home, part, head=heads[name])
                times.append(time.perf_counter() - began)
            total += min(times) * size / max(timed, 1)
        return total

    def _rank(self) -> int:
        return max((layer.rank for layer in self.federator.server.layout.layers.values()), default=0)

    def _engine(self) -> SerialEngine:
        settings: Any = self.settings
        if isinstance(settings, DistributedSettings):
            settings = settings.inner_settings()
        if settings.name not in INNER_ENGINES:  # sharded: timed on one device
            settings = SerialSettings()
        if getattr(settings, "jobs", 1) is None:
            settings = dataclasses.replace(settings, jobs=self.jobs)
        return INNER_ENGINES[settings.name][1](self.trainer, self.federator.clients, settings, None)

    def _seconds(self, engine: SerialEngine, jobs: Sequence[Job], plan: Plan, steps: int) -> float:
        """Returns the seconds in which the engine trains some jobs for some steps each."""
        began = time.perf_counter()
        for outcome in engine.run(self._assignments(jobs, dataclasses.replace(plan, steps=steps))):
            assert not isinstance(outcome, Failure), "the default failure policy raises the error"
        if self.trainer.module.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _assignments(self, jobs: Sequence[Job], plan: Plan) -> Iterator[Assignment]:
        for number, job in enumerate(jobs):
            payload = self.federator.server.broadcast(self.first, job, jobs)
            yield Assignment(dataclasses.replace(payload, plan=plan), ClientState(), number)
