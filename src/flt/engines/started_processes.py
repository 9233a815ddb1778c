"""Processes that this process has started: they end with a run that fails, and leave no traces in this process."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import subprocess
from collections.abc import Iterator
from multiprocessing.context import SpawnProcess
from multiprocessing.process import BaseProcess

import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group

from flt.core.errors import InputError
from flt.core.signals import deferred

VARIABLES = (
    "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
)  # fmt: skip
"""Environment variables that the strategy ddp sets in the process that starts the others."""
BY_PYTHON = ("ddp_spawn", "ddp_fork")
"""Strategies whose processes Python's multiprocessing starts. They run no other code than the run's."""


class StartedProcesses:
    """Processes that this process has started with the strategy ddp. They stay for all runs of this process.

    Attributes:
        processes: The processes, in the order of their local ranks. The first of them has local rank 1.
    """

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self._before: dict[str, str | None] | None = None  # VARIABLES before the first run
        self._has_started = self._were_ended = False

    def check(self, strategy: str) -> None:
        """Checks that a run can have its processes, after the earlier runs of this process.

        Args:
            strategy: Lightning's name of the strategy with which the run starts its processes.

        Raises:
            InputError: The strategy can't start processes after an earlier run.
        """
        if strategy not in BY_PYTHON and self._were_ended:
            # New processes would run the user's program from its first line. Their first run would be another one than
            # the run that this process has reached.
            why = "its processes ended when an earlier run failed, and new ones would begin with that run"
            raise InputError.of("engine.strategy", strategy, f"{strategy} after a new start of the program", why)
        # A copy of this process would lack the threads of torch. A spawned one would take the port of the earlier run.
        if (strategy == "ddp_fork" and self._has_started) or (strategy == "ddp_spawn" and self._before is not None):
            why = "an earlier run has started processes in another way"
            raise InputError.of("engine.strategy", strategy, f"{strategy} after a new start of the program", why)

    @contextlib.contextmanager
    def ended_after_failure(self, external: bool, nodes: int) -> Iterator[None]:
        """Ends the processes if an error is raised in the with block. This process is then as before its first run.

        Args:
            external: True if another program, such as torchrun, has started all processes of the run. Then nothing is
                ended. Also true for each run after the first one.
            nodes: Number of machines.
        """
        if self._before is None and not external:
            self._before = {name: os.environ.get(name) for name in VARIABLES}
        self._has_started, had_group = True, dist.is_initialized()
        try:
            yield
        except BaseException:
            if self._before is not None:
                self._end()
                _set(self._before)
                self._before = None
                # Processes on other machines may be alive, and torch would wait until they have sent their messages.
                if nodes == 1 and dist.is_initialized() and not had_group:
                    _abort_process_group()
            raise

    def _end(self) -> None:
        self._were_ended = self._were_ended or bool(self.processes)
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes.clear()


@contextlib.contextmanager
def whole_starts() -> Iterator[None]:
    """Lets signals interrupt no start of a process that Python's multiprocessing spawns in the with block.

    A new process that gets only a part of its work would print a traceback.
    """

    def start(process: SpawnProcess) -> None:
        with deferred():
            BaseProcess.start(process)

    SpawnProcess.start = start  # type: ignore[assignment, method-assign]  # multiprocessing has no hook for this
    try:
        yield
    finally:
        del SpawnProcess.start


@contextlib.contextmanager
def ended_children() -> Iterator[None]:
    """Ends the processes that Python's multiprocessing has started in the with block, however the block ends."""
    before = set(mp.active_children())
    try:
        yield
    finally:
        for process in set(mp.active_children()) - before:
            process.kill()
            process.join()


@contextlib.contextmanager
def restored(*names: str) -> Iterator[None]:
    """Restores environment variables, so that a later run in this process doesn't take them for the user's."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        _set(before)


def _set(variables: dict[str, str | None]) -> None:
    """Sets environment variables. None removes a variable."""
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
