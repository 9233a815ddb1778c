"""The engine of a federation: where jobs are trained, and how many at once."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from flt.client.trainer import LocalTrainer
from flt.data.clients import ClientSpec
from flt.protocol.failure import Failure
from flt.protocol.job import Job
from flt.protocol.messages import Payload, Update
from flt.protocol.state import ClientState
from flt.server.accumulator import UpdateAccumulator
from flt.server.client_state_store import ClientStateStore
from flt.server.failure_policy import STRICT, FailurePolicy

if TYPE_CHECKING:
    from flt.engines.process_group import ProcessGroup


@dataclasses.dataclass(frozen=True)
class Task:
    """One job to train.

    Attributes:
        payload: What the server sends to the job.
        private: What the job's client kept from its last fit.
        seed: Seed of the fit.
    """

    payload: Payload
    private: ClientState
    seed: int


Outcome = tuple[Update, ClientState] | Failure
"""The update of a task and the new private state of its client, or the failure of its job."""


class Engine(abc.ABC):
    """Decides where the jobs of a round are trained and how many at once, never what comes out.

    Args:
        local_trainer: The resident module and all that trains a job on it.
        clients: Client id -> its data.
        processes: The processes of the run.
    """

    independent: ClassVar[bool] = True
    """True if the bits of a fit are the same whatever is trained before and beside it."""
    replicated: ClassVar[bool] = False
    """True if all processes train every job together, so that all of them have its update and private state."""

    def __init__(self, local_trainer: LocalTrainer, clients: Mapping[int, ClientSpec], processes: ProcessGroup) -> None:
        self.local_trainer, self.clients, self.processes = local_trainer, clients, processes
        self.failure_policy = STRICT

    def set_failure_policy(self, failure_policy: FailurePolicy) -> None:
        """Sets whether a failing job ends the run or is an outcome like others, and how long a fit may take."""
        self.failure_policy, self.local_trainer.timeout = failure_policy, failure_policy.client_timeout

    @abc.abstractmethod
    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields the jobs that this process trains, the jobs of one client in a row, each when it can begin.

        The federator calls this once in each attempt at a round.
        """

    @abc.abstractmethod
    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Trains tasks, and yields the outcome of each as soon as it is known."""

    @abc.abstractmethod
    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Merges what the other processes have trained and counted, so that all processes have the same."""
