"""A run that fails ends the processes that it has started, and leaves nothing that a later run would trip over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch.distributed as dist

from flt.core.errors import InputError, Terminated
from flt.core.signals import raised_as_exceptions
from flt.engines.started_processes import VARIABLES, StartedProcesses, whole_starts


def waiting() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def failing(started: StartedProcesses, *, external: bool = False, nodes: int = 1, group: str = "") -> None:
    """A run that sets what Lightning's launcher sets, starts a process unless another program does so, and fails."""
    with started.ended_after_failure(external, nodes):
        if group:
            dist.init_process_group("gloo", init_method=f"file://{group}", rank=0, world_size=1)
        if not external:
            os.environ.update(dict.fromkeys(VARIABLES, "1"))
            started.processes.append(waiting())
        raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NODE_RANK", "0")


def test_the_processes_and_the_variables_of_a_failed_run_are_gone() -> None:
    started = StartedProcesses()
    processes = started.processes
    other = waiting()
    processes.append(other)
    with pytest.raises(KeyboardInterrupt):
        failing(started)
    assert processes == []
    assert other.returncode == -9
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == {"NODE_RANK": "0"}


def test_a_run_that_fails_after_others_restores_what_was_set_before_the_first() -> None:
    started = StartedProcesses()
    with started.ended_after_failure(external=False, nodes=1):
        os.environ["LOCAL_RANK"] = "0"
    with pytest.raises(KeyboardInterrupt):  # LOCAL_RANK is set, as if another program had launched this process
        failing(started, external=True)
    assert "LOCAL_RANK" not in os.environ


def test_what_another_program_has_launched_keeps_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    started = StartedProcesses()
    with pytest.raises(KeyboardInterrupt):
        failing(started, external=True)
    assert os.environ["LOCAL_RANK"] == "0"
    started.check("ddp")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "ddp_fork"])
def test_what_cannot_be_started_after_a_failed_run_is_refused_in_a_line(strategy: str) -> None:
    started = StartedProcesses()
    started.check(strategy)
    with pytest.raises(KeyboardInterrupt):
        failing(started)
    line = f"^engine.strategy={strategy}: .*; allowed is {strategy} after a new start of the program$"
    with pytest.raises(InputError, match=line):
        started.check(strategy)
    started.check("ddp_spawn")


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn"])
def test_after_a_run_whose_processes_stay_python_starts_none(strategy: str) -> None:
    started = StartedProcesses()
    with started.ended_after_failure(external=False, nodes=1):
        started.check("ddp")
    started.check("ddp")
    with pytest.raises(InputError, match=f"^engine.strategy={strategy}: an earlier run has started processes"):
        started.check(strategy)


def test_a_run_that_fails_before_it_has_started_processes_can_be_tried_again() -> None:
    started = StartedProcesses()

    def fails_early() -> None:
        with started.ended_after_failure(external=False, nodes=1):
            os.environ["MASTER_PORT"] = "29500"
            raise InputError("the port is taken")

    with pytest.raises(InputError):
        fails_early()
    assert "MASTER_PORT" not in os.environ
    started.check("ddp")


def grouped(nodes: int, folder: Path) -> None:
    try:
        failing(StartedProcesses(), nodes=nodes, group=str(folder / "meeting"))
    except KeyboardInterrupt:
        os._exit(7 if dist.is_initialized() else 8)


@pytest.mark.parametrize(("nodes", "code"), [(1, 8), (2, 7)])
def test_torchs_process_group_ends_too_unless_other_machines_are_in_it(nodes: int, code: int, tmp_path: Path) -> None:
    assert exit_code(lambda: grouped(nodes, tmp_path)) == code


def exit_code(work: Callable[[], None]) -> int | None:
    """The exit code of a fork, since a process group has threads."""
    process = get_context("fork").Process(target=work)
    process.start()
    process.join(30)
    process.kill()
    process.join()
    return process.exitcode


class Interrupting:
    """Work that a signal interrupts while it is sent to a process."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        signal.raise_signal(signal.SIGTERM)
        return int, ()


def test_a_signal_during_the_start_of_a_process_takes_effect_once_the_process_has_its_work() -> None:
    process = get_context("spawn").Process(target=int, args=(Interrupting(),))
    with pytest.raises(Terminated), raised_as_exceptions(), whole_starts():
        process.start()
    process.join(60)
    assert process.exitcode == 0
