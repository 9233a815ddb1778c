"""flt's own LightningModule, which all runs from the command line train, and the settings of its optimiser."""

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
from flt.data.examples import OUTPUTS

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
MODEL_PREFIX = "model."
"""Prefix that flt's own module, ClientModule, adds to the tensor names of its model (backbone and head)."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimiser of flt's own module. A user's LightningModule doesn't use them.

    Attributes:
        name: ``adamw`` or ``sgd``.
        lr: Learning rate.
        weight_decay: Weight decay.
        momentum: Momentum. Only SGD uses it.
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
        """Returns the torch optimiser for the given parameters."""
        extra: dict[str, Any] = {"momentum": self.momentum} if self.name == "sgd" else {}
        kind: Any = OPTIMIZERS[self.name]
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay, **extra)


class ClientModule(pl.LightningModule):
    """flt's own LightningModule: a transformers model with a classification head. Runs from the command line train it.

    Args:
        model: The model. It takes a batch's inputs by name and returns an object with ``logits`` (batch, classes).
        classes: Number of classes. If jobs have different heads, the largest number.
        optimizer: Settings of the optimiser.
        several_tasks: Whether jobs have several tasks with different heads. ``classes`` then counts the classes of
            all tasks, and a task's classes have the same numbers in all jobs.
    """

    def __init__(self, model: nn.Module, classes: int, optimizer: Optimizer, several_tasks: bool = False) -> None:
        super().__init__()
        self.several_tasks = several_tasks
        self.model = model
        self.optimizer = optimizer
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self._losses: list[tuple[Tensor, int]] = []

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns the logits (batch, classes).

        If a batch says which outputs belong to the task of each example, all other logits of the example are minus
        infinity. So the loss and the accuracy compare only the classes of the task.
        """
        own = inputs.pop(OUTPUTS, None)
        logits = self.model(**inputs).logits
        return logits if own is None else _only(logits, own)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss of a batch, a scalar."""
        loss, _ = self._loss(batch)
        self._losses.append((loss.detach(), len(batch["labels"])))
        return loss

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves the batch to the device. For the CPU, the batch is returned unchanged, because it was created there."""
        return batch if device.type == "cpu" else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_train_epoch_start(self) -> None:
        """Clears the losses at the start of an epoch."""
        self._losses = []

    def on_train_epoch_end(self) -> None:
        """Logs ``train_loss``, the mean loss over the examples of the epoch that has just ended.

        Logging in every step would make the fit of a small model several per cent slower.
        """
        losses, self._losses = self._losses, []
        if losses:  # empty if a subclass has its own training_step
            self.log("train_loss", sum(loss * size for loss, size in losses) / sum(size for _, size in losses))

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Logs ``val_loss`` (mean negative log-likelihood) and ``val_acc`` (accuracy)."""
        loss, logits = self._loss(batch)
        size = len(batch["labels"])
        self.accuracy(logits.argmax(-1), batch["labels"])
        self.log("val_loss", loss, on_epoch=True, batch_size=size)
        self.log("val_acc", self.accuracy, on_epoch=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        """Returns the optimiser of the parameters that require gradients. The round's plan selects them."""
        return self.optimizer.build([parameter for parameter in self.parameters() if parameter.requires_grad])

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the cross-entropy, a scalar, and the logits.

        The loss that transformers computes isn't used, because transformers takes the number of classes from the
        config. A job's head may have a different number of classes.
        """
        logits = self(**{name: values for name, values in batch.items() if name != "labels"})
        return F.cross_entropy(logits, batch["labels"]), logits


def _only(logits: Tensor, own: Tensor) -> Tensor:
    """Returns logits (batch, classes) that are minus infinity outside of each example's range, own (batch, 2)."""
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill((numbers < own[:, :1]) | (numbers >= own[:, 1:]), -torch.inf)


def backbone_of(module: nn.Module) -> tuple[nn.Module, str]:
    """Returns the model (backbone and head) inside a module, and the prefix of the model's tensor names in the module.

    In flt's own module, the model is the attribute ``model``. A user's module is the model itself, and the prefix is
    empty.
    """
    return (module.model, MODEL_PREFIX) if isinstance(module, ClientModule) else (module, "")
