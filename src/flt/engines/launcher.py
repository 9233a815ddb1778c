"""Launcher of the processes of a run, by Lightning's Fabric."""

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
from flt.engines.process_group import PEER_TIMEOUT, LaunchedProcessGroup, ProcessGroup

SPAWN, FORK = "ddp_spawn", "ddp_fork"
START: dict[str, Literal["popen", "spawn", "fork"]] = {"ddp": "popen", SPAWN: "spawn", FORK: "fork"}
"""Name of the strategy -> Python's name of the way to start its processes."""
_T = TypeVar("_T")


@dataclasses.dataclass
class LaunchSettings:
    """Settings of an engine of several processes.

    Attributes:
        strategy: Lightning's name of the strategy: ``ddp``, ``ddp_spawn`` or ``ddp_fork``.
        nodes: Number of machines, each with ``devices`` processes.
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
    """Starts the other processes, and ends Lightning's observer once all of them have started.

    The observer would kill this process if another one died. After the start, a process that communicates with a dead
    process raises an error, and the run decides what follows.
    """

    observer: _ChildProcessObserver | None = None

    def launch(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Starts the other processes, then calls the function in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self.observer = _ChildProcessObserver(os.getpid(), list(self.procs))
            self.observer.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def started(self) -> None:
        """Called when all processes are connected."""
        if self.observer is not None:
            self.observer._child_processes = []  # The observer ends when it has no process left.


class _QuietDDP(DDPStrategy):
    """DDP strategy that prints nothing about its processes, in spawned processes too."""

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


def launch(devices: int, settings: Any, work: Callable[[ProcessGroup], _T]) -> _T:
    """Calls a function in each process of the run, and returns the result of this process.

    Args:
        devices: Number of devices of each machine.
        settings: Settings of the engine; an engine of several processes has :class:`LaunchSettings`.
        work: Called with the process group.

    Raises:
        InputError: The engine takes one process only, or the machine has fewer devices.
    """
    if not isinstance(settings, LaunchSettings):
        if devices != 1:
            why = "engine=distributed and engine=sharded use several"
            raise InputError.of("devices", devices, f"1 with engine={settings.name}", why)
        return work(ProcessGroup())
    fabric = _fabric(devices, settings)
    if settings.strategy in (SPAWN, FORK):
        return _spawn(fabric, functools.partial(_single_threaded, work) if settings.strategy == FORK else work)
    fabric.launch()
    try:
        return work(LaunchedProcessGroup(fabric))
    except PeerDiedError:
        for process in getattr(fabric.strategy.launcher, "procs", ()):  # none if another launcher has started them
            process.kill()
            process.wait()
        raise


def _spawn(fabric: Fabric, work: Callable[[ProcessGroup], _T]) -> _T:
    """Calls a function in spawned or forked processes, and returns the result of the first of them.

    Lightning reads its own queue only after the processes have ended, but a process whose result is larger than a pipe
    ends only after the result is read. Therefore a thread reads the result meanwhile.
    """
    receiver, sender = mp.get_context("spawn").Pipe(duplex=False)
    with receiver, ThreadPoolExecutor(1) as reader:
        received = reader.submit(receiver.recv_bytes)
        with sender:  # Closed here too: if no process sends a result, the thread must not wait for ever.
            try:
                fabric.launch(functools.partial(_spawned, work, sender))
            except ProcessExitedException as error:
                raise PeerDiedError("a process of the run has died") from error
        result: _T | InputError = pickle.loads(received.result())  # Sent by a process that this one started.
    if isinstance(result, InputError):
        raise result
    return result


def _single_threaded(work: Callable[[ProcessGroup], _T], processes: ProcessGroup) -> _T:
    """Calls a function with one thread: in a forked process, OpenMP would wait for the threads of its parent."""
    torch.set_num_threads(1)
    return work(processes)


def _spawned(work: Callable[[ProcessGroup], _T], sender: Connection, fabric: Fabric) -> None:
    """Calls a function in a spawned process; the first one sends its result, or its InputError, by value."""
    result: _T | InputError
    try:
        result = work(LaunchedProcessGroup(fabric))
    except InputError as error:
        result = error
    if fabric.global_rank == 0:
        sender.send_bytes(pickle.dumps(result))


def _fabric(devices: int, settings: LaunchSettings) -> Fabric:
    gpus = torch.cuda.device_count()
    if devices < 1 or (gpus and devices > gpus):
        raise InputError.of("devices", devices, f"an integer from 1 to {gpus}" if gpus else "an integer >= 1")
    if settings.strategy == FORK and ("fork" not in mp.get_all_start_methods() or torch.cuda.is_initialized()):
        why = "this system can't fork, or a GPU is in use already"
        raise InputError.of("engine.strategy", FORK, [other for other in settings.strategies if other != FORK], why)
    # The fits of engine=sharded have other strategies, but its processes start in the same way. The timeout is long,
    # since a process may train or evaluate for long; a dead process is noticed at once.
    strategy = _QuietDDP(timeout=PEER_TIMEOUT, start_method=START.get(settings.strategy, "popen"))
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if gpus else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
