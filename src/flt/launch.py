"""Launching the processes of a run, by Lightning's Fabric."""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from lightning.fabric import Fabric

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
        made: _T | InputError = pickle.loads(fabric.launch(functools.partial(_spawned, work)))
        if isinstance(made, InputError):
            raise made
        return made
    with quiet_launch():
        fabric.launch()
    return work(Launched(fabric))


def _spawned(work: Callable[[Processes], _T], fabric: Fabric) -> bytes:
    """The work in a process that ends with it: its tensors go by value, and so does a mistake in the input."""
    try:
        return pickle.dumps(work(Launched(fabric)))
    except InputError as error:
        return pickle.dumps(error)


def _fabric(devices: int, settings: LaunchSettings) -> Fabric:
    found = torch.cuda.device_count()
    if devices < 1 or (found and devices > found):
        raise InputError.of("devices", devices, f"an integer from 1 to {found}" if found else "an integer >= 1")
    # the fits of engine=sharded have other strategies; its processes start as all do
    strategy = settings.strategy if settings.strategy == SPAWN else "ddp"
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if found else "cpu", devices=devices, num_nodes=settings.nodes, strategy=strategy
        )  # fmt: skip
