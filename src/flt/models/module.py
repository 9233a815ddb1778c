"""Clients: what they hold, and the LightningModule that flt gives them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from torchmetrics.classification import MulticlassAccuracy

from flt.algorithm.view import Job
from flt.core.errors import InputError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


class Later(abc.ABC):
    """Fields of a job that are computed when one of them is first read."""

    @property
    @abc.abstractmethod
    def examples(self) -> int:
        """How many training examples the job has."""

    @abc.abstractmethod
    def read(self, field: str) -> Any:
        """The value of a field: train, held_out or label_counts."""


class _Read:
    """A field that may be given as :class:`Later`."""

    def __init__(self, *default: Any) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, job: Any, owner: type) -> Any:
        if job is None:
            if self.default:
                return self.default[0]
            raise AttributeError(self.name)  # by which dataclasses know that there is no default
        value = job.__dict__[self.name]
        if isinstance(value, Later):
            value = job.__dict__[self.name] = value.read(self.name)
        return value

    def __set__(self, job: Any, value: Any) -> None:
        job.__dict__[self.name] = value


def _read(*default: Any) -> Any:
    """The descriptor, of any type: the annotation says what is read through it."""
    return _Read(*default)


@dataclasses.dataclass(frozen=True)
class JobData:
    """A job's share of a data set, as positions: a client that isn't in the cohort costs no more than these.

    Positions and counts may be given as :class:`Later`: then those of a client that was in no cohort are one range.

    Attributes:
        dataset: Map-style; shared by all clients.
        train: Positions of its training examples (n,).
        held_out: Positions of the examples on which its model is evaluated (m,).
        task: Name of its task: for evaluation only, the server never sees it.
        label_counts: Training examples of each class: for the picture of the partition, and what C2A computes with on
            the client where ``adapter.label_source=client``. Empty where they aren't known.
        head: Which head its module gets, where jobs have different ones.
        rounds: The first and the last round in which it takes part, counted from 1; None: to the end.
    """

    dataset: Dataset
    train: np.ndarray = _read()
    held_out: np.ndarray = _read()
    task: str = ""
    label_counts: tuple[int, ...] = _read(())
    head: str = ""
    rounds: tuple[int, int | None] = (1, None)

    def but(self, **changes: Any) -> JobData:
        """The job with other values of some fields; unlike ``dataclasses.replace`` it reads none of the rest."""
        return JobData(**{**self.__dict__, **changes})

    @property
    def examples(self) -> int:
        """How many training examples the job has."""
        train = self.__dict__["train"]
        return train.examples if isinstance(train, Later) else len(train)

    @property
    def comes_and_goes(self) -> bool:
        """Whether there are rounds in which it takes no part."""
        return self.rounds != (1, None)

    def takes_part(self, round: int) -> bool:
        """Whether the job is there in a round, counted from 1."""
        first, last = self.rounds
        return first <= round and (last is None or round <= last)

    @property
    def training_set(self) -> Subset:
        """The training examples."""
        return Subset(self.dataset, self.train)  # type: ignore[arg-type]  # an array of positions serves as well as a list

    def validation_set(self, most: int | None) -> Subset:
        """The held-out examples, at most ``most`` of them, at even distances: a data set may be sorted by label."""
        size = len(self.held_out)
        chosen = np.linspace(0, size - 1, min(size, size if most is None else most)).astype(np.int64)
        return Subset(self.dataset, self.held_out[chosen])  # type: ignore[arg-type]  # as above


@dataclasses.dataclass(frozen=True)
class ClientSpec:
    """A client: its jobs' data and its capacity.

    Attributes:
        id: The client's number.
        data: One share per job; most clients have one.
        rank: Pairs per layer that it can train; None: all of them.
    """

    id: int
    data: tuple[JobData, ...]
    rank: int | None = None

    def __post_init__(self) -> None:
        if not self.data or any(job.examples == 0 for job in self.data):
            raise InputError.of(
                f"client {self.id}", "no training examples", "at least one example for each of its jobs"
            )

    def jobs(self, rank: int) -> tuple[Job, ...]:
        """The client's jobs as the server knows them; ``rank`` is the adapter's initial rank."""
        return tuple(Job(self.id, index, self.rank or rank, data.head) for index, data in enumerate(self.data))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How flt's own module trains; a user's LightningModule brings its own ``configure_optimizers``.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum, of SGD only.
    """

    name: str = "adamw"
    lr: float = 5e-3
    weight_decay: float = 0.01
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise InputError.of("local.optimizer", self.name, OPTIMIZERS)
        for key in ("lr", "weight_decay", "momentum"):
            if not 0 <= getattr(self, key) < float("inf") or (key == "lr" and self.lr == 0):
                raise InputError.of(
                    f"local.{key}", getattr(self, key), "a number > 0" if key == "lr" else "a number >= 0"
                )

    def build(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser."""
        extra: dict[str, Any] = {"momentum": self.momentum} if self.name == "sgd" else {}
        kind: Any = OPTIMIZERS[self.name]
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, **extra)


class ClientModule(pl.LightningModule):
    """A transformers model with a classification head, as every client of the command line trains it.

    Args:
        model: Called with a batch's inputs by name; returns an object with ``logits`` (batch, classes).
        classes: Number of classes; where jobs have different heads, the most that one has.
        optimizer: How it trains.
    """

    def __init__(self, model: nn.Module, classes: int, optimizer: Optimizer) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self._losses: list[tuple[Tensor, int]] = []

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.model(**inputs).logits

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """The loss () of a batch."""
        loss, _ = self._loss(batch)
        self._losses.append((loss.detach(), len(batch["labels"])))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch, as it is where it needn't move: collated tensors are on the CPU."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_epoch_start(self) -> None:
        """Called when a pass over the training examples begins."""
        self._losses = []

    def on_train_epoch_end(self) -> None:
        """Called when a pass, or the fit, has ended: leaves ``train_loss``, the mean over the pass's examples.

        Logging every step would cost a fit of a small model several per cent of its time.
        """
        losses, self._losses = self._losses, []
        if losses:  # else a subclass has a training_step of its own
            self.log("train_loss", sum(loss * size for loss, size in losses) / sum(size for _, size in losses))

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Leaves ``val_loss`` (mean negative log-likelihood) and ``val_acc``."""
        loss, logits = self._loss(batch)
        size = len(batch["labels"])
        self.accuracy(logits.argmax(-1), batch["labels"])
        self.log("val_loss", loss, on_epoch=True, batch_size=size)
        self.log("val_acc", self.accuracy, on_epoch=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        """The optimiser over what the round's plan lets train."""
        return self.optimizer.build([parameter for parameter in self.parameters() if parameter.requires_grad])

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Cross-entropy () and logits: transformers' own loss knows one number of classes, that of the config."""
        logits = self(**{name: values for name, values in batch.items() if name != "labels"})
        return F.cross_entropy(logits, batch["labels"]), logits
