"""Placement of a fit: the devices and processes on which the fit runs."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.utils.data import DataLoader

from flt.client.resident import ResidentStrategy
from flt.core.quiet import single_process


class OneDevice:
    """Placement of a fit on one device, the device of the module. The fit doesn't communicate with other processes."""

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """Returns the Trainer's arguments for this placement."""
        return {"strategy": ResidentStrategy(module.device), "plugins": [LightningEnvironment()]}

    def context(self) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which the fit runs."""
        return single_process()

    parts = 1
    """Number of parts that each batch is divided into."""
    needs_all_processes = False
    """True if all processes of the run must take part in an evaluation."""

    def agreed(self, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the buffers that a fit has changed, with the same values in all processes of the fit."""
        return buffers

    def shard(self, loader: DataLoader) -> DataLoader:
        """Returns a loader that yields this process's part of each batch. On one device, this is the whole batch."""
        return loader

    def callbacks(self) -> list[pl.Callback]:
        """Returns the callbacks that this placement needs. They run before the recipe's and the user's callbacks."""
        return []
