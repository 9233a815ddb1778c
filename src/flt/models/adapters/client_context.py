"""Passes figures of the current client's data to modules inside the LightningModule, on the client.

C2A needs them: the hypernetwork computes with the labels of the batch or of the client.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import nn

from flt.data.clients import JobData


@runtime_checkable
class ClientAware(Protocol):
    """A module that computes with figures of the client's data, such as the histogram of its labels."""

    def enter_client(self, data: JobData) -> None:
        """Receives a job's data. Called once per job, before its model is evaluated, trained and evaluated again."""

    def enter_batch(self, batch: Any) -> None:
        """Receives a batch before each training step. The batch may have tensors that the model isn't given."""

    def leave_client(self) -> None:
        """Ends a job. Afterwards there is no current client, as in the evaluation of the global model."""


def client_aware_modules(module: nn.Module) -> list[ClientAware]:
    """Returns the modules inside a module that are ClientAware."""
    return [sub for sub in module.modules() if isinstance(sub, ClientAware)]


@contextlib.contextmanager
def at_client(client_aware: Sequence[ClientAware], data: JobData) -> Iterator[None]:
    """Passes a job's data to the modules for the duration of the context."""
    try:
        for sub in client_aware:
            sub.enter_client(data)
        yield
    finally:
        for sub in client_aware:
            sub.leave_client()


def set_client(client_aware: Sequence[ClientAware], data: JobData) -> None:
    """Passes a job's data to the modules permanently, for a client's own model."""
    for sub in client_aware:
        sub.enter_client(data)


class BatchNotifier(pl.Callback):
    """Passes each training batch to the modules."""

    def __init__(self, client_aware: Sequence[ClientAware]) -> None:
        self.client_aware = client_aware

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Passes the batch to the modules before a training step."""
        for sub in self.client_aware:
            sub.enter_batch(batch)
