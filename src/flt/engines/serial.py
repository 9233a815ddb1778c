"""The serial engine: it trains one job after another on one resident module, the module that stays on its device."""

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
from flt.server.engine import Assignment, Engine, Outcome


@dataclasses.dataclass
class SerialSettings:
    """Settings of the serial engine. The engine has no setting besides its name.

    Attributes:
        name: Always ``serial``.
    """

    name: str = "serial"


class SerialEngine(Engine):
    """Trains one job after another on the resident module.

    Args:
        local_trainer: Trains a job on the resident module.
        clients: Client id -> the client's description, with its data.
        settings: Settings of the engine. If None, :class:`SerialSettings` is used.
        on_settings: Called with the complete settings as a dict when a subclass has chosen a setting that was None.
    """

    jobs: int | None = 1
    """Number of jobs that are trained at once; None if a subclass has not chosen the number yet."""

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

    def run(self, assignments: Iterable[Assignment]) -> Iterator[Outcome]:
        """Trains one job after another, and yields the outcome of each job as soon as the job has ended."""
        for assignment in assignments:
            client, index = assignment.payload.job
            data = self.clients[client].data[index]
            payload, private, seed = assignment.payload, assignment.private, assignment.seed
            fit = functools.partial(self.local_trainer.local_fit, data, payload, private, seed)
            outcome = self.failure_policy.guard(payload.job, fit)
            if isinstance(outcome, Failure):
                # Not earlier, because the traceback of the error kept the tensors of the failed fit alive.
                release_memory()
            yield outcome

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields all jobs of the cohort."""
        return iter(cohort)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Does nothing, because the serial engine runs in a single process."""

    def set_jobs(self, jobs: int) -> None:
        """Does nothing, because the serial engine always trains one job at a time."""
