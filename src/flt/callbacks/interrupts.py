"""Ctrl-C and SIGTERM: a run ends after the job that runs, between two rounds at once."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from flt.core.errors import Terminated
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)
SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}


class Interrupts(FedCallback):
    """Ends a run that gets a signal: once after the job that runs, a second time at once.

    The jobs of the round that was cut off are trained again after a resume, to the same bits. Only the main thread of a
    process gets signals: in another one nothing changes.

    Args:
        says: Whether to say that a signal has arrived: a terminal sends it to all processes of a run.
    """

    def __init__(self, says: bool = True) -> None:
        self.says = says
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def on_fit_start(self, federator: Federator) -> None:
        """Called when the federation begins, or goes on after a resume."""
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._receive) for number in heard}

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self._end(federator)

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Called when a job is sent its payload."""
        self._end(federator)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Called when a job's fit has ended."""
        self._end(federator)

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""
        self._restore()

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Called when the federation is interrupted."""
        self._restore()

    def _receive(self, number: int, frame: object) -> None:
        if self.received is not None:
            raise SIGNALS[signal.Signals(number)]
        self.received = signal.Signals(number)
        if self.says:
            _log.warning("%s: stopping after the job that runs; once more stops at once", self.received.name)

    def _end(self, federator: Federator) -> None:
        number = federator.engine.processes.signalled(self.received or 0)
        if number:
            raise SIGNALS[signal.Signals(number)]

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # none: one that Python can't name
        self._before = {}
