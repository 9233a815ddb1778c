"""Metrics of a classifier on labelled examples, by torchmetrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from flt.core.errors import InputError
from flt.models.module import ClientModule, Optimizer


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """Figures of one class.

    Attributes:
        name: Name of the class.
        precision: Share of the examples predicted as this class that have it. 0 if there are none.
        recall: Share of the examples of this class that are predicted as it. 0 if there are none.
        f1: Harmonic mean of precision and recall.
        support: Number of examples of the class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the figures for JSON, with the name under ``class``."""
        figures = dataclasses.asdict(self)
        return {"class": figures.pop("name"), **figures}


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of one model on the examples of one task.

    Attributes:
        metrics: ``accuracy``, ``macro_f1``, ``nll`` (mean negative log-likelihood) and ``entropy``; for a causal model
            ``loss``, ``perplexity`` and ``accuracy`` over the tokens of the responses. Macro F1 is the mean over the
            classes that have examples or predictions.
        examples: Number of examples.
        classes: Figures of each class. Empty for a causal model.
        confusion: Row: class of the example; column: predicted class. Empty for a causal model.
    """

    metrics: Mapping[str, float]
    examples: int
    classes: Sequence[ClassScore] = ()
    confusion: Sequence[Sequence[int]] = ()


class MeasuredModule(ClientModule):
    """flt's own module, which collects the metrics of an evaluation beside those that it logs.

    Args:
        model: The model.
        names: Name of each output.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__(model, len(names), Optimizer())
        self.names = list(names)
        kinds = {"precision": MulticlassPrecision, "recall": MulticlassRecall, "f1": MulticlassF1Score}
        # In a tuple, so that Lightning neither moves nor resets them: they stay on the CPU.
        self.collected: tuple[dict[str, Metric]] = (
            {
                "accuracy": MulticlassAccuracy(len(names), average="micro"),
                "macro_f1": MulticlassF1Score(len(names), average="macro"),
                "confusion": MulticlassConfusionMatrix(len(names)),
                "nll": MeanMetric(nan_strategy="disable").set_dtype(torch.float64),
                "entropy": MeanMetric(nan_strategy="disable").set_dtype(torch.float64),
                **{name: kind(len(names), average=None) for name, kind in kinds.items()},
            },
        )

    def _loss(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, logits = super()._loss(batch)
        on_cpu, labels = checked(logits).float().cpu(), batch["labels"].cpu()
        log_probabilities = F.log_softmax(on_cpu.double(), dim=-1)
        for name, metric in self.collected[0].items():
            if name == "nll":
                metric.update(F.nll_loss(log_probabilities, labels, reduction="none"))
            elif name == "entropy":
                metric.update(entropy(log_probabilities))
            else:
                metric.update(on_cpu.argmax(-1), labels)
        return loss, logits

    def scores(self, classes: int) -> Scores:
        """Returns the metrics of all batches so far.

        Args:
            classes: Number of classes of the task. Outputs beyond it are shown only if they are predicted.
        """
        found: dict[str, Any] = {name: metric.compute() for name, metric in self.collected[0].items()}
        confusion = found["confusion"]
        used = max(classes, 1 + int(confusion.sum(0).nonzero().max()))
        figures = zip(
            self.names, *(found[key].tolist() for key in ("precision", "recall", "f1")), confusion.sum(1).tolist(),
            strict=True,
        )  # fmt: skip
        metrics = {key: float(found[key]) for key in ("accuracy", "macro_f1", "nll", "entropy")}
        rows = [ClassScore(*one) for one in figures][:used]
        return Scores(metrics, int(confusion.sum()), rows, confusion[:used, :used].tolist())


def checked(logits: Tensor) -> Tensor:
    """Returns logits that are finite.

    Raises:
        InputError: A logit is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise InputError.of("run", "logits that aren't finite", "a model whose training didn't diverge")
    return logits


def entropy(log_probabilities: Tensor) -> Tensor:
    """Returns the entropy of each row of predictions, divided by that of a uniform prediction, in [0, 1].

    Args:
        log_probabilities: Logarithms of the probabilities, shape (n, classes).

    Example:
        >>> entropy(torch.log(torch.tensor([[0.5, 0.5]]))).tolist()
        [1.0]
    """
    most = math.log(max(log_probabilities.shape[-1], 2))
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities.clamp(min=-1e4)).sum(-1) / most
