"""Launcher: it starts the processes of a run with Lightning's Fabric."""

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
"""Name of the strategy -> ``start_method`` of Lightning's DDPStrategy."""
_T = TypeVar("_T")


@dataclasses.dataclass
class LaunchSettings:
    """Settings that all engines with several processes have.

    Attributes:
        strategy: Lightning's name of the strategy: ``ddp``, ``ddp_spawn`` or ``ddp_fork``.
        nodes: Number of machines. Each machine runs one process for each of its ``devices``.
    """

    strategy: str = "ddp"
    nodes: int = 1

    strategies: ClassVar[tuple[str, ...]] = tuple(START)
    replicated: ClassVar[bool] = False
    """True if all processes of the engine train every job together."""

    @property
    def forks(self) -> bool:
        """True if processes are started as copies of this process."""
        return self.strategy == FORK

    def __post_init__(self) -> None:
        if self.strategy not in self.strategies:
            raise InputError.of("engine.strategy", self.strategy, self.strategies)
        if not 1 <= self.nodes < 1 << 16:  # torch counts processes in 32 bits
            raise InputError.of("engine.nodes", self.nodes, "an integer >= 1")


class _Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine, and stops Lightning's observer when all processes are connected.

    The observer is a thread that kills this process if one of the other processes dies. Without the observer, the next
    communication with the dead process raises an error, which the run can handle.
    """

    observer: _ChildProcessObserver | None = None

    def launch(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Starts the other processes, then calls the function in this process."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            self.observer = _ChildProcessObserver(os.getpid(), list(self.procs))
            self.observer.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def started(self) -> None:
        """Stops the observer; called when all processes are connected."""
        if self.observer is not None:
            self.observer._child_processes = []  # an observer with an empty list ends


class _QuietDDP(DDPStrategy):
    """DDP strategy that prints nothing about its processes, neither in this process nor in spawned ones."""

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
    """Starts the processes of the run, and calls a function in each.

    Args:
        devices: Number of devices on each machine.
        settings: Settings of the engine. Only an engine with :class:`LaunchSettings` runs in several processes.
        work: Function to call in each process, with the process group as its argument.

    Returns:
        The result of the function in this process. If processes were spawned or forked, the result of the function in
        the first of them.

    Raises:
        InputError: ``devices`` isn't 1 although the engine runs in one process only, ``devices`` is larger than the
            number of GPUs, or processes can't be forked.
        PeerDiedError: Another process of the run has died.
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
        for process in getattr(fabric.strategy.launcher, "procs", ()):  # empty if torchrun or SLURM started them
            process.kill()
            process.wait()
        raise


def _spawn(fabric: Fabric, work: Callable[[ProcessGroup], _T]) -> _T:
    """Calls a function in spawned or forked processes, and returns the result of the first process.

    Lightning passes results through a queue, which it reads only after the processes have ended. A process can't end,
    however, while a result that is larger than a pipe's buffer is unread. Therefore the result is sent through a
    separate pipe, and a thread reads this pipe while the processes run.
    """
    receiver, sender = mp.get_context("spawn").Pipe(duplex=False)
    with receiver, ThreadPoolExecutor(1) as reader:
        received = reader.submit(receiver.recv_bytes)
        with sender:  # If no process sends a result, closing this end stops the thread from waiting for ever.
            try:
                fabric.launch(functools.partial(_spawned, work, sender))
            except ProcessExitedException as error:
                raise PeerDiedError("a process of the run has died") from error
        result: _T | InputError = pickle.loads(received.result())  # safe: the bytes come from a process of this run
    if isinstance(result, InputError):
        raise result
    return result


def _single_threaded(work: Callable[[ProcessGroup], _T], processes: ProcessGroup) -> _T:
    """Limits PyTorch to one thread and calls a function in a forked process.

    With more threads, OpenMP would wait for the threads of the parent process.
    """
    torch.set_num_threads(1)
    return work(processes)


def _spawned(work: Callable[[ProcessGroup], _T], sender: Connection, fabric: Fabric) -> None:
    """Calls a function in each spawned process. The first of them sends the pickled result or InputError."""
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
    # This strategy only starts the processes; the fits of engine=sharded use strategies of their own. The timeout is
    # long, since a process may train or evaluate for long. A dead process is noticed by its closed connection.
    strategy = _QuietDDP(timeout=PEER_TIMEOUT, start_method=START.get(settings.strategy, "popen"))
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if gpus else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
