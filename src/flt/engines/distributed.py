"""The distributed engine: it divides each cohort over several processes, on one or several machines.

each process    takes the remaining client with most work, trains its jobs with the inner engine, and repeats this
all processes   merge their accumulators: they add up the int64 sums, and exchange the other data as encoded bytes
each process    computes state = aggregate(state, accumulator), which is bit-identical in all processes
first process   evaluates, prints, and writes checkpoints
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flt.algorithm.rule.base import Totals
from flt.algorithm.rule.exact_sum import ExactSum
from flt.core.errors import InputError, diverged
from flt.data.samplers import lengths_of
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.launcher import LaunchSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialEngine, SerialSettings
from flt.engines.work_queue import INTRUDER
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update, encode, message
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Assignment, Engine, Outcome
from flt.server.failure_policy import FailurePolicy

MAX_NUMBERS = 1 << 22
"""Largest number of integers that one call sums over the processes, unless a single tensor contains more."""
Key = tuple[str, str]


@message
@dataclasses.dataclass(frozen=True)
class Share:
    """Message with the results of one process in a round.

    Attributes:
        updates: Updates of the process's jobs; without tensors if the tensors were added to the sums.
        sums: Description of the process's running sums: (``totals`` or ``start``, kind of the summand, name of the
            tensor) -> (shape, number of terms, :attr:`ExactSum.reach`). The sums themselves are exchanged separately.
        counts: Counts of the process's callbacks: name -> number.
        files: Job -> file and checksum of the client state that the process wrote.
        failures: Failures of the process's jobs.
        jobs: Number of jobs that the process trains at once; None if the number is not chosen yet.
    """

    updates: tuple[Update, ...]
    sums: dict[tuple[str, str, str], tuple[tuple[int, ...], int, float]]
    counts: dict[str, int]
    files: dict[JobId, tuple[str, str]]
    failures: tuple[Failure, ...] = ()
    jobs: int | None = None


INNER_ENGINES: dict[str, tuple[type, type[SerialEngine]]] = {
    "serial": (SerialSettings, SerialEngine),
    "batched": (BatchedSettings, BatchedEngine),
}
"""Name of an engine that runs in one process -> (class of its settings, class of the engine)."""


@dataclasses.dataclass
class DistributedSettings(LaunchSettings):
    """Settings of the distributed engine.

    Attributes:
        name: Always ``distributed``.
        inside: Name of the inner engine, with which each process trains its jobs: ``serial`` or ``batched``.
        jobs: Number of jobs that a process trains at once with ``inside=batched``. If None, the inner engine chooses
            the number by timing.
    """

    name: str = "distributed"
    inside: str = "serial"
    jobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inside not in INNER_ENGINES:
            raise InputError.of("engine.inside", self.inside, INNER_ENGINES)
        if self.jobs is not None and self.inside != "batched":
            raise InputError.of("engine.jobs", self.jobs, f"null with engine.inside={self.inside}")
        self.inner_settings()

    def inner_settings(self) -> Any:
        """Returns the settings of the inner engine."""
        kind, _ = INNER_ENGINES[self.inside]
        return kind(jobs=self.jobs) if self.inside == "batched" else kind()


class DistributedEngine(Engine):
    """Trains this process's share of each cohort with an inner engine.

    With :class:`SerialEngine` inside, the results are bit-identical for any number of processes.

    Args:
        inside: Inner engine, which trains jobs in this process.
        processes: Group of the run's processes.
    """

    def __init__(self, inside: SerialEngine, processes: ProcessGroup) -> None:
        super().__init__(inside.local_trainer, inside.clients, processes)
        self.inside = inside

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields the jobs that this process trains. The jobs of one client follow each other.

        Processes aren't equally fast. Whenever a process is free, it therefore takes the client with most work among
        those that no process has taken. If the results of a fit depend on the jobs that are trained at the same time,
        the clients are divided over the processes beforehand, so that a repeated run divides them in the same way.
        """
        jobs, costs = defaultdict[int, list[Job]](list), Counter[int]()
        for job in cohort:
            jobs[job.client].append(job)
            costs[job.client] += self._cost(job)
        if not self.inside.independent:
            mine = set(shares(costs, self.processes.size)[self.processes.rank])
            return (job for job in cohort if job.client in mine)
        claimed = self.processes.work_queue(longest_first(costs))
        return (job for client in claimed for job in jobs[client])

    def set_failure_policy(self, failure_policy: FailurePolicy) -> None:
        """Sets the failure policy of this engine and of the inner engine."""
        super().set_failure_policy(failure_policy)
        self.inside.set_failure_policy(failure_policy)

    def run(self, assignments: Iterable[Assignment]) -> Iterator[Outcome]:
        """Trains jobs with the inner engine, and yields the outcome of each job as soon as the job has ended."""
        return self.inside.run(assignments)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Merges the results of all processes. Afterwards the arguments have the same content in all processes.

        Args:
            accumulator: Updates and failures of this process's jobs.
            counts: Counts of this process's callbacks: name -> number.
            states: Client states of the jobs that this process has trained.

        Raises:
            InputError: A sum over all processes is too large, or another program has changed the work queue.
        """
        sums = {} if accumulator.sums is None else {"totals": accumulator.sums.totals, "start": accumulator.sums.start}
        described = {
            (which, *key): (tuple(total.high.shape), total.count, total.reach)
            for which, totals in sums.items()
            for key, total in totals.items()
        }
        failures, jobs = tuple(accumulator.failures.values()), self.inside.jobs
        mine = Share(tuple(accumulator.sendable()), described, dict(counts), dict(states.pending), failures, jobs)
        gathered: list[Share] = self.processes.all_gather_checked(encode(mine))
        _check_trained_once(gathered, accumulator.jobs)
        if known := [share.jobs for share in gathered if share.jobs is not None]:
            # Set before the checkpoint is written, so that a resumed run trains the same number of jobs at once.
            self.inside.set_jobs(min(known))
        counts.clear()
        if not self.processes.is_first:
            states.pop_replaced_files()  # Only the first process removes files, together with old checkpoints.
        for share in gathered:
            accumulator.merge(share.updates, share.failures)
            states.pending.update(share.files)
            counts.update(share.counts)
        for which, totals in sums.items():
            parts = [{key[1:]: part for key, part in share.sums.items() if key[0] == which} for share in gathered]
            self._sum_all(totals, parts)

    def _cost(self, job: Job) -> int:
        """Returns the expected number of tokens in a job's fit. For images, returns the number of examples."""
        data, settings = self.clients[job.client].data[job.index], self.local_trainer.settings
        size = data.examples
        length = settings.steps * settings.accumulate if settings.steps else None
        batches = length or (settings.epochs or 1) * math.ceil(size / settings.batch_size)
        lengths = lengths_of(data.training_set)
        return round(batches * min(settings.batch_size, size) * (1 if lengths is None else float(np.mean(lengths))))

    def _sum_all(self, totals: Totals, parts: Sequence[dict[Key, tuple[tuple[int, ...], int, float]]]) -> None:
        """Replaces each running sum by its total over all processes, in place. All processes must call this together.

        Args:
            totals: Running sums of this process. A process without a term adds zeros.
            parts: For each process: key of a sum -> (shape, number of terms, reach), as in ``Share.sums``.
        """
        keys = sorted({key for part in parts for key in part})
        shapes = {key: shape for part in parts for key, (shape, _, _) in part.items()}
        mine = {key: totals[key] if key in totals else ExactSum.zeros(shapes[key]) for key in keys}
        for chunk in _chunks(keys, shapes):
            limbs = [limb.reshape(-1) for key in chunk for limb in (mine[key].high, mine[key].low)]
            summed = iter(self.processes.all_reduce_sum(torch.cat(limbs)).split([len(limb) for limb in limbs]))
            for key in chunk:
                terms = [part[key][1:] for part in parts if key in part]
                high, low = (next(summed).reshape(shapes[key]) for _ in range(2))
                totals[key] = _exact_sum(high, low, sum(n for n, _ in terms), sum(reach for _, reach in terms))


def _check_trained_once(gathered: Sequence[Share], cohort: Iterable[JobId]) -> None:
    """Checks that each job of the cohort was trained by exactly one process.

    Raises:
        InputError: This isn't so, because another program has changed the work queue.
    """
    trained = Counter(update.job for share in gathered for update in share.updates)
    trained.update(failure.job for share in gathered for failure in share.failures)
    for job in cohort:
        if trained[job] != 1:
            key = f"processes that trained job {job[1]} of client {job[0]}"
            raise InputError.of(key, trained[job], "1", INTRUDER)


def longest_first(costs: dict[int, int]) -> list[int]:
    """Returns the clients in descending order of their costs. Clients with equal costs are in ascending order.

    Args:
        costs: Client -> cost of its jobs.
    """
    return sorted(costs, key=lambda client: (-costs[client], client))


def shares(costs: dict[int, int], processes: int) -> list[list[int]]:
    """Divides clients over processes, and returns the clients of each process.

    Clients are assigned in descending order of cost. Each goes to the process with the smallest sum of costs so far.

    Args:
        costs: Client -> cost of its jobs.
        processes: Number of processes.

    Example:
        >>> shares({0: 1, 1: 5, 2: 2, 3: 3}, 2)
        [[1, 0], [3, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(processes)]
    load = [0] * processes
    for client in longest_first(costs):
        least = load.index(min(load))
        dealt[least].append(client)
        load[least] += costs[client]
    return dealt


def _exact_sum(high: Tensor, low: Tensor, count: int, reach: float) -> ExactSum:
    try:
        return ExactSum.of(high, low, count, reach)
    except OverflowError as error:
        raise diverged("updates", error, "smaller numbers") from error


def _chunks(keys: Sequence[Key], shapes: dict[Key, tuple[int, ...]]) -> Iterator[list[Key]]:
    part: list[Key] = []
    numbers = 0
    for key in keys:
        size = 2 * math.prod(shapes[key])
        if part and numbers + size > MAX_NUMBERS:
            yield part
            part, numbers = [], 0
        part.append(key)
        numbers += size
    if part:
        yield part
