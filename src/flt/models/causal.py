"""The LightningModule of causal language models. Only the tokens of the response count in the loss."""

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

    A batch's ``labels`` (batch, tokens) are -100 at the tokens of the prompt and at padding. The loss ignores these
    tokens. The model itself computes the training loss, which is the mean over the response tokens of the batch.

    Args:
        model: The model. It takes a batch's tensors by name and returns an object with ``loss``, a scalar, and
            ``logits`` (batch, tokens, vocabulary).
        optimizer: Settings of the optimiser.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        config: Any = model.config
        super().__init__(model, config.get_text_config().vocab_size, optimizer)
        # In float64 the sum doesn't depend on how the tokens are divided into batches.
        # nan_strategy="disable" keeps NaN losses, which must stay visible.
        self.nll = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns the logits (batch, tokens, vocabulary). The logits at a token predict the next token."""
        return super().forward(**inputs)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Adds a batch to ``val_loss``, ``val_perplexity`` and ``val_acc``.

        The loss is the mean negative log-likelihood over all response tokens. Every token has the same weight, so long
        responses count more. The perplexity is the exponential of the loss. The accuracy is the share of response
        tokens to which the model gives the highest logit.
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
        """Logs ``val_perplexity`` after the last batch of an evaluation."""
        self.log("val_perplexity", self.nll.compute().exp())

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the model's own loss, a scalar, and the logits. The model shifts the labels by one token itself."""
        out = self.model(**batch)
        return out.loss, out.logits
