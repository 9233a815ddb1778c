"""Evaluation of the models as received by clients, on central examples."""

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
from flt.protocol.packing import unpack_payload
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

RISE = "rise_loss"


class ReceivedModels(FedCallback):
    """Logs ``distributed/*``, measured before a round's local fits on the examples of the global models.

    X stands for the name of any figure that the module logs. ``distributed/X`` is the mean of X over the cohort's jobs,
    each with the model that it receives, including its private tensors. ``distributed/X_worst10`` is the mean over the
    worst 10 % of the jobs. If the ranks of the clients differ, ``distributed/X_rank2`` is the mean over the jobs of
    rank 2, and so on for every rank. ``rise_loss`` is logged in addition to the module's figures: the loss of the
    received model minus the loss of the job's global model, which is the cost of distributing the model (HAFL,
    arXiv 2411.06581: zero with freezing, above zero with truncation). ``rise_loss`` is missing if tensors are private,
    because no global model exists then.

    It measures in round 1 and in each round after an evaluation of the global model, whose figures are known then.

    Args:
        evaluate: Callback that holds the examples and the results of earlier evaluations.
    """

    state_key: ClassVar[str] = "Distributed"

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate

    def on_round_start(self, federator: Federator) -> None:
        """Evaluates the received models and logs their figures, if they are due."""
        if (federator.round - 1) % self.evaluate.every:
            return
        jobs = [job for job in federator.cohort if self.evaluate.tasks[job.id] in self.evaluate.datasets]
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
        state, dataset = federator.state, self.evaluate.datasets[self.evaluate.tasks[job.id]]
        server = federator.server
        sent = server.broadcast(state, job, federator.cohort)  # pure: changes no state, and no bytes are counted
        payload = unpack_payload(sent, server.layout)
        private = federator.client_states.get(job.id, ClientState())
        watch = functools.partial(federator.call, "on_evaluation")
        evaluate = federator.engine.local_trainer.evaluate_payload
        run = functools.partial(evaluate, state, payload, private, dataset, watch, job.head)
        layout = federator.server.layout.for_head(job.head)
        figures = self.evaluate.memo(_model(layout, payload, private), dataset, run)
        name = formatting.loss(figures)
        if name is None or payload.plan.private:
            return figures
        of_group = self.evaluate.of_group(federator, state.group_of(job.id), dataset, job.head)
        return {**figures, RISE: figures[name] - of_group[name]}


def _model(layout: Layout, payload: Payload, private: ClientState) -> str:
    own = {name: private.tensors[name] for name in layout.names(payload.plan.private) if name in private.tensors}
    return fingerprint(payload.base_version, {**payload.tensors, **own}, payload.held if payload.plan.private else None)
