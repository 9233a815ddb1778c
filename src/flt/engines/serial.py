"""The serial engine: one job after another on one resident module."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset

from flt.client.trainer import LocalTrainer
from flt.core.memory import free
from flt.core.timeout import ClientTimeoutError
from flt.data.clients import ClientSpec
from flt.engines.process_group import ProcessGroup
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import Payload
from flt.protocol.state import ClientState, ServerState
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.engine import Outcome, Task
from flt.server.failure_policy import STRICT, FailurePolicy


@dataclasses.dataclass
class SerialSettings:
    """One job after another: nothing to set.

    Attributes:
        name: Always ``serial``.
    """

    name: str = "serial"


class SerialEngine:
    """Trains jobs one after another; an engine decides where jobs run and how many at once, never what comes out.

    Args:
        local_trainer: The resident module.
        clients: Client id -> its data.
        settings: The engine's own.
        found: Told the settings, once the engine has found out what they leave open.
    """

    independent: ClassVar[bool] = True
    """Whether the bits of a fit are the same whatever is trained before and beside it."""

    jobs: int | None = 1
    """How many at once; None: not known yet."""

    def __init__(
        self,
        local_trainer: LocalTrainer,
        clients: Mapping[int, ClientSpec],
        settings: Any = None,
        found: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.local_trainer, self.clients, self.found = local_trainer, clients, found or (lambda settings: None)
        self.settings: Any = settings or SerialSettings()
        self.failure_policy = STRICT
        self.processes = ProcessGroup()
        """Of the run: this one alone, unless an engine has others."""

    def set_failure_policy(self, failure_policy: FailurePolicy) -> None:
        """Takes over whether a failing job ends the run or is an outcome like others, and how long one may take."""
        self.failure_policy, self.local_trainer.timeout = failure_policy, failure_policy.client_timeout

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Yields each job's update and private state, or why there are none, as soon as it is known."""
        for task in tasks:
            yield self.outcome(task)

    def outcome(self, task: Task) -> Outcome:
        """Trains one job."""
        client, index = task.payload.job
        try:
            return self.local_trainer.local_fit(self.clients[client].data[index], task.payload, task.private, task.seed)
        except Exception as error:
            if self.failure_policy.strict and isinstance(error, ClientTimeoutError):
                raise ClientTimeoutError(str(Failure.of(task.payload.job, error))) from error
            if self.failure_policy.strict:
                raise
            failure = Failure.of(task.payload.job, error)
        free()  # outside the handler, whose exception keeps what the failed fit holds
        return failure

    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """The jobs that this process trains, a client's one after another, each asked for when it can begin: here all.

        Called once in each attempt at a round.
        """
        return iter(cohort)

    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Brings in what other processes have trained and counted: here there are none."""

    def agree(self, stop: bool) -> bool:
        """What the first process decides."""
        return self.processes.agree(stop)

    def set_jobs(self, jobs: int) -> None:
        """Takes over how many jobs at once other processes found best: here it is one, always."""

    def signalled(self, number: int) -> int:
        """Which signal ends the run before the next job: the one that this process has received; 0: none."""
        return number

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process can't go on."""
        self.processes.fail(error)

    def load(self, state: ServerState, gid: int, head: str = "") -> None:
        """Puts one group's global model, at the living pairs, into the resident module.

        Args:
            state: The server's state.
            gid: Whose model.
            head: With which head, where jobs have different ones; without, the module keeps the one that it has.
        """
        self._catch_up(state)
        self.local_trainer.put(self.local_trainer.served.model(state.groups[gid].weights, state.active, head))

    def evaluate(
        self,
        state: ServerState,
        gid: int,
        dataset: Dataset,
        watch: Callable[[int, int], None] | None = None,
        head: str = "",
    ) -> dict[str, float]:
        """What the module's ``validation_step`` logs for one group's global model.

        Args:
            state: The server's state.
            gid: Whose model.
            dataset: On what.
            watch: Told after each batch how many of how many are done.
            head: With which head, where jobs have different ones.
        """
        self.load(state, gid, head)
        with isolate_rng():
            return self.local_trainer.evaluate(dataset, watch)

    def evaluate_payload(
        self,
        state: ServerState,
        payload: Payload,
        private: ClientState,
        dataset: Dataset,
        watch: Callable[[int, int], None] | None = None,
    ) -> dict[str, float]:
        """What the module's ``validation_step`` logs for the model that a job is sent.

        Args:
            state: The server's state that the payload came from.
            payload: What the job is sent.
            private: What stays on its client.
            dataset: On what.
            watch: Told after each batch how many of how many are done.
        """
        self._catch_up(state)  # the payload has the versions that its client lacks, the resident module lacks others
        client, index = payload.job
        self.local_trainer.install(payload, private, self.clients[client].data[index].head)
        with isolate_rng():
            return self.local_trainer.evaluate(dataset, watch)

    def _catch_up(self, state: ServerState) -> None:
        server = state.base
        self.local_trainer.apply_base(
            server.since(self.local_trainer.base_version, self.local_trainer.base), server.version
        )
