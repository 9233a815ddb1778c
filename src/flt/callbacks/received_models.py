"""Evaluation of the models as received by clients, on the server's validation examples."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np

from flt.callbacks.evaluate import Evaluate, mean_of_worst
from flt.callbacks.evaluation_memo import fingerprint
from flt.core import formatting
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Payload
from flt.protocol.quantised_components import unpack_payload
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

RISE = "rise_loss"


class ReceivedModels(FedCallback):
    """Logs ``distributed/*``, the metrics of the models that the jobs of a round receive before their local fits.

    The models are evaluated on the same examples as the global models. X stands for the name of a metric that the
    module logs, such as ``val_acc``, or for ``rise_loss``.

    - ``distributed/X``: mean of X over the cohort's jobs. A job's model includes the job's private tensors.
    - ``distributed/X_worst10``: mean of X over the worst 10 % of the jobs.
    - ``distributed/X_rank2``: mean of X over the jobs of rank 2, and likewise for every other rank. Logged only if the
      clients have different ranks.

    ``rise_loss`` is the loss of a job's received model minus the loss of its group's global model. It measures the harm
    of sending a client only a part of the model. In HAFL (arXiv 2411.06581), ``rise_loss`` is zero with freezing and
    above zero with truncation. If tensors are private, there is no global model, and ``rise_loss`` is missing.

    The received models are evaluated in round 1 and in each round that follows an evaluation of the global model. In
    the latter rounds, the metrics of the global model are already known.

    Args:
        evaluate: Callback that evaluates the global models. Its examples and its earlier results are used here.
    """

    state_key: ClassVar[str] = "Distributed"

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate

    def on_round_start(self, federator: Federator) -> None:
        """Evaluates the received models and logs their metrics, if an evaluation is due in this round."""
        if (federator.round - 1) % self.evaluate.every:
            return
        jobs = [job for job in federator.cohort if self.evaluate.examples_for(job.id) is not None]
        measured = {job.id: self._measure(federator, job) for job in jobs}
        several = len({client.rank for client in federator.clients.values()}) > 1
        for key in sorted({key for figures in measured.values() for key in figures}):
            by_job = {job: figures[key] for job, figures in measured.items() if key in figures}
            values = list(by_job.values())
            federator.log({f"distributed/{key}": float(np.mean(values))})
            federator.log({f"distributed/{key}{formatting.WORST}": mean_of_worst(values, key)})
            for rank in sorted({job.rank for job in jobs}) if several else ():
                of_rank = [by_job[job.id] for job in jobs if job.rank == rank and job.id in by_job]
                federator.log({f"distributed/{key}_rank{rank}": float(np.mean(of_rank))} if of_rank else {})

    def _measure(self, federator: Federator, job: Job) -> dict[str, float]:
        state, dataset = federator.state, self.evaluate.examples_for(job.id)
        assert dataset is not None  # the jobs without examples have been left out
        server = federator.server
        sent = server.broadcast(state, job, federator.cohort)  # only measured, not sent; its bytes aren't counted
        payload = unpack_payload(sent, server.layout)
        private = federator.client_states.get(job.id, ClientState())
        watch = functools.partial(federator.call, "on_evaluation")
        evaluate = federator.engine.local_trainer.evaluate_payload
        run = functools.partial(evaluate, state, payload, private, dataset, watch, job.head)
        layout = federator.server.layout.for_head(job.head)
        figures = self.evaluate.memo(_model(layout, payload, private), dataset, run)
        name = formatting.loss(figures)
        if name is None or payload.plan.private or not server.has_global(payload.plan):
            return figures
        of_group = self.evaluate.of_group(federator, state.group_of(job.id), dataset, job.head)
        return {**figures, RISE: figures[name] - of_group[name]}


def _model(layout: Layout, payload: Payload, private: ClientState) -> str:
    own = {name: private.tensors[name] for name in layout.private(payload.plan) if name in private.tensors}
    tensors = {**payload.tensors, **own, **payload.buffers, **private.buffers}
    return fingerprint(payload.base_version, tensors, payload.held if payload.plan.private else None)
