"""pfl-research's simulation as a contestant: its FederatedAveraging on its simulated backend, one process, one thread.

.bench/pfl/bin/python -m benchmarks.speed.peer_pfl WORKLOAD FOLDER
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import plain, workload
from benchmarks.speed.protocol import Line
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops.pytorch_ops import get_default_device
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

ENDLESS = 10**6
"""Rounds: the coordinator ends the run."""


class Model(nn.Module):
    """The workload's encoder with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy () of a batch."""
        return plain.loss(self.model, ids, mask, labels)

    def metrics(self, ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Any]:
        """Nothing: pfl evaluates in its first round, which isn't timed, and evaluates no model without this."""
        return {"examples": Weighted(len(ids), len(ids))}


class Gate(TrainingProcessCallback):
    """Lets a round begin when the coordinator says so.

    Args:
        line: To the coordinator.
    """

    def __init__(self, line: Line) -> None:
        self.line = line

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Waits before the first round."""
        self._wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Says what the round took, and waits for the next."""
        self.line.end({name.removeprefix("model."): value for name, value in model.variable_map.items()})
        self._wait()
        return False, Metrics()

    def _wait(self) -> None:
        if not self.line.begin():
            os._exit(0)


def federated(given: workload.Workload, line: Line) -> FederatedDataset:
    """All clients in turn, each with the round's examples in the order in which it trains on them."""
    numbers = itertools.cycle(range(given.size.cohort))

    def dataset(client: int) -> Dataset:
        chosen = given.order[line.rounds, client].flatten()
        return Dataset(tuple(given.data[key][chosen] for key in ("ids", "mask", "labels")), user_id=str(client))

    return FederatedDataset(dataset, lambda: next(numbers))


def main(source: Path, folder: Path) -> None:
    """Runs rounds for as long as the coordinator asks for them."""
    line = Line(folder)
    torch.set_num_threads(1)
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl asks for the current one
    given = workload.load(source)
    inner, trained = given.model()

    def local(parameters: Any, lr: float) -> torch.optim.Optimizer:
        return plain.optimizer([p for p in parameters if p.requires_grad], given.hyper)

    model = PyTorchModel(Model(inner), local, torch.optim.SGD(list(trained.values()), lr=1.0))
    data = federated(given, line)
    backend = SimulatedBackend(data, data, postprocessors=[WeightByUser()])
    algorithm = NNAlgorithmParams(
        central_num_iterations=ENDLESS, evaluation_frequency=ENDLESS, train_cohort_size=given.size.cohort,
        val_cohort_size=0,
    )  # fmt: skip
    local_training = NNTrainHyperParams(
        local_num_epochs=1, local_learning_rate=given.hyper.lr, local_batch_size=given.size.batch
    )
    assert get_default_device().type == "cpu"
    FederatedAveraging().run(algorithm, backend, model, local_training, callbacks=[Gate(line)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
