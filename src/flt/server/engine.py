"""Base class of the engines. An engine decides where jobs are trained, and how many at once."""

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
class Assignment:
    """Everything that an engine needs to train one job.

    Attributes:
        payload: Payload that the server sends to the job.
        private: Client state that was kept from the job's latest fit; empty before the job's first fit.
        seed: Seed of the fit.
    """

    payload: Payload
    private: ClientState
    seed: int


Outcome = tuple[Update, ClientState] | Failure
"""Result of an assignment: the update with the job's new client state, or the failure of the job."""


class Engine(abc.ABC):
    """Decides where the jobs of a round are trained and how many at once. It doesn't change the federated method.

    Args:
        local_trainer: Trains one job after another on the resident module, the module that stays on its device.
        clients: Client id -> the client's description, with its data.
        processes: Group of the run's processes.
    """

    independent: ClassVar[bool] = True
    """True if a fit has a bit-identical result whichever other jobs are trained before it or at the same time."""
    replicated: ClassVar[bool] = False
    """True if all processes train every job together. Each process then has every update and client state."""

    def __init__(self, local_trainer: LocalTrainer, clients: Mapping[int, ClientSpec], processes: ProcessGroup) -> None:
        self.local_trainer, self.clients, self.processes = local_trainer, clients, processes
        self.failure_policy = STRICT

    def set_failure_policy(self, failure_policy: FailurePolicy) -> None:
        """Sets the failure policy: whether a failing job ends the run, and how long a fit may take."""
        self.failure_policy, self.local_trainer.timeout = failure_policy, failure_policy.client_timeout

    @abc.abstractmethod
    def deal(self, cohort: Sequence[Job]) -> Iterator[Job]:
        """Yields the jobs that this process trains. Each job is yielded when its training can begin.

        The jobs of one client follow each other. The federator calls this method once in each attempt at a round.
        """

    @abc.abstractmethod
    def run(self, assignments: Iterable[Assignment]) -> Iterator[Outcome]:
        """Trains jobs, and yields the outcome of each job as soon as the job has ended."""

    @abc.abstractmethod
    def exchange(self, accumulator: UpdateAccumulator, counts: Counter[str], states: ClientStateStore) -> None:
        """Merges the results of all processes. Afterwards the arguments have the same content in all processes.

        Args:
            accumulator: Updates and failures of this process's jobs.
            counts: Numbers that this process's callbacks counted.
            states: Client states of the jobs that this process has trained.
        """
