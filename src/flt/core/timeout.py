"""Time limit that interrupts the code in a with block."""

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
"""Seconds between two interruptions of a block that goes on after an interruption."""
GRACE = 10.0
"""Seconds during which code that handles the first interruption isn't interrupted again."""


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Interrupts the with block when the time is up, even if the block is waiting for something.

    The interruption is repeated every ``AGAIN`` seconds until the block has ended, because a data set or a training
    step may catch every error and go on. Code that handles the first interruption, for example to clean up, isn't
    interrupted again within ``GRACE`` seconds.

    Args:
        seconds: Time limit in seconds. If None, there is no limit.

    Raises:
        ClientTimeoutError: The block took longer than the limit.
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
    finally:
        # The alarm may have interrupted the inner finally, so the timer is stopped a second time.
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before or signal.SIG_DFL)  # before is None if Python didn't set the handler
