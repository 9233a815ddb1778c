"""The serial engine: one job after another on one resident module."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flt.client.trainer import LocalTrainer
from flt.core.memory import release_memory
from flt.data.clients import ClientSpec
from flt.engines.process_group import ProcessGroup
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Engine, Outcome, Task


@dataclasses.dataclass
class SerialSettings:
    """One job after another: nothing to set.

    Attributes:
        name: Always ``serial``.
    """

    name: str = "serial"


class SerialEngine(Engine):
    """Trains jobs one after another.

    Args:
        local_trainer: The resident module and all that trains a job on it.
        clients: Client id -> its data.
        settings: The engine's settings.
        on_settings: Called with the settings once the engine has chosen those that were left open.
    """

    jobs: int | None = 1
    """Number of jobs that are trained at once; None: not chosen yet."""

    def __init__(
        self,
        local_trainer: LocalTrainer,
        clients: Mapping[int, ClientSpec],
        settings: Any = None,
        on_settings: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(local_trainer, clients, ProcessGroup())
        self.settings: Any = settings or SerialSettings()
        self.on_settings = on_settings or (lambda settings: None)

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Trains tasks one after another, and yields the outcome of each as soon as it is known."""
        for task in tasks:
            client, index = task.payload.job
            data = self.clients[client].data[index]
            fit = functools.partial(self.local_trainer.local_fit, data, task.payload, task.private, task.seed)
            outcome = self.failure_policy.guard(task.payload.job, fit)
            if isinstance(outcome, Failure):
                release_memory()  # The error, which is gone by now, kept alive what the failed fit held.
            yield outcome

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields all jobs of the cohort."""
        return iter(cohort)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Does nothing: there are no other processes."""

    def set_jobs(self, jobs: int) -> None:
        """Sets the number of jobs at once that all processes use: here it is always one."""
