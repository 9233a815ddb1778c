"""Launcher: it starts the processes of a run with Lightning's Fabric."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import multiprocessing as mp
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, ClassVar, Literal, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from lightning.fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.fabric.utilities.distributed import _init_dist_connection, _set_num_threads_if_needed
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.multiprocessing import ProcessExitedException

from flt.core.errors import InputError, PeerDiedError
from flt.core.launcher_watch import WATCH, launching
from flt.core.quiet import quiet_launch
from flt.engines.process_group import LaunchedProcessGroup, ProcessGroup
from flt.engines.rendezvous import (
    LIMIT,
    LOOPBACK,
    PEER_TIMEOUT,
    first_socket,
    hosts_of_first,
    is_loopback,
    port_of,
    stay_on_loopback,
    store_of,
)
from flt.engines.started_processes import StartedProcesses, ended_children, restored, whole_starts

SPAWN, FORK = "ddp_spawn", "ddp_fork"
START: dict[str, Literal["popen", "spawn", "fork"]] = {"ddp": "popen", SPAWN: "spawn", FORK: "fork"}
"""Name of the strategy -> ``start_method`` of Lightning's DDPStrategy."""
CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Parts of the errors that gloo and NCCL raise if another process has closed its connection."""
_T = TypeVar("_T")
_started = StartedProcesses()


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
    """Starts the other processes of this machine.

    Lightning's observer is left out. It is a thread that kills this process if one of the other processes dies. Without
    it, the next communication with the dead process raises an error, which the run can handle.
    """

    def launch(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """Starts the other processes, then calls the function in this process."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self.procs = _started.processes
            with launching():
                self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class _QuietDDP(DDPStrategy):
    """DDP strategy that prints nothing about its processes, and whose processes meet within a time limit.

    Attributes:
        host: Address at which the other processes reach the stores that flt opens in the first one.
        opened: Socket of the first process's store, if this process or its launcher has opened the socket.
    """

    host = LOOPBACK
    opened: socket.socket | None = None

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            assert self.cluster_environment is not None
            self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def open_store(self) -> None:
        """Opens the socket of the first process's store, before this process launches others."""
        assert self.cluster_environment is not None
        self.opened = first_socket(self.cluster_environment, self.num_nodes)

    def setup_environment(self) -> None:
        if isinstance(self._launcher, _Launcher):
            WATCH.start(speaker=1)  # the first process is the launcher
        else:
            torch.multiprocessing._prctl_pr_set_pdeathsig(0)  # type: ignore[attr-defined]  # SIGINT may be ignored
            WATCH.start(speaker=0)
        with quiet_launch():
            super().setup_environment()

    def _setup_distributed(self) -> None:
        """Connects this process with the others, as Lightning does, but at a store of flt's own."""
        self._set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        environment = self.cluster_environment
        assert environment is not None
        meeting, self.host = hosts_of_first(environment, self.num_nodes)
        if is_loopback(self.host):
            stay_on_loopback()
        if torch.distributed.is_initialized():  # by an earlier run in this process
            return
        rank, size = environment.global_rank(), environment.world_size()
        store = store_of(meeting, port_of(environment), rank, size, self.opened, _started.processes)
        device = self.root_device if self.root_device.type != "cpu" else None
        _init_dist_connection(environment, self._process_group_backend, store=store, timeout=LIMIT, device_id=device)
        _set_pg_timeout(PEER_TIMEOUT)


def launch(devices: int, settings: Any, work: Callable[[ProcessGroup], _T]) -> _T:
    """Starts the processes of the run, and calls a function in each.

    Whatever ends this process also ends the processes that it has started.

    Args:
        devices: Number of devices on each machine.
        settings: Settings of the engine. Only an engine with :class:`LaunchSettings` runs in several processes.
        work: Function to call in each process, with the process group as its argument.

    Returns:
        The result of the function in this process. If processes were spawned or forked, the result of the function in
        the first of them.

    Raises:
        InputError: ``devices`` isn't 1 although the engine runs in one process only, ``devices`` is larger than the
            number of GPUs, processes can't be forked or started again, or the processes don't find each other.
        PeerDiedError: Another process of the run has died.
    """
    check_devices(devices, settings)
    if not isinstance(settings, LaunchSettings):
        return work(ProcessGroup())
    _started.check(settings.strategy)
    fabric = _fabric(devices, settings)
    if settings.strategy in (SPAWN, FORK):
        return _spawn(fabric, functools.partial(_single_threaded, work) if settings.strategy == FORK else work)
    strategy = _strategy_of(fabric)
    environment = strategy.cluster_environment
    external = environment is not None and environment.creates_processes_externally
    try:
        with _started.ended_after_failure(external, settings.nodes):
            strategy.open_store()
            fabric.launch()
            with _dead_peers_noticed():
                result = work(LaunchedProcessGroup(fabric, strategy.host))
    except BaseException as error:
        if not isinstance(error, PeerDiedError):  # else the watch may have a line to print
            WATCH.stop()
        raise
    WATCH.stop()
    return result


@contextlib.contextmanager
def _dead_peers_noticed() -> Iterator[None]:
    """Replaces the errors of closed connections by PeerDiedError. torch raises them in a fit of all processes."""
    try:
        yield
    except RuntimeError as error:
        if any(text in str(error) for text in CLOSED):
            raise PeerDiedError("another process of the run has died") from error
        raise


def _spawn(fabric: Fabric, work: Callable[[ProcessGroup], _T]) -> _T:
    """Calls a function in spawned or forked processes, and returns the result of the first process.

    Lightning passes results through a queue, which it reads only after the processes have ended. A process can't end,
    however, while a result that is larger than a pipe's buffer is unread. Therefore the result is sent through a
    separate pipe, and a thread reads this pipe while the processes run. It is a daemon thread: after an error, this
    process ends without it.
    """
    receiver, sender = mp.get_context("spawn").Pipe(duplex=False)
    received: list[bytes] = []
    reader = threading.Thread(target=_receive, args=(receiver, received), daemon=True)
    reader.start()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it names processes that it ends
    with sender:  # If no process sends a result, closing this end stops the thread from waiting for ever.
        try:
            with ended_children(), whole_starts(), restored("MASTER_ADDR", "MASTER_PORT"), launching():
                _strategy_of(fabric).open_store()
                fabric.launch(functools.partial(_spawned, work, sender))
        except ProcessExitedException as error:
            raise PeerDiedError("a process of the run has died") from error
    reader.join()
    # Unpickling is safe, because the bytes come from a process of this run.
    result: _T | InputError | KeyboardInterrupt = pickle.loads(received[0])
    if isinstance(result, (InputError, KeyboardInterrupt)):
        raise result
    return result


def _receive(receiver: Connection, received: list[bytes]) -> None:
    with receiver, contextlib.suppress(EOFError):  # raised if no process sends a result
        received.append(receiver.recv_bytes())


def _single_threaded(work: Callable[[ProcessGroup], _T], processes: ProcessGroup) -> _T:
    """Limits PyTorch to one thread and calls a function in a forked process.

    With more threads, OpenMP would wait for the threads of the parent process.
    """
    torch.set_num_threads(1)
    return work(processes)


def _spawned(work: Callable[[ProcessGroup], _T], sender: Connection, fabric: Fabric) -> None:
    """Calls a function in each spawned process. The first of them sends the pickled result or error."""
    result: _T | InputError | KeyboardInterrupt
    try:
        result = work(LaunchedProcessGroup(fabric, _strategy_of(fabric).host))
    except (InputError, KeyboardInterrupt) as error:
        result = error
    WATCH.stop()
    if fabric.global_rank == 0:
        sender.send_bytes(pickle.dumps(result))


def _strategy_of(fabric: Fabric) -> _QuietDDP:
    assert isinstance(fabric.strategy, _QuietDDP)
    return fabric.strategy


def check_devices(devices: int, settings: Any) -> None:
    """Checks that this machine can start the processes of a run. Starts nothing.

    Args:
        devices: Number of devices on each machine.
        settings: Settings of the engine.

    Raises:
        InputError: ``devices`` isn't 1 although the engine runs in one process only, ``devices`` is larger than the
            number of GPUs, or processes can't be forked.
    """
    if not isinstance(settings, LaunchSettings):
        if devices != 1:
            why = "engine=distributed and engine=sharded use several"
            raise InputError.of("devices", devices, f"1 with engine={settings.name}", why)
        return
    gpus = torch.cuda.device_count()
    if devices < 1 or (gpus and devices > gpus):
        raise InputError.of("devices", devices, f"an integer from 1 to {gpus}" if gpus else "an integer >= 1")
    if settings.strategy == FORK and ("fork" not in mp.get_all_start_methods() or torch.cuda.is_initialized()):
        why = "this system can't fork, or a GPU is in use already"
        raise InputError.of("engine.strategy", FORK, [other for other in settings.strategies if other != FORK], why)


def _fabric(devices: int, settings: LaunchSettings) -> Fabric:
    gpus = torch.cuda.device_count()
    # This strategy only starts the processes; the fits of engine=sharded use strategies of their own. The timeout is
    # long, since a process may train or evaluate for long. A dead process is noticed by its closed connection.
    strategy = _QuietDDP(timeout=PEER_TIMEOUT, start_method=START.get(settings.strategy, "popen"))
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if gpus else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
