"""Signals that end a run, and the exceptions that they raise."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn

from flt.core.errors import HungUp, Terminated

ENDING: dict[int, type[KeyboardInterrupt]] = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
"""Number of a signal that ends a run -> exception that the signal raises."""
if hasattr(signal, "SIGHUP"):  # Windows has no SIGHUP
    ENDING[signal.SIGHUP] = HungUp


def number_of(error: KeyboardInterrupt) -> int:
    """Returns the number of the signal for which an exception stands."""
    return next((number for number, kind in ENDING.items() if type(error) is kind), int(signal.SIGINT))


def handled() -> list[int]:
    """Returns the signals of ``ENDING`` that this process doesn't ignore. ``nohup`` makes a process ignore SIGHUP."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def raised_as_exceptions() -> Iterator[None]:
    """Raises the exceptions of ``ENDING`` within the with block, instead of ending this process without a word.

    A second signal of the same kind ends the process at once, even while it waits for another process. Python handles
    signals only in the main thread. In any other thread this context manager does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _raise) for number in handled() if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # handler is None if it wasn't installed from Python


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Lets the signals of ``ENDING`` take effect only after the with block. In other threads it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = {number: signal.signal(number, lambda found, _: received.append(found)) for number in handled()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # as in raised_as_exceptions
    for number in received[:1]:
        signal.raise_signal(number)


def discard_output_without_terminal() -> None:
    """Discards further output to a terminal that has been closed. Printing to it would raise an error."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _raise(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    if ENDING[number] is HungUp:
        discard_output_without_terminal()
    raise ENDING[number]
