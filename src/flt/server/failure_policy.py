"""What a round puts up with: jobs that fail, rounds that are tried again, and how long a client may take."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from flt.core.errors import InputError
from flt.protocol.messages import JobId, message


@message
@dataclasses.dataclass(frozen=True)
class Failure:
    """A job without an update, and why: the round may go on without it.

    Attributes:
        job: Which.
        why: One line; of an error that isn't flt's own its kind and place, since its text may quote a user's examples.
    """

    job: JobId
    why: str

    @staticmethod
    def of(job: JobId, error: BaseException) -> Failure:
        """The failure that an error is."""
        if isinstance(error, InputError):
            return Failure(job, " ".join(str(error).split()))
        frames = traceback.extract_tb(error.__traceback__)
        at = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        return Failure(job, f"{type(error).__name__}{at}")

    def __str__(self) -> str:
        return f"client {self.job[0]}, job {self.job[1]}: {self.why}"


class ClientTimeoutError(InputError):
    """A fit took longer than ``client_timeout``."""


class RoundFailedError(InputError):
    """Too few updates arrived, and no attempt is left."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """When a round stands.

    Attributes:
        min_updates: Fewest updates, of jobs; None: the whole cohort's.
        max_retries: How often a round is tried again, each time with another cohort where not all clients take part.
        client_timeout: Seconds that the fit of a job may take; None: as long as it likes.

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
            if not 0 < self.client_timeout < math.inf:
                raise InputError.of("client_timeout", self.client_timeout, "seconds > 0, or null")
            if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
                why = "only the main thread of a process can be interrupted"
                raise InputError.of("client_timeout", self.client_timeout, "null", why)

    @property
    def strict(self) -> bool:
        """Whether the first failure ends the run, so that it ends with the error itself."""
        return self.min_updates is None and not self.max_retries

    def again(self, attempt: int, number: int, arrived: int, asked: int) -> None:
        """Called before a round is tried once more.

        Args:
            attempt: How often it has been tried again.
            number: Of the round.
            arrived: Updates.
            asked: Jobs.

        Raises:
            RoundFailedError: No attempt is left.
        """
        if attempt == self.max_retries:
            wanted = "the whole cohort" if self.min_updates is None else self.min_updates
            why = f"of {asked} jobs {arrived} sent an update, after {attempt} retries"
            raise RoundFailedError.of(f"round {number}", "failed", f"min_updates={wanted}", why)

    def enough(self, arrived: int, asked: int) -> bool:
        """Whether a round stands in which so many of the jobs that were asked sent an update."""
        return arrived >= (asked if self.min_updates is None else self.min_updates)


STRICT = Tolerance()
"""The first failure ends the run."""
AGAIN = 1.0
"""Seconds after which a body that goes on is interrupted once more."""
GRACE = 10.0
"""Seconds in which what cleans up after an interruption isn't interrupted itself."""


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Interrupts the body when the time is up, also where it waits for something, and again until it has ended.

    A data set or a training step that goes on after any error would swallow a single interruption. What the body does
    to clean up after one isn't cut off by the next, as long as it takes no longer than ``GRACE``.

    Raises:
        ClientTimeoutError: The body took longer.
    """
    if seconds is None:
        yield
        return

    rings = itertools.count()

    def ring(*_: object) -> None:
        if next(rings) * AGAIN < GRACE and isinstance(sys.exc_info()[1], ClientTimeoutError):
            return
        raise ClientTimeoutError(f"client_timeout={seconds}: a fit took longer; allowed is a longer time, or null")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # twice, since it may have rung just before the first
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # none: one that Python can't name
