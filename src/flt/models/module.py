"""The LightningModule that flt gives its clients, and the optimiser that it trains with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from flt.core.errors import InputError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


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
