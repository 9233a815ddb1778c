"""Metrics of an evaluation, compared with scikit-learn's on predictions that are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.inference.metrics import MeasuredModule, Scores, entropy


class Given(nn.Module):
    """Model whose logits are its inputs."""

    def forward(self, logits: Tensor) -> Any:
        return SimpleNamespace(logits=logits)


def measured(logits: Tensor, labels: list[int], classes: int) -> Scores:
    module = MeasuredModule(Given(), [f"class {k}" for k in range(logits.shape[1])])
    for part in (slice(0, 3), slice(3, None)):  # two batches
        module._loss({"logits": logits[part], "labels": torch.tensor(labels)[part]})
    return module.scores(classes)


def test_the_figures_are_scikit_learn_s() -> None:
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    found, predicted = measured(logits, labels, 4), logits.argmax(1).numpy()
    assert found.confusion == confusion_matrix(labels, predicted).tolist()
    figures = np.array([[one.precision, one.recall, one.f1, one.support] for one in found.classes]).T
    expected = precision_recall_fscore_support(labels, predicted)
    np.testing.assert_allclose(figures, np.array(expected), atol=1e-6)
    assert found.metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found.metrics["nll"] == pytest.approx(log_loss(labels, logits.double().softmax(1).numpy()))
    assert found.metrics["accuracy"] == pytest.approx(np.mean(predicted == labels))
    assert found.examples == 40


def test_outputs_of_other_tasks_are_shown_only_if_they_are_predicted() -> None:
    within, beyond = torch.eye(4)[[0, 1, 0, 1]], torch.eye(4)[[0, 1, 0, 2]]
    assert [one.name for one in measured(within, [0, 1, 0, 1], 2).classes] == ["class 0", "class 1"]
    found = measured(beyond, [0, 1, 0, 1], 2)
    assert [one.name for one in found.classes] == ["class 0", "class 1", "class 2"]
    assert found.confusion == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_entropy_is_relative_to_that_of_a_uniform_prediction() -> None:
    uniform, certain = torch.zeros(1, 7).log_softmax(1), torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert entropy(uniform).item() == pytest.approx(1.0)
    assert entropy(certain).item() == 0.0
    assert entropy(torch.zeros(1, 1)).item() == 0.0


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="run=logits that aren't finite"):
        measured(torch.tensor([[0.0, float("nan")]] * 4), [0] * 4, 2)
