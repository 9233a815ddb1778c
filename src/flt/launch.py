"""Launching the processes of a run, by Lightning's Fabric."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing as mp
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, ClassVar, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from flt.engines.processes import Launched, Processes
from flt.errors import InputError
from flt.quiet import quiet_launch

SPAWN = "ddp_spawn"
_T = TypeVar("_T")


@dataclasses.dataclass
class LaunchSettings:
    """How the processes of an engine start.

    Attributes:
        strategy: Lightning's name of it: ``ddp`` or ``ddp_spawn``.
        nodes: Machines, each with ``devices`` processes.
    """

    strategy: str = "ddp"
    nodes: int = 1

    strategies: ClassVar[tuple[str, ...]] = ("ddp", SPAWN)

    def __post_init__(self) -> None:
        if self.strategy not in self.strategies:
            raise InputError.of("engine.strategy", self.strategy, self.strategies)
        if self.nodes < 1:
            raise InputError.of("engine.nodes", self.nodes, "an integer >= 1")


class _Quiet(DDPStrategy):
    """Says nothing of the processes that it connects, in those that are spawned too."""

    def setup_environment(self) -> None:
        with quiet_launch():
            super().setup_environment()


def launched(devices: int, settings: Any, work: Callable[[Processes], _T]) -> _T:
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
            why = "engine=strategy and engine=sharded use several"
            raise InputError.of("devices", devices, f"1 with engine={settings.name}", why)
        return work(Processes())
    fabric = _fabric(devices, settings)
    if settings.strategy == SPAWN:
        return _spawn(fabric, work)
    fabric.launch()
    return work(Launched(fabric))


def _spawn(fabric: Fabric, work: Callable[[Processes], _T]) -> _T:
    """What the first of the processes made, which all end with the work.

    Lightning reads its own queue only once they have ended, and a process doesn't end before its result is read: one
    that a pipe can't hold would wait for ever. So a thread reads here meanwhile.
    """
    here, there = mp.get_context("spawn").Pipe(duplex=False)
    with here, ThreadPoolExecutor(1) as reader:
        received = reader.submit(here.recv_bytes)
        with there:  # closed here too, whatever comes: a process that sends nothing must not leave the thread waiting
            fabric.launch(functools.partial(_spawned, work, there))
        made: _T | InputError = pickle.loads(received.result())  # from a process that this one started
    if isinstance(made, InputError):
        raise made
    return made


def _spawned(work: Callable[[Processes], _T], there: Connection, fabric: Fabric) -> None:
    """The work in a process that ends with it: its tensors go by value, and so does a mistake in the input."""
    made: _T | InputError
    try:
        made = work(Launched(fabric))
    except InputError as error:
        made = error
    if fabric.global_rank == 0:
        there.send_bytes(pickle.dumps(made))


def _fabric(devices: int, settings: LaunchSettings) -> Fabric:
    found = torch.cuda.device_count()
    if devices < 1 or (found and devices > found):
        raise InputError.of("devices", devices, f"an integer from 1 to {found}" if found else "an integer >= 1")
    # the fits of engine=sharded have other strategies; its processes start as all do
    strategy = _Quiet(start_method="spawn" if settings.strategy == SPAWN else "popen")
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if found else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
