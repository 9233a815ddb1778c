"""Launching the processes of a run, by Lightning's Fabric."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing as mp
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver, _SubprocessScriptLauncher
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from torch.multiprocessing import ProcessExitedException

from flt.core.errors import InputError, PeerDiedError
from flt.core.quiet import quiet_launch
from flt.engines.process_group import PATIENCE, LaunchedProcessGroup, ProcessGroup

SPAWN, FORK = "ddp_spawn", "ddp_fork"
START: dict[str, Literal["popen", "spawn", "fork"]] = {"ddp": "popen", SPAWN: "spawn", FORK: "fork"}
"""DistributedEngine -> how its processes start, in Python's terms."""
_T = TypeVar("_T")


@dataclasses.dataclass
class LaunchSettings:
    """How the processes of an engine start.

    Attributes:
        strategy: Lightning's name of it: ``ddp``, ``ddp_spawn`` or ``ddp_fork``.
        nodes: Machines, each with ``devices`` processes.
    """

    strategy: str = "ddp"
    nodes: int = 1

    strategies: ClassVar[tuple[str, ...]] = tuple(START)

    def __post_init__(self) -> None:
        if self.strategy not in self.strategies:
            raise InputError.of("engine.strategy", self.strategy, self.strategies)
        if self.nodes < 1:
            raise InputError.of("engine.nodes", self.nodes, "an integer >= 1")


class _Launcher(_SubprocessScriptLauncher):
    """Starts the others; Lightning's observer, which kills this process where one of them dies, ends with the start.

    From then on whoever exchanges something with a process that has died notices, and the run decides what follows.
    """

    observer: _ChildProcessObserver | None = None

    def launch(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Starts the processes, then calls the function here."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self.observer = _ChildProcessObserver(os.getpid(), list(self.procs))
            self.observer.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def started(self) -> None:
        """Called when all processes have met."""
        if self.observer is not None:
            self.observer._child_processes = []  # it ends when it has none left


class _Quiet(DDPStrategy):
    """Says nothing of the processes that it connects, in those that are spawned too."""

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            assert self.cluster_environment is not None
            self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        with quiet_launch():
            super().setup_environment()
        if isinstance(self._launcher, _Launcher):
            self._launcher.started()


def launched(devices: int, settings: Any, work: Callable[[ProcessGroup], _T]) -> _T:
    """Does the work in each process of the run, and returns what this one's made.

    Args:
        devices: Of each machine.
        settings: The engine's; those of an engine of one process are no :class:`LaunchSettings`.
        work: Called with the processes.

    Raises:
        InputError: The engine has one process, or there are fewer devices.
    """
    if not isinstance(settings, LaunchSettings):
        if devices != 1:
            why = "engine=distributed and engine=sharded use several"
            raise InputError.of("devices", devices, f"1 with engine={settings.name}", why)
        return work(ProcessGroup())
    fabric = _fabric(devices, settings)
    if settings.strategy in (SPAWN, FORK):
        return _spawn(fabric, functools.partial(_alone, work) if settings.strategy == FORK else work)
    fabric.launch()
    try:
        return work(LaunchedProcessGroup(fabric))
    except PeerDiedError:
        for process in getattr(fabric.strategy.launcher, "procs", ()):  # none where another launcher has started them
            process.kill()
            process.wait()
        raise


def _spawn(fabric: Fabric, work: Callable[[ProcessGroup], _T]) -> _T:
    """What the first of the processes made, which all end with the work.

    Lightning reads its own queue only once they have ended, and a process doesn't end before its result is read: one
    that a pipe can't hold would wait for ever. So a thread reads here meanwhile.
    """
    here, there = mp.get_context("spawn").Pipe(duplex=False)
    with here, ThreadPoolExecutor(1) as reader:
        received = reader.submit(here.recv_bytes)
        with there:  # closed here too, whatever comes: a process that sends nothing must not leave the thread waiting
            try:
                fabric.launch(functools.partial(_spawned, work, there))
            except ProcessExitedException as error:
                raise PeerDiedError("a process of the run has died") from error
        made: _T | InputError = pickle.loads(received.result())  # from a process that this one started
    if isinstance(made, InputError):
        raise made
    return made


def _alone(work: Callable[[ProcessGroup], _T], processes: ProcessGroup) -> _T:
    """The work in a forked process, in which the threads of its parent are missing, and OpenMP would wait for them."""
    torch.set_num_threads(1)
    return work(processes)


def _spawned(work: Callable[[ProcessGroup], _T], there: Connection, fabric: Fabric) -> None:
    """The work in a process that ends with it: its tensors go by value, and so does a mistake in the input."""
    made: _T | InputError
    try:
        made = work(LaunchedProcessGroup(fabric))
    except InputError as error:
        made = error
    if fabric.global_rank == 0:
        there.send_bytes(pickle.dumps(made))


def _fabric(devices: int, settings: LaunchSettings) -> Fabric:
    found = torch.cuda.device_count()
    if devices < 1 or (found and devices > found):
        raise InputError.of("devices", devices, f"an integer from 1 to {found}" if found else "an integer >= 1")
    if settings.strategy == FORK and ("fork" not in mp.get_all_start_methods() or torch.cuda.is_initialized()):
        why = "this system can't fork, or a GPU is in use already"
        raise InputError.of("engine.strategy", FORK, [its for its in settings.strategies if its != FORK], why)
    # the fits of engine=sharded have other strategies; its processes start as all do
    # a process that has died is noticed at once; one that is late, for its clients or an evaluation, is waited for
    strategy = _Quiet(timeout=PATIENCE, start_method=START.get(settings.strategy, "popen"))
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if found else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
