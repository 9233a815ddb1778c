"""The distributed engine: processes on one or several machines, launched by Lightning, share each cohort.

each process    trains clients by the engine inside: whenever it is free, the longest one that is left
all processes   merge their accumulators: int64 sums are added up, and updates gathered as bytes of safetensors
each process    state = aggregate(state, accumulator): the same bits in all processes
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
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update
from flt.protocol.wire_format import encode, message
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Engine, Outcome, Task
from flt.server.failure_policy import FailurePolicy

MAX_NUMBERS = 1 << 22
"""Largest count of numbers that one call sums over the processes."""
Key = tuple[str, str]


@message
@dataclasses.dataclass(frozen=True)
class Share:
    """Results of one process in a round.

    Attributes:
        updates: Updates of its jobs; without tensors if they were added to the sums.
        sums: (totals or start, what is summed, tensor) -> (shape, number of terms, reach) of its running sums.
        counts: Counts of its callbacks.
        files: Job -> file and checksum of the private state that the process wrote.
        failures: Failures of its jobs.
        jobs: Number of jobs that it trains at once; None: not chosen yet.
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
"""Name of an engine of one process -> classes of its settings and of the engine."""


@dataclasses.dataclass
class DistributedSettings(LaunchSettings):
    """Settings of the launch, and of the engine inside each process.

    Attributes:
        name: Always ``distributed``.
        inside: Name of the engine inside each process.
        jobs: Number of jobs at once with ``inside=batched``; None: timed.
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
        """Returns the settings of the engine inside."""
        kind, _ = INNER_ENGINES[self.inside]
        return kind(jobs=self.jobs) if self.inside == "batched" else kind()


class DistributedEngine(Engine):
    """Trains a share of each cohort. The results have the bits of the engine inside, for any number of processes.

    Args:
        inside: Engine of one process that trains the share, such as :class:`SerialEngine`.
        processes: Processes of the run.
    """

    def __init__(self, inside: SerialEngine, processes: ProcessGroup) -> None:
        super().__init__(inside.local_trainer, inside.clients, processes)
        self.inside = inside

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields the jobs of the clients that this process trains.

        A free process takes the longest client that is left, since processes aren't equally fast. If the bits of a fit
        depend on the jobs stacked with it, the shares are dealt beforehand.
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
        """Sets the failure policy here and in the engine inside."""
        super().set_failure_policy(failure_policy)
        self.inside.set_failure_policy(failure_policy)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Trains tasks by the engine inside, and yields the outcome of each as soon as it is known."""
        return self.inside.run(tasks)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Merges what the other processes have trained and counted, so that all processes have the same.

        Raises:
            InputError: A sum over all processes is too large.
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
        if known := [share.jobs for share in gathered if share.jobs is not None]:
            self.inside.set_jobs(min(known))  # Before the round's checkpoint, so that a resume stacks alike.
        counts.clear()
        if not self.processes.is_first:
            states.pop_replaced_files()  # The first process removes the files, with its checkpoints.
        for share in gathered:
            accumulator.merge(share.updates, share.failures)
            states.pending.update(share.files)
            counts.update(share.counts)
        for which, totals in sums.items():
            parts = [{key[1:]: part for key, part in share.sums.items() if key[0] == which} for share in gathered]
            self._sum_all(totals, parts)

    def _cost(self, job: Job) -> int:
        """Returns the number of tokens in the fit of a job, or of examples if these have no lengths."""
        data, settings = self.clients[job.client].data[job.index], self.local_trainer.settings
        size = data.examples
        length = settings.steps * settings.accumulate if settings.steps else None
        batches = length or (settings.epochs or 1) * math.ceil(size / settings.batch_size)
        lengths = lengths_of(data.training_set)
        return round(batches * min(settings.batch_size, size) * (1 if lengths is None else float(np.mean(lengths))))

    def _sum_all(self, totals: Totals, parts: Sequence[dict[Key, tuple[tuple[int, ...], int, float]]]) -> None:
        """Replaces each sum by the sum over all processes; a process without a term has zeros."""
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


def longest_first(costs: dict[int, int]) -> list[int]:
    """Returns clients in descending order of the cost of their jobs.

    Args:
        costs: Client -> cost of its jobs.
    """
    return sorted(costs, key=lambda client: (-costs[client], client))


def shares(costs: dict[int, int], processes: int) -> list[list[int]]:
    """Deals clients to processes: the longest first, each to the process with the least to do.

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
