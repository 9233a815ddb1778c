"""How a module inside the LightningModule learns whose data it computes with, on the client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import nn

from flt.data.clients import JobData


@runtime_checkable
class ClientAware(Protocol):
    """A module that computes with figures of the client's data, such as its label histogram."""

    def enter_client(self, data: JobData) -> None:
        """Called before a job's model is evaluated, trained and evaluated again."""

    def enter_batch(self, batch: Any) -> None:
        """Called before each training step: the batch may hold more than the model is given."""

    def leave_client(self) -> None:
        """Called after a job: from here on there is no client, as in the evaluation of the global model."""


def client_aware_modules(module: nn.Module) -> list[ClientAware]:
    """The modules that want to know."""
    return [sub for sub in module.modules() if isinstance(sub, ClientAware)]


@contextlib.contextmanager
def at_client(client_aware: Sequence[ClientAware], data: JobData) -> Iterator[None]:
    """Tells modules, for as long as the context lasts."""
    try:
        for sub in client_aware:
            sub.enter_client(data)
        yield
    finally:
        for sub in client_aware:
            sub.leave_client()


def set_client(client_aware: Sequence[ClientAware], data: JobData) -> None:
    """Tells modules for good: they are a client's own model, which computes as on that client."""
    for sub in client_aware:
        sub.enter_client(data)


class BatchNotifier(pl.Callback):
    """Tells modules of each batch that is trained on."""

    def __init__(self, client_aware: Sequence[ClientAware]) -> None:
        self.client_aware = client_aware

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        """Called before a training step."""
        for sub in self.client_aware:
            sub.enter_batch(batch)
