"""Test of the final models on each client's own test examples."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset

from flt.callbacks.evaluate import mean_of_worst
from flt.core import formatting
from flt.data.client_tests import with_labels
from flt.models.adapters.client_context import at_client
from flt.protocol.job import Job
from flt.protocol.messages import JobId
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


class ClientTests(FedCallback):
    """Adds ``client_test/X`` to the metrics of the last round. X stands for ``acc``, ``loss`` and so on.

    After the last round, each client's model is evaluated on test examples of the client's own classes. The client's
    model is the one that it would receive in a next round, with its private tensors.

    - ``client_test/X``: mean of X over the jobs of all clients.
    - ``client_test/X_worst10``: mean of X over the worst 10 % of the jobs.
    - ``client_test/X_uniform``, ``client_test/X_wrong``: the same mean with other label counts than the client's own
      (``eval.client_labels``).

    Args:
        datasets: Job -> its test examples.
        labels: Label counts with which the clients' models are evaluated: own, uniform, wrong. Other counts than the
            own make a difference only if the adapter computes with the counts of its client.
    """

    def __init__(self, datasets: Mapping[JobId, Dataset], labels: Sequence[str] = ("own",)) -> None:
        self.datasets, self.labels = datasets, labels

    def on_fit_end(self, federator: Federator) -> None:
        """Evaluates the clients' models."""
        for labels in self.labels:
            measured = [self._measure(federator, job, labels) for job in sorted(self.datasets)]
            suffix = "" if labels == "own" else f"_{labels}"
            for key in sorted({key for metrics in measured for key in metrics}):
                values = [metrics[key] for metrics in measured if key in metrics]
                name = f"client_test/{key.removeprefix('val_')}"
                federator.history[-1][f"{name}{suffix}"] = float(np.mean(values))
                if not suffix:
                    federator.history[-1][f"{name}{formatting.WORST}"] = mean_of_worst(values, key)

    def _measure(self, federator: Federator, job_id: JobId, labels: str) -> dict[str, float]:
        client, index = job_id
        data, trainer = federator.clients[client].data[index], federator.engine.local_trainer
        job, private = self._job(federator, job_id), federator.client_states.get(job_id, ClientState())
        payload = federator.server.broadcast(federator.state, job, [job])  # only measured; its bytes aren't counted
        watch = functools.partial(federator.call, "on_evaluation")
        with at_client(trainer.client_aware, with_labels(data, labels)):
            return trainer.evaluate_payload(federator.state, payload, private, self.datasets[job_id], watch, data.head)

    def _job(self, federator: Federator, job_id: JobId) -> Job:
        most = max((layer.rank for layer in federator.server.layout.layers.values()), default=0)
        return federator.clients[job_id[0]].jobs(most)[job_id[1]]
