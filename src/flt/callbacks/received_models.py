"""Evaluation of the clients' models as distributed, on central examples."""

from __future__ import annotations

import functools
from typing import ClassVar

import numpy as np

from flt.callbacks.evaluate import Evaluate, worst_tenth
from flt.callbacks.evaluation_memo import fingerprint
from flt.core import formatting
from flt.protocol.job import Job
from flt.protocol.layout import Layout
from flt.protocol.messages import Payload
from flt.protocol.packing import opened_payload
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

RISE = "rise_loss"


class ReceivedModels(FedCallback):
    """Leaves ``distributed/*``, measured before the fits of a round on the examples of the global models.

    ``distributed/X`` is the mean over the cohort's jobs of what the module logs as X for the model that a job is sent,
    its private tensors among it; ``distributed/X_worst10`` the mean over the worst tenth of them and, where the ranks
    of clients differ, ``distributed/X_rank2`` that over the jobs of rank 2. ``rise_loss`` stands beside what the module
    logs: the loss minus that of the job's global model, which is what distribution costs (HAFL, arXiv 2411.06581: none
    by freezing, some by truncation). It is missing where tensors are private and no global model exists.

    It measures in round 1 and in each round that follows an evaluated one: the global model's figures are known then.

    Args:
        evaluate: Has the examples, and what was measured before.
    """

    state_key: ClassVar[str] = "Distributed"

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        if (federator.round - 1) % self.evaluate.every:
            return
        jobs = [job for job in federator.cohort if self.evaluate.tasks[job.id] in self.evaluate.datasets]
        measured = {job.id: self._measure(federator, job) for job in jobs}
        several = len({client.rank for client in federator.clients.values()}) > 1
        for key in sorted({key for figures in measured.values() for key in figures}):
            found = {job: figures[key] for job, figures in measured.items() if key in figures}
            values = list(found.values())
            federator.log({f"distributed/{key}": float(np.mean(values))})
            federator.log({f"distributed/{key}{formatting.WORST}": worst_tenth(values, key)})
            for rank in sorted({job.rank for job in jobs}) if several else ():
                its = [found[job.id] for job in jobs if job.rank == rank and job.id in found]
                federator.log({f"distributed/{key}_rank{rank}": float(np.mean(its))} if its else {})

    def _measure(self, federator: Federator, job: Job) -> dict[str, float]:
        state, dataset = federator.state, self.evaluate.datasets[self.evaluate.tasks[job.id]]
        server = federator.server
        sent = server.broadcast(state, job, federator.cohort)  # pure: neither counted nor seen
        payload = opened_payload(sent, server.layout)
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
