"""What keeps the module on its device, and signals with the run, while a Trainer runs."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class NoSignals:
    """In the place of what a Trainer does at SIGTERM: the run, not one of its fits, decides what a signal means."""

    received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Called when a fit begins."""

    def teardown(self) -> None:
        """Called when a fit ends."""


class ResidentStrategy(SingleDeviceStrategy):
    """Leaves the module on its device when a fit ends, where Lightning's own would move it to the CPU each time."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device=device)

    def model_to_device(self) -> None:
        """Called when a fit begins: nothing moves that is there."""
        assert self.model is not None
        if any(its.device != self.root_device for its in (*self.model.parameters(), *self.model.buffers())):
            super().model_to_device()

    def teardown(self) -> None:
        """Called when a fit ends: frees what belongs to the fit, and nothing that belongs to the module."""
        self.optimizers = []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()
