"""The device on which a fit runs."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from flt.client.resident import ResidentStrategy
from flt.core.quiet import single_process


class OneDevice:
    """A fit on the device on which the module is, whatever other processes of the run do."""

    def arguments(self, module: pl.LightningModule) -> dict[str, Any]:
        """The Trainer's."""
        return {"strategy": ResidentStrategy(module.device), "plugins": [LightningEnvironment()]}

    def around(self) -> contextlib.AbstractContextManager[None]:
        """What holds while it runs."""
        return single_process()

    together = False
    """Whether an evaluation needs all processes of the run."""

    def share(self, loader: DataLoader) -> DataLoader:
        """This process's part of each batch: all of it."""
        return loader

    def callbacks(self) -> list[pl.Callback]:
        """What a fit needs there before all other callbacks."""
        return []
