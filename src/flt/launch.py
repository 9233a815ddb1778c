"""Launching the processes of a run, by Lightning's Fabric."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning.fabric import Fabric

from flt.config import TrainConfig, typed
from flt.engines.processes import Launched, Processes
from flt.errors import InputError
from flt.quiet import quiet_launch

STRATEGIES = ("ddp", "ddp_spawn")
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

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError.of("engine.strategy", self.strategy, STRATEGIES)
        if self.nodes < 1:
            raise InputError.of("engine.nodes", self.nodes, "an integer >= 1")


def launched(cfg: TrainConfig, work: Callable[[Processes], _T]) -> _T:
    """Does the work in each process of the run, and returns what this one's made.

    Args:
        cfg: Engine and devices; an engine of one process launches nothing.
        work: Called with the processes.

    Raises:
        InputError: Devices and engine don't fit together, or there are fewer devices.
    """
    if "nodes" not in cfg.engine:
        if cfg.devices != 1:
            name = cfg.engine.get("name")
            raise InputError.of(
                "devices", cfg.devices, f"1 with engine={name}", "engine=strategy and engine=sharded use several"
            )
        return work(Processes())
    given = {field.name: cfg.engine[field.name] for field in dataclasses.fields(LaunchSettings)}
    fabric = _fabric(cfg, typed(LaunchSettings, given, "engine"))
    if cfg.engine["strategy"] == "ddp_spawn":
        made: _T = pickle.loads(fabric.launch(functools.partial(_spawned, work)))
        return made
    with quiet_launch():
        fabric.launch()
    return work(Launched(fabric))


def _spawned(work: Callable[[Processes], _T], fabric: Fabric) -> bytes:
    """The work in a process that this one has started and that ends with it: tensors go by value, not by its memory."""
    return pickle.dumps(work(Launched(fabric)))


def _fabric(cfg: TrainConfig, settings: LaunchSettings) -> Fabric:
    found = torch.cuda.device_count()
    most = found or os.cpu_count() or 1
    if not cfg.devices >= 1 or (found and cfg.devices > found):
        raise InputError.of("devices", cfg.devices, f"an integer from 1 to {most}")
    with quiet_launch():
        return Fabric(
            accelerator="gpu" if found else "cpu", devices=cfg.devices, num_nodes=settings.nodes,
            strategy=settings.strategy,
        )  # fmt: skip
