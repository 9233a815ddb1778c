"""Strategy that keeps the module on its device after a fit, and the replacement for a Trainer's signal handling."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class NoSignals:
    """Replacement for a Trainer's signal handling that does nothing: the run, not one of its fits, handles signals."""

    received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Does nothing; called when a fit begins."""

    def teardown(self) -> None:
        """Does nothing; called when a fit ends."""


class ResidentStrategy(SingleDeviceStrategy):
    """Strategy that leaves the module on its device when a fit ends; Lightning's own would move it to the CPU."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device=device)

    def model_to_device(self) -> None:
        """Moves the module only if a part of it is on another device; called when a fit begins."""
        assert self.model is not None
        if any(tensor.device != self.root_device for tensor in (*self.model.parameters(), *self.model.buffers())):
            super().model_to_device()

    def teardown(self) -> None:
        """Frees what belongs to the fit and leaves the module as it is; called when a fit ends."""
        self.optimizers = []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()
