"""Passes a client's data to the ClientAware modules, which use the data in their computations.

C2A's hypernetwork is a ClientAware module: the labels of the batch or of the client are among its inputs.
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
    """A module that computes with the current client's data, for example with its label counts."""

    def enter_client(self, data: JobData) -> None:
        """Receives a job's data. Called once per job, before the job's model is evaluated and trained."""

    def enter_batch(self, batch: Any) -> None:
        """Receives the batch before each step of a fit or evaluation. It may contain more than the model's inputs."""

    def leave_client(self) -> None:
        """Clears the job's data. Called after each job, because the global model is evaluated without client data."""


def client_aware_modules(module: nn.Module) -> list[ClientAware]:
    """Returns all ClientAware modules inside a module."""
    return [sub for sub in module.modules() if isinstance(sub, ClientAware)]


@contextlib.contextmanager
def at_client(client_aware: Sequence[ClientAware], data: JobData) -> Iterator[None]:
    """Passes a job's data to the modules, and clears the data at the end of the context."""
    try:
        for sub in client_aware:
            sub.enter_client(data)
        yield
    finally:
        for sub in client_aware:
            sub.leave_client()


def set_client(client_aware: Sequence[ClientAware], data: JobData) -> None:
    """Passes a job's data to the modules and never clears the data. Used when one client's own model is loaded."""
    for sub in client_aware:
        sub.enter_client(data)


class BatchNotifier(pl.Callback):
    """Lightning callback that passes each batch of a fit or an evaluation to the ClientAware modules."""

    def __init__(self, client_aware: Sequence[ClientAware]) -> None:
        self.client_aware = client_aware

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Passes the batch to the modules before a training step."""
        for sub in self.client_aware:
            sub.enter_batch(batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any
    ) -> None:
        """Passes the batch to the modules before an evaluation step."""
        for sub in self.client_aware:
            sub.enter_batch(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Clears the batch, so that a later prediction doesn't use the labels of this evaluation."""
        for sub in self.client_aware:
            sub.enter_batch(None)
