"""The strategy engine: the cohort shared over processes that Lightning launches, on one machine or several.

each process    accumulator = fits of clients by the engine inside, the longest first, each by whoever is free
all             accumulator = accumulator of all: int64 sums added up, or updates gathered as bytes of safetensors
                state = aggregate(state, accumulator)              in each process, from the same bits to the same bits
the first       evaluates, shows, writes checkpoints
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
from flt.core.errors import InputError
from flt.data.samplers import lengths_of
from flt.engines.batched.engine import BatchedEngine, BatchedSettings
from flt.engines.launcher import LaunchSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.serial import SerialEngine, SerialSettings
from flt.protocol.codec import encode, message
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import JobId, Update
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Engine, Outcome, Task
from flt.server.failure_policy import FailurePolicy

AT_ONCE = 1 << 22
"""Numbers that are added up over the processes in one call."""
Key = tuple[str, str]


@message
@dataclasses.dataclass(frozen=True)
class Share:
    """What one process has of a round.

    Attributes:
        updates: Of its jobs; without tensors where they were added to the sums.
        sums: (of which totals, what, tensor) -> (shape, terms, reach), of its running sums.
        counts: What callbacks counted.
        files: Job -> file and checksum of the private state that it wrote.
        failures: Of its jobs without an update.
        jobs: How many it trains at once; None: not known yet.
    """

    updates: tuple[Update, ...]
    sums: dict[tuple[str, str, str], tuple[tuple[int, ...], int, float]]
    counts: dict[str, int]
    files: dict[JobId, tuple[str, str]]
    failures: tuple[Failure, ...] = ()
    jobs: int | None = None


INSIDE: dict[str, tuple[type, type[SerialEngine]]] = {
    "serial": (SerialSettings, SerialEngine),
    "batched": (BatchedSettings, BatchedEngine),
}
"""Engine of one process -> its settings, and the engine: called with site, clients and settings."""


@dataclasses.dataclass
class DistributedSettings(LaunchSettings):
    """How processes start, and the engine in each of them.

    Attributes:
        name: Always ``distributed``.
        inside: An engine of one process.
        jobs: Of ``inside=batched``: how many jobs at once.
    """

    name: str = "distributed"
    inside: str = "serial"
    jobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inside not in INSIDE:
            raise InputError.of("engine.inside", self.inside, INSIDE)
        if self.jobs is not None and self.inside != "batched":
            raise InputError.of("engine.jobs", self.jobs, f"null with engine.inside={self.inside}")
        self.of_inside()

    def of_inside(self) -> Any:
        """The settings of the engine inside."""
        kind, _ = INSIDE[self.inside]
        return kind(jobs=self.jobs) if self.inside == "batched" else kind()


class DistributedEngine(Engine):
    """Trains a share of each cohort; what comes out has the bits of the engine inside, for any number of processes.

    Args:
        inside: Trains the share: :class:`SerialEngine`, or another engine of one process.
        processes: Those of the run.
    """

    def __init__(self, inside: SerialEngine, processes: ProcessGroup) -> None:
        super().__init__(inside.local_trainer, inside.clients, processes)
        self.inside = inside

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """The jobs of the clients that this process trains.

        Whoever is free takes the client that is longest of those that are left, since processes aren't equally fast.
        Where the bits of a fit depend on which are stacked with it, shares are dealt beforehand.
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
        """Takes over what the run puts up with, for the engine inside too."""
        super().set_failure_policy(failure_policy)
        self.inside.set_failure_policy(failure_policy)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields each job's update and private state, or why there are none, as soon as it is known."""
        return self.inside.run(tasks)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Brings in what the other processes have trained and counted, so that all have the same.

        Raises:
            InputError: The sums are too large together.
        """
        sums = {} if accumulator.sums is None else {"totals": accumulator.sums.totals, "start": accumulator.sums.start}
        described = {
            (which, *key): (tuple(its.high.shape), its.count, its.reach)
            for which, totals in sums.items()
            for key, its in totals.items()
        }
        failures, jobs = tuple(accumulator.failures.values()), self.inside.jobs
        mine = Share(tuple(accumulator.sendable()), described, dict(counts), dict(states.pending), failures, jobs)
        found: list[Share] = self.processes.all_gather_checked(encode(mine))
        if known := [share.jobs for share in found if share.jobs is not None]:
            self.inside.set_jobs(min(known))  # before the round's checkpoint: a resume stacks as all do from now on
        counts.clear()
        if not self.processes.is_first:
            states.pop_replaced_files()  # the first one's checkpoints remove the files
        for share in found:
            accumulator.merge(share.updates, share.failures)
            states.pending.update(share.files)
            counts.update(share.counts)
        for which, totals in sums.items():
            self._add_up(totals, [{key[1:]: its for key, its in s.sums.items() if key[0] == which} for s in found])

    def _cost(self, job: Job) -> int:
        """Tokens of a fit, or examples where they are all alike."""
        data, settings = self.clients[job.client].data[job.index], self.local_trainer.settings
        size = data.examples
        length = settings.steps * settings.accumulate if settings.steps else None
        batches = length or (settings.epochs or 1) * math.ceil(size / settings.batch_size)
        lengths = lengths_of(data.training_set)
        return round(batches * min(settings.batch_size, size) * (1 if lengths is None else float(np.mean(lengths))))

    def _add_up(self, totals: Totals, found: Sequence[dict[Key, tuple[tuple[int, ...], int, float]]]) -> None:
        """Makes each sum that of all processes; a process that has had no term of one has zeros."""
        keys = sorted({key for its in found for key in its})
        shapes = {key: shape for its in found for key, (shape, _, _) in its.items()}
        mine = {key: totals[key] if key in totals else ExactSum.zeros(shapes[key]) for key in keys}
        for some in _in_parts(keys, shapes):
            limbs = [limb.reshape(-1) for key in some for limb in (mine[key].high, mine[key].low)]
            summed = iter(self.processes.total(torch.cat(limbs)).split([len(limb) for limb in limbs]))
            for key in some:
                terms = [its[key][1:] for its in found if key in its]
                high, low = (next(summed).reshape(shapes[key]) for _ in range(2))
                totals[key] = _whole(high, low, sum(n for n, _ in terms), sum(reach for _, reach in terms))


def longest_first(costs: dict[int, int]) -> list[int]:
    """Clients by what their jobs cost, the dearest first.

    Args:
        costs: Client -> what its jobs cost.
    """
    return sorted(costs, key=lambda client: (-costs[client], client))


def shares(costs: dict[int, int], processes: int) -> list[list[int]]:
    """Clients to processes: the longest first, each to the process that has least to do.

    Args:
        costs: Client -> what its jobs cost.
        processes: How many.

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


def _whole(high: Tensor, low: Tensor, count: int, reach: float) -> ExactSum:
    try:
        return ExactSum.of(high, low, count, reach)
    except OverflowError as error:
        raise InputError.of("updates", error, "smaller numbers; lower local.lr") from error


def _in_parts(keys: Sequence[Key], shapes: dict[Key, tuple[int, ...]]) -> Iterator[list[Key]]:
    part: list[Key] = []
    numbers = 0
    for key in keys:
        size = 2 * math.prod(shapes[key])
        if part and numbers + size > AT_ONCE:
            yield part
            part, numbers = [], 0
        part.append(key)
        numbers += size
    if part:
        yield part
