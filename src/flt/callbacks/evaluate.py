"""Evaluation of the global models and of the distributed client models."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch.utils.data import Dataset

from flt.callbacks.clusters import contingency
from flt.callbacks.evaluation_memo import Memo, fingerprint
from flt.core import formatting
from flt.protocol.messages import JobId
from flt.protocol.state import ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator


@dataclasses.dataclass
class EvalConfig:
    """What is evaluated, and how often."""

    examples: int | None
    test_examples: int | None
    client_examples: int
    distributed: bool
    batch_size: int
    every: int
    by_column: bool


class Evaluate(FedCallback):
    """Leaves ``round/*``, ``clients/*`` and, with several tasks or parts, ``task/*``.

    ``clients/X`` is the mean over the cohort's jobs of what the module logs as X for the model as distributed, on the
    job's own held-out examples; ``clients/X_worst10`` the mean over the worst tenth of them, ``clients/fitted_X`` the
    same after the fit. A global model that hasn't changed isn't evaluated again; where clients train private tensors
    there is none, and the clients' figures are all there is.

    Args:
        datasets: Task -> the examples on which the global model is evaluated; one task for most federations.
        tasks: Job -> its task. Known here, where everything is, and never to the server.
        every: Rounds from one evaluation of the global model to the next; the last round always has one.
        test: Task -> the examples of the one evaluation at the end, which leaves ``test/*``.
        heads: Task -> the head that it is evaluated with, where jobs have different ones.
        parts: Name in ``datasets`` and ``test`` -> its task, where the examples of a task are evaluated in parts.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        tasks: Mapping[JobId, str],
        every: int = 1,
        test: Mapping[str, Dataset] | None = None,
        heads: Mapping[str, str] | None = None,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        self.datasets, self.tasks, self.every, self.test = datasets, tasks, every, test or {}
        self.heads, self.parts = heads or {}, parts or {}
        self.memo = Memo()

    def on_round_start(self, federator: Federator) -> None:
        """Called when a cohort has been drawn."""
        self.memo.turn()

    def on_round_end(self, federator: Federator) -> None:
        """Called when a round has been aggregated."""
        self._log_clients(federator)
        if _has_global(federator) and (federator.round % self.every == 0 or federator.round == federator.rounds):
            federator.log(self.global_metrics(federator))

    def on_fit_end(self, federator: Federator) -> None:
        """Called when the last round has ended."""
        if not _has_global(federator):
            return
        for key, value in _means(self._evaluate(federator, self.test)).items():
            federator.history[-1][f"test/{key.removeprefix('val_')}"] = value

    def global_metrics(self, federator: Federator) -> dict[str, float]:
        """The global model of each task, and the mean over the tasks."""
        results = self._evaluate(federator, self.datasets)
        metrics = {f"round/{key}": value for key, value in _means(results).items()}
        if len(results) > 1:
            metrics |= {f"task/{task}/{key}": value for task, r in results.items() for key, value in r.items()}
        return metrics

    def of_group(self, federator: Federator, gid: int, dataset: Dataset, head: str = "") -> dict[str, float]:
        """What one group's global model, with one of its heads, measures on a data set."""
        state = federator.state
        active = federator.server.layout.model(state.groups[gid].weights, state.active, head)
        watch = functools.partial(federator.call, "on_evaluation")
        run = functools.partial(federator.engine.local_trainer.evaluate_group, state, gid, dataset, watch, head)
        return self.memo(fingerprint(state.base.version, active), dataset, run)

    def _evaluate(self, federator: Federator, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
        state = federator.state
        groups = task_groups(state, self.tasks)
        task_of = {name: self.parts.get(name, name) for name in datasets}
        return {
            name: self.of_group(
                federator, groups.get(task_of[name], state.home), dataset, self.heads.get(task_of[name], "")
            )
            for name, dataset in datasets.items()
        }

    def _log_clients(self, federator: Federator) -> None:
        federator.log({"clients/steps": sum(update.steps for update in federator.updates)})
        for stage, prefix in (("distributed", "clients/"), ("fitted", "clients/fitted_"), ("fit", "clients/fit_")):
            for key, values in gather(federator, stage).items():
                federator.log({f"{prefix}{key}": float(np.mean(values))})
                if stage == "distributed":
                    federator.log({f"clients/{key}_worst10": worst_tenth(values, key)})


def _has_global(federator: Federator) -> bool:
    """Whether the server has all that the clients trained in this round."""
    plan = federator.server.recipe.plan(federator.round - 1)
    return not set(plan.train) & set(plan.private)


def _means(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metric -> its mean over the tasks."""
    keys = sorted({key for result in results.values() for key in result})
    return {key: float(np.mean([result[key] for result in results.values() if key in result])) for key in keys}


def gather(federator: Federator, stage: str) -> dict[str, list[float]]:
    """Metric -> its values over the round's jobs, at one stage: distributed, fit or fitted."""
    found: dict[str, list[float]] = {}
    for update in federator.updates:
        for key, value in update.metrics.items():
            at, _, metric = key.partition("/")
            if at == stage:
                found.setdefault(metric, []).append(value)
    return found


def worst_tenth(values: list[float], key: str) -> float:
    """The mean over the worst tenth of the values, at least one: the highest of a loss, the lowest of an accuracy.

    Example:
        >>> worst_tenth([0.5, 0.9, 0.7], "val_acc")
        0.5
    """
    ordered = sorted(values, reverse=formatting.lower_is_better(key))
    return float(np.mean(ordered[: max(1, len(ordered) // 10)]))


def task_groups(state: ServerState, tasks: Mapping[JobId, str]) -> dict[str, int]:
    """Task -> the group by which it is evaluated: the one that most of its jobs are in (our reconstruction).

    FL-TAC takes the cluster whose majority is the task, which leaves out a task that is no cluster's majority. Of
    several such groups, the one that the best one-to-one matching of tasks and groups gives it, else the first. A task
    none of whose jobs has been in a group, since it hasn't appeared yet, isn't among them: its model is home's. One
    that has vanished keeps the group of its jobs.
    """
    if len(state.groups) == 1:
        return dict.fromkeys(tasks.values(), state.home)
    counts, names, gids = contingency(state, tasks)
    matched = dict(zip(*linear_sum_assignment(-counts), strict=True))
    found = {}
    for row, name in enumerate(names):
        most, own = counts[row].max(), matched.get(row)
        if most:
            at = own if own is not None and counts[row, own] == most else int(counts[row].argmax())
            found[name] = gids[at]
    return found
