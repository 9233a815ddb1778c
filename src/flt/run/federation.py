"""What is federated: module, clients and evaluation examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import Dataset

from flt.data.clients import ClientSpec

OWN = "own"
"""Name of the data section in the configuration of a run that ``flt.fit`` has started on the user's own data."""


@dataclasses.dataclass
class Federation:
    """What is federated: a module, clients, and the examples on which the global model is evaluated.

    Attributes:
        module: The LightningModule; its adapters are attached later.
        clients: One entry per client.
        validation: Task -> examples for the evaluation of the rounds.
        test: Task -> examples for the one evaluation at the end.
        collate: Builds a batch from a list of examples; None: torch's default.
        source: What ``from_pretrained`` loads the base by; empty for a user's own module.
        parts: Name in ``validation`` and ``test`` -> its task, where a task is evaluated in parts.
        heads: Head -> its initial values by name, where jobs have different ones.
    """

    module: pl.LightningModule
    clients: Sequence[ClientSpec]
    validation: Mapping[str, Dataset]
    test: Mapping[str, Dataset]
    collate: Callable[[list[Any]], Any] | None = None
    source: str = ""
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Tensor]] = dataclasses.field(default_factory=dict)

    def tasks(self) -> dict[tuple[int, int], str]:
        """Job -> its task, for evaluation."""
        return {(client.id, index): job.task for client in self.clients for index, job in enumerate(client.data)}

    def task_heads(self) -> dict[str, str]:
        """Task -> the head of its jobs, where jobs have different ones."""
        return {job.task: job.head for client in self.clients for job in client.data}
