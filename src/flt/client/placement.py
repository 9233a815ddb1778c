"""Placement of a fit: the devices and processes on which the fit runs."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
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

    needs_all_processes = False
    """True if all processes of the run must take part in an evaluation."""

    def shard(self, loader: DataLoader) -> DataLoader:
        """Returns a loader that yields this process's part of each batch. On one device, this is the whole batch."""
        return loader

    def callbacks(self) -> list[pl.Callback]:
        """Returns the callbacks that this placement needs. They run before the recipe's and the user's callbacks."""
        return []
