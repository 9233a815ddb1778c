"""Whatever ends the first process of a run takes the others with it, and says so in a line."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from launched import LIMIT, ForkedFlt, is_there, launched_by, outlive

slow = pytest.mark.slow  # whole runs

LONG = ["rounds=10000", "devices=2", "name=long"]
STRATEGIES = {
    "ddp": ["engine=distributed"],
    "ddp_fork": ["engine=distributed", "engine.strategy=ddp_fork"],
    "ddp_spawn": ["engine=distributed", "engine.strategy=ddp_spawn"],
    "fsdp": ["engine=sharded", "engine.strategy=fsdp"],
}
NUMBER = {"ddp": 1, "ddp_fork": 2, "ddp_spawn": 2, "fsdp": 1}
"""Processes that the first one starts; with ddp_fork and ddp_spawn, it trains nothing itself."""
CODES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}
INTERRUPTED = "interrupted; the same command with resume=last goes on after the last finished round"
DIED = "error: the first process of the run has died; the same command with resume=last goes on"


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """A shell's background jobs have SIGINT ignored, which a run would leave so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


seen = list[psutil.Process]()
"""All processes that the tests have started."""


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Ends what a failed test has left running."""
    yield
    outlive(seen, seconds=0)
    seen.clear()


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_for_a_round(folder: Path) -> None:
    wait_until(lambda: list(folder.glob("lightning_logs/long/version_0/checkpoints/round_*.json")))


def waits(process: psutil.Process) -> bool:
    """Whether a process does nothing for half a second. A process that trains is running, even on a busy machine."""
    for _ in range(50):
        if process.status() != psutil.STATUS_SLEEPING:
            return False
        time.sleep(0.01)
    return True


def started(folder: Path, strategy: str, *, trains: bool) -> tuple[ForkedFlt, list[psutil.Process]]:
    run = ForkedFlt(folder, *STRATEGIES[strategy], *LONG)
    seen.append(psutil.Process(run.pid))
    children = launched_by(run, NUMBER[strategy])
    seen.extend(children)
    if trains:
        wait_for_a_round(folder)
        children = psutil.Process(run.pid).children()
        seen.extend(children)
    return run, children


def lines(printed: str) -> list[str]:
    return [
        line for line in printed.splitlines() if not line.startswith(("flt 0", "long on", "round ", "pre-training"))
    ]


@slow
@pytest.mark.parametrize(
    ("strategy", "number", "trains"),
    [
        ("ddp", signal.SIGTERM, False), ("ddp", signal.SIGINT, False), ("ddp", signal.SIGHUP, False),
        ("ddp", signal.SIGHUP, True), ("ddp_fork", signal.SIGTERM, False), ("ddp_fork", signal.SIGHUP, True),
        ("ddp_spawn", signal.SIGTERM, False), ("fsdp", signal.SIGTERM, True),
    ],
)  # fmt: skip
def test_a_signal_to_the_first_process_ends_all_with_a_line(
    strategy: str, number: int, trains: bool, tmp_path: Path
) -> None:
    run, children = started(tmp_path, strategy, trains=trains)
    os.kill(run.pid, number)
    printed = run.communicate(timeout=60)[0]
    assert outlive(children) == []
    assert run.returncode == CODES[signal.Signals(number)]
    assert [line for line in lines(printed) if "stopping after the current job" not in line] == [INTERRUPTED]


@slow
@pytest.mark.parametrize(
    ("strategy", "trains"),
    [("ddp", False), ("ddp", True), ("ddp_fork", True), ("fsdp", True)],
)
def test_the_death_of_the_first_process_ends_the_others_with_a_line(
    strategy: str, trains: bool, tmp_path: Path
) -> None:
    run, children = started(tmp_path, strategy, trains=trains)
    os.kill(run.pid, signal.SIGKILL)
    assert outlive(children) == []
    assert lines(run.communicate(timeout=60)[0]) == [DIED]


@slow
def test_the_death_of_a_process_that_starts_ends_the_first_one_with_a_line(tmp_path: Path) -> None:
    run, (other,) = started(tmp_path, "ddp", trains=False)
    other.kill()
    (line,) = lines(run.communicate(timeout=60)[0])
    assert run.returncode == 1
    assert line == "error: process 1 of this machine has ended while it started, with exit code -9; start the run again"


@slow
def test_the_death_of_a_forked_process_ends_the_run_with_a_line(tmp_path: Path) -> None:
    run, children = started(tmp_path, "ddp_fork", trains=True)
    children[-1].kill()
    printed = run.communicate(timeout=60)[0]
    assert outlive(children) == []
    assert run.returncode == 1
    (line,) = [line for line in lines(printed) if "stopping after the current job" not in line]
    assert line == "error: a process of the run has died; the same command with resume=last goes on"


@slow
def test_two_signals_end_a_run_that_waits_for_a_process_that_hangs(tmp_path: Path) -> None:
    run, (other,) = started(tmp_path, "ddp", trains=True)
    other.suspend()
    wait_until(lambda: waits(psutil.Process(run.pid)))  # for the other one's share of the round
    while is_there(psutil.Process(run.pid)):  # two signals at once could count as one
        os.kill(run.pid, signal.SIGTERM)
        time.sleep(0.5)
    run.communicate(timeout=60)
    assert run.returncode == CODES[signal.SIGTERM]
    assert outlive([other]) == []


@slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_fork"])
def test_a_given_port_that_is_taken_is_a_line_and_exit_code_2(strategy: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = ForkedFlt(tmp_path, *STRATEGIES[strategy], *LONG, MASTER_PORT=port)
        (line,) = lines(run.communicate(timeout=60)[0])
    assert run.returncode == 2
    assert line.startswith(f"error: MASTER_PORT={port}: another program uses it; allowed is a free port")
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=slow), "ddp_fork"])
def test_the_processes_of_one_machine_listen_on_loopback_only(strategy: str, tmp_path: Path) -> None:
    run, children = started(tmp_path, strategy, trains=True)
    connections = [its for process in (psutil.Process(run.pid), *children) for its in process.net_connections()]
    listening = [its for its in connections if its.status == psutil.CONN_LISTEN]
    os.kill(run.pid, signal.SIGTERM)
    run.communicate(timeout=60)
    assert outlive(children) == []
    assert len(listening) >= 3
    assert {its.laddr.ip for its in listening} <= {"127.0.0.1", "::1"}
