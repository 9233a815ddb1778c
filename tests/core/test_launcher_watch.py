"""A launched process ends with its launcher, and only then."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the watch is left out")

WATCHED = "import os, sys, time; import flt; {then}; print('ready', flush=True); time.sleep(60)"
LAUNCHER = """
import subprocess, sys
from flt.core.launcher_watch import launching
with launching():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), end="", flush=True)
sys.stdin.read(1)
"""


@contextlib.contextmanager
def launched(then: str, errors: Path, rank: str = "1"):
    command = [sys.executable, "-c", LAUNCHER, WATCHED.format(then=then)]
    with errors.open("w") as file:
        launcher = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "LOCAL_RANK": rank},
        )  # fmt: skip
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline().split()[0]))
        try:
            yield launcher, child
        finally:
            for process in (launcher, child):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            launcher.communicate(timeout=10)


def ended(process: psutil.Process, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "printed"),
    [("1", "error: the first process of the run has died; the same command with resume=last goes on\n"), ("2", "")],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_launched_process_ends_with_its_launcher_and_one_says_so(
    number: int, rank: str, printed: str, tmp_path: Path
) -> None:
    with launched("flt.WATCH.start(speaker=1)", tmp_path / "errors", rank) as (launcher, child):
        assert not ended(child, 1.2)
        launcher.send_signal(number)
        assert ended(child, 20)
    assert (tmp_path / "errors").read_text() == printed


def test_it_ends_while_it_still_imports(tmp_path: Path) -> None:
    with launched("pass", tmp_path / "errors") as (launcher, child):
        launcher.kill()
        assert ended(child, 20)


def test_it_ends_while_it_waits_where_no_signal_is_handled(tmp_path: Path) -> None:
    waits = "import ctypes, threading; threading.Timer(0.5, lambda: print('ready', flush=True)).start()"
    waits += "; ctypes.CDLL(None).sleep(60)"
    with launched(waits, tmp_path / "errors") as (launcher, child):
        launcher.kill()
        assert ended(child, 20)


@pytest.mark.slow
def test_a_process_whose_work_is_done_outlives_its_launcher(tmp_path: Path) -> None:
    with launched("flt.WATCH.stop()", tmp_path / "errors") as (launcher, child):
        launcher.kill()
        assert not ended(child, 2)
    assert (tmp_path / "errors").read_text() == ""


def test_what_a_launched_process_starts_itself_is_not_launched(tmp_path: Path) -> None:
    with launched("assert 'FLT_LAUNCHER' not in os.environ", tmp_path / "errors"):
        pass
    assert (tmp_path / "errors").read_text() == ""
