"""Replacements for Lightning's strategy for one device and for the Trainer's handling of signals.

The resident module is the module on which one fit runs after another. It stays on its device between the fits.
"""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class NoSignals:
    """Replacement for a Trainer's signal handling. It does nothing, because the run itself handles signals."""

    received_sigterm = False

    def register_signal_handlers(self) -> None:
        """Does nothing. Called when a fit begins."""

    def teardown(self) -> None:
        """Does nothing. Called when a fit ends."""


class ResidentStrategy(SingleDeviceStrategy):
    """Lightning strategy that leaves the module on its device after a fit.

    Lightning's own strategy for one device would move the module to the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device=device)

    def model_to_device(self) -> None:
        """Moves the module to the device if a part of it isn't there yet. Called when a fit begins."""
        assert self.model is not None
        if any(tensor.device != self.root_device for tensor in (*self.model.parameters(), *self.model.buffers())):
            super().model_to_device()

    def teardown(self) -> None:
        """Frees the optimisers and leaves the module where it is. Called when a fit ends."""
        self.optimizers = []
        self.precision_plugin.teardown()
        self.checkpoint_io.teardown()
