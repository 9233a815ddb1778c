"""Handling of Ctrl-C, SIGTERM and SIGHUP, which end a run after the current job.

A signal between two jobs ends the run before the next job.
"""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

from flt.core.errors import HungUp
from flt.core.signals import ENDING, discard_output_without_terminal, handled
from flt.protocol.messages import Payload, Update
from flt.server.callback import FedCallback
from flt.server.federator import Federator

_log = logging.getLogger(__name__)


class Interrupts(FedCallback):
    """Ends a run after the current job when a signal arrives, and at once when a second signal arrives.

    After a resume, all jobs of the unfinished round are trained again, and the result is bit-identical to that of an
    uninterrupted run. Python handles signals only in the main thread. In any other thread this callback does nothing.

    Args:
        says: If True, a line is printed when a signal arrives. Only one process should print the line, because a
            terminal sends the signal to all processes of a run.
    """

    def __init__(self, says: bool = True) -> None:
        self.says = says
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def on_fit_start(self, federator: Federator) -> None:
        """Installs the signal handlers."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in handled()}

    def on_round_start(self, federator: Federator) -> None:
        """Ends the run if a signal has arrived."""
        self._end(federator)

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        """Ends the run if a signal has arrived."""
        self._end(federator)

    def on_job_end(self, federator: Federator, update: Update) -> None:
        """Ends the run if a signal has arrived."""
        self._end(federator)

    def on_fit_end(self, federator: Federator) -> None:
        """Restores the earlier signal handlers."""
        self._restore()

    def on_exception(self, federator: Federator, exception: BaseException) -> None:
        """Restores the earlier signal handlers."""
        self._restore()

    def _receive(self, number: int, frame: object) -> None:
        if ENDING[number] is HungUp:
            discard_output_without_terminal()
        if self.received is not None:
            raise ENDING[number]
        self.received = signal.Signals(number)
        if self.says:
            _log.warning("%s: stopping after the current job; send it again to stop at once", self.received.name)

    def _end(self, federator: Federator) -> None:
        number = federator.engine.processes.agree_on_signal(self.received or 0)
        if number:
            raise ENDING[number]

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # handler is None if it wasn't installed from Python
        self._before = {}
