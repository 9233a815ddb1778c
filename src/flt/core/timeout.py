"""A time limit that interrupts the code inside it."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator

from flt.core.errors import InputError


class ClientTimeoutError(InputError):
    """A fit took longer than ``client_timeout``."""


AGAIN = 1.0
"""Seconds after which a body that goes on is interrupted once more."""


GRACE = 10.0
"""Seconds in which what cleans up after an interruption isn't interrupted itself."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
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
