"""Signals before and after a federation: a line instead of silence, and the code that a shell would give."""

from __future__ import annotations

import os
import pty
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from flt.core.errors import HungUp, Terminated
from flt.core.signals import ENDING, deferred, handled, number_of, raised_as_exceptions

ERRORS = [(signal.SIGTERM, Terminated), (signal.SIGHUP, HungUp)]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), *ERRORS])
def test_each_signal_has_an_exception_that_tells_its_number(number: int, error: type[KeyboardInterrupt]) -> None:
    assert ENDING[number] is error
    assert number_of(error()) == number


@pytest.mark.parametrize(("number", "error"), ERRORS)
def test_a_signal_is_raised_and_a_second_one_ends_the_process(number: int, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with raised_as_exceptions():
        with pytest.raises(error):
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == before


def test_a_deferred_signal_takes_effect_after_the_block() -> None:
    done = []

    def interrupted() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            done.append("in the block")
        done.append("after the block")

    with pytest.raises(Terminated), raised_as_exceptions():
        interrupted()
    assert done == ["in the block"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup leaves it
    try:
        with raised_as_exceptions():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.SIGHUP not in handled()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_than_the_main_one_handle_nothing() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with raised_as_exceptions():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


PROGRAM = """
import sys, time
from flt.core.signals import raised_as_exceptions
from flt.core.errors import HungUp
with raised_as_exceptions():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except HungUp:
        print("a line that nobody can read", flush=True)
        print("nor this one", file=sys.stderr, flush=True)
        open(sys.argv[1], "w").write("went on")
"""


def test_output_to_a_terminal_that_was_closed_raises_nothing(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM, str(tmp_path / "said")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the kernel sends SIGHUP
    until = time.monotonic() + 20
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < until:
        time.sleep(0.02)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert ended == (pid, 0)
    assert (tmp_path / "said").read_text() == "went on"
