"""Failure policy: how many updates a round needs, and how often a failed round is tried again."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable
from typing import TypeVar

from flt.core.errors import InputError, ModuleError
from flt.core.timeout import ClientTimeoutError
from flt.protocol.failure import Failure
from flt.protocol.messages import JobId

LONGEST_TIMEOUT = 1e9
"""Largest number of seconds of ``client_timeout``. Systems have no timers for much longer times."""
_T = TypeVar("_T")


class RoundFailedError(InputError):
    """Error that ends a run because too few updates of a round arrived and no retry is left."""


@dataclasses.dataclass(frozen=True)
class FailurePolicy:
    """Conditions under which a round succeeds although jobs failed.

    Attributes:
        min_updates: Smallest number of updates with which a round succeeds. Each job sends one update. If None, every
            job of the cohort has to send its update.
        max_retries: Largest number of retries of a round. A retry draws another cohort, unless all clients take part.
        client_timeout: Number of seconds that the fit of a job may take. If None, there is no limit.

    Raises:
        InputError: A number is out of range.
    """

    min_updates: int | None = None
    max_retries: int = 0
    client_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.min_updates is not None and self.min_updates < 1:
            raise InputError.of("min_updates", self.min_updates, "an integer >= 1, or null: the whole cohort")
        if self.max_retries < 0:
            raise InputError.of("max_retries", self.max_retries, "an integer >= 0")
        if self.client_timeout is not None:
            if not 0 < self.client_timeout <= LONGEST_TIMEOUT:
                raise InputError.of("client_timeout", self.client_timeout, "seconds > 0, or null")
            if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
                why = "only the main thread of a process can be interrupted"
                raise InputError.of("client_timeout", self.client_timeout, "null", why)

    def guard(self, job: JobId, work: Callable[[], _T]) -> _T | Failure:
        """Calls a function that works on one job, and handles its errors.

        Args:
            job: The job.
            work: Function without arguments.

        Returns:
            The result of the function, or the failure of the job if the function raised an error and this policy
            tolerates failures.

        Raises:
            ModuleError: The user's module would fail on every client.
            ClientTimeoutError: The function took too long, and the policy is strict. The message names the job.
            Exception: The function raised any other error, and the policy is strict.
        """
        try:
            return work()
        except Exception as error:
            return self.failure(job, error)

    def failure(self, job: JobId, error: Exception) -> Failure:
        """Returns the failure of a job that raised an error. If the policy is strict, raises the error instead.

        Raises:
            ModuleError: The user's module would fail on every client.
            ClientTimeoutError: The job took too long, and the policy is strict. The message names the job.
            Exception: ``error`` is any other error, and the policy is strict.
        """
        found = Failure.of(job, error)
        if not self.strict and not isinstance(error, ModuleError):
            return found
        if isinstance(error, ClientTimeoutError):
            raise ClientTimeoutError(str(found)) from error
        raise error

    @property
    def strict(self) -> bool:
        """True if the first failure ends the run. The error of the failed job is then raised."""
        return self.min_updates is None and not self.max_retries

    def check_retry(self, attempt: int, number: int, arrived: int, asked: int) -> None:
        """Checks that a failed round may be tried again.

        Args:
            attempt: Number of retries of this round so far.
            number: Number of the round, for the error message.
            arrived: Number of updates that arrived, for the error message.
            asked: Number of jobs in the cohort, for the error message.

        Raises:
            RoundFailedError: No retry is left.
        """
        if attempt == self.max_retries:
            wanted = "the whole cohort" if self.min_updates is None else self.min_updates
            why = f"of {asked} jobs {arrived} sent an update, after {attempt} retries"
            raise RoundFailedError.of(f"round {number}", "failed", f"min_updates={wanted}", why)

    def is_met(self, arrived: int, asked: int) -> bool:
        """Returns whether enough updates arrived, so that the round succeeds.

        Args:
            arrived: Number of updates that arrived.
            asked: Number of jobs in the cohort.
        """
        return arrived >= (asked if self.min_updates is None else self.min_updates)


STRICT = FailurePolicy()
"""Policy under which the first failure ends the run."""
