"""The LightningModule of causal language models: next tokens, and only those of the response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric

from flt.data.stores import IGNORED
from flt.models.module import ClientModule, Optimizer


class CausalModule(ClientModule):
    """A causal language model that learns responses to prompts.

    A batch's ``labels`` (batch, tokens) are -100 where the loss doesn't count: on prompts and padding. The training
    loss is the model's own: the mean over a batch's response tokens.

    Args:
        model: Called with a batch's tensors by name; returns an object with ``loss`` () and ``logits``
            (batch, tokens, vocabulary).
        optimizer: How it trains.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        config: Any = model.config
        super().__init__(model, config.get_text_config().vocab_size, optimizer)
        # float64: how tokens are dealt to batches doesn't show in the sum. A loss that isn't a number has to be seen
        self.nll = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary); those of a token are for the one behind it."""
        return super().forward(**inputs)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Leaves ``val_loss``, ``val_perplexity`` and ``val_acc``.

        The loss is the mean negative log-likelihood of all response tokens, so each token counts alike however long its
        response is, the perplexity its exponential, the accuracy the share of tokens that the model ranks first.
        """
        labels = batch["labels"][:, 1:]
        logits = self(**{name: value for name, value in batch.items() if name != "labels"})[:, :-1]
        counts = labels != IGNORED
        chosen, targets = logits[counts].float(), labels[counts]  # (tokens, vocabulary), (tokens,)
        self.nll.update(F.cross_entropy(chosen, targets, reduction="none"))
        self.accuracy.update(chosen.argmax(-1), targets)
        self.log("val_loss", self.nll, on_epoch=True, batch_size=len(labels))
        self.log("val_acc", self.accuracy, on_epoch=True, batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        """Called when all batches of an evaluation have passed."""
        self.log("val_perplexity", self.nll.compute().exp())

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The model's own loss (), which moves the labels by one, and its logits."""
        out = self.model(**batch)
        return out.loss, out.logits
