"""Command lines run as processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import psutil

SHORT = ["algo=hafl", "rounds=2", "clients=4", "local.steps=2", "eval.examples=20", "eval.client_examples=4"]


LIMIT = 300
"""Seconds."""


class Running(Protocol):
    """A command line that runs as a process."""

    pid: int
    returncode: int

    def communicate(self, *, timeout: float) -> tuple[str, str | None]: ...


def flt(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flt", "train", *SHORT, *overrides],
        cwd=folder, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


class ForkedFlt:
    """``flt train`` in a fork of the test's process, which has the imports; what it launches are new processes."""

    def __init__(self, folder: Path, *overrides: str, **environment: str) -> None:
        self._printed = folder / f"printed_{len(list(folder.glob('printed_*')))}"
        self._printed.touch()
        work = (folder, ["flt", "train", *SHORT, *overrides], environment, self._printed)
        self._process = get_context("fork").Process(target=_command_line, args=work)
        self._process.start()
        assert self._process.pid is not None
        self.pid, self.returncode = self._process.pid, -1

    def communicate(self, *, timeout: float) -> tuple[str, str | None]:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it is still running"
        self.returncode = self._process.exitcode
        printed = self._printed.read_text()
        self._printed.unlink()
        return printed, None


def _command_line(folder: Path, words: list[str], environment: dict[str, str], printed: Path) -> None:
    from flt.cli.main import main

    os.chdir(folder)
    os.environ.update(environment)
    output = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.argv = [str(Path(sys.executable).parent / words[0]), *words[1:]]  # what Lightning starts the others with
    sys.modules["__main__"].__spec__ = None  # not python -m
    code = main()
    sys.stdout.flush()
    os._exit(code)


def launched_by(run: Running, number: int) -> list[psutil.Process]:
    """The processes that a run has launched, as soon as there are so many."""
    until = time.monotonic() + LIMIT
    while len(found := psutil.Process(run.pid).children()) < number:
        assert time.monotonic() < until, "the run has launched too few processes"
        time.sleep(0.02)
    return found


def is_there(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def outlive(processes: Sequence[psutil.Process], seconds: float = 20) -> list[psutil.Process]:
    """Those processes that are still there after some seconds. They are ended."""
    until, left = time.monotonic() + seconds, list(processes)
    while left and time.monotonic() < until:
        left = [its for its in left if is_there(its)]
        time.sleep(0.05)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def ended(*runs: Running) -> list[str]:
    """What the runs printed, once they have all ended well."""
    printed = [run.communicate(timeout=LIMIT)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * len(runs), printed
    return printed
