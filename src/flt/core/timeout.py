"""A time limit that interrupts the code inside it."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator

from flt.core.errors import InputError


class ClientTimeoutError(InputError):
    """Error for a fit that took longer than ``client_timeout``."""


AGAIN = 1.0
"""Seconds between two interruptions of a body that doesn't end."""


GRACE = 10.0
"""Seconds after the first interruption in which the handling of an interruption isn't interrupted again."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the body when the time is up, even while it waits, and repeats this until the body has ended.

    One interruption isn't enough: a data set or a training step may catch every error and go on. While the body handles
    an interruption, for example to clean up, it isn't interrupted again within ``GRACE``.

    Args:
        seconds: Time limit; None: no limit.

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
    finally:  # again, since the alarm may have gone off just before the timer was stopped
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # None: a handler that wasn't set by Python
