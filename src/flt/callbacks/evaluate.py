"""Evaluation of the global models, and averages of what the clients measured on their own examples."""

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
    """Settings of the evaluation; conf/train.yaml explains each key."""

    examples: int | None
    test_examples: int | None
    client_examples: int
    distributed: bool
    batch_size: int
    every: int
    by_column: bool


class Evaluate(FedCallback):
    """Logs ``round/*``, ``clients/*`` and, with several tasks or parts, ``task/*``.

    X stands for the name of any figure that the module logs. ``clients/X`` is the mean of X over the cohort's jobs,
    each with its model as received and its own held-out examples. ``clients/X_worst10`` is the mean over the worst
    10 % of the jobs, and ``clients/fitted_X`` the mean over all jobs after the local fit. A global model that hasn't
    changed isn't evaluated again. If clients train private tensors, there is no global model, and only the clients'
    figures are logged.

    Args:
        datasets: Task -> examples on which the global model is evaluated; most federations have one task.
        tasks: Job -> its task. Only evaluation uses the tasks; the server never sees them.
        every: Number of rounds between evaluations of the global model; the last round always has one.
        test: Task -> examples of the single evaluation at the end, which logs ``test/*``.
        heads: Task -> head for its evaluation, if jobs have different heads.
        parts: Name in ``datasets`` and ``test`` -> its task, if the examples of a task are evaluated in parts.
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
        """Forgets figures that the last round didn't use."""
        self.memo.turn()

    def on_round_end(self, federator: Federator) -> None:
        """Logs the clients' figures, and evaluates the global model if it is due."""
        self._log_clients(federator)
        if _has_global(federator) and (federator.round % self.every == 0 or federator.round == federator.rounds):
            federator.log(self.global_metrics(federator))

    def on_fit_end(self, federator: Federator) -> None:
        """Evaluates the global model on the test examples."""
        if not _has_global(federator):
            return
        for key, value in _means(self._evaluate(federator, self.test)).items():
            federator.history[-1][f"test/{key.removeprefix('val_')}"] = value

    def global_metrics(self, federator: Federator) -> dict[str, float]:
        """Evaluates the global model of each task; returns these figures and their means over the tasks."""
        results = self._evaluate(federator, self.datasets)
        metrics = {f"round/{key}": value for key, value in _means(results).items()}
        if len(results) > 1:
            metrics |= {f"task/{task}/{key}": value for task, r in results.items() for key, value in r.items()}
        return metrics

    def of_group(self, federator: Federator, gid: int, dataset: Dataset, head: str = "") -> dict[str, float]:
        """Evaluates one group's global model, with one of its heads, on a data set."""
        state = federator.state
        tensors = federator.server.layout.model(state.groups[gid].weights, state.active, head)
        watch = functools.partial(federator.call, "on_evaluation")
        run = functools.partial(federator.engine.local_trainer.evaluate_group, state, gid, dataset, watch, head)
        return self.memo(fingerprint(state.base.version, tensors), dataset, run)

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
                    federator.log({f"clients/{key}_worst10": mean_of_worst(values, key)})


def _has_global(federator: Federator) -> bool:
    """Returns whether the server holds every tensor that the clients trained in this round."""
    plan = federator.server.recipe.plan(federator.round - 1)
    return not set(plan.train) & set(plan.private)


def _means(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns metric -> its mean over the tasks."""
    keys = sorted({key for result in results.values() for key in result})
    return {key: float(np.mean([result[key] for result in results.values() if key in result])) for key in keys}


def gather(federator: Federator, stage: str) -> dict[str, list[float]]:
    """Returns metric -> its values over the round's jobs, at one stage: distributed, fit or fitted."""
    values: dict[str, list[float]] = {}
    for update in federator.updates:
        for key, value in update.metrics.items():
            measured_at, _, metric = key.partition("/")
            if measured_at == stage:
                values.setdefault(metric, []).append(value)
    return values


def mean_of_worst(values: list[float], key: str) -> float:
    """Returns the mean over the worst 10 % of the values, at least one: the highest losses or the lowest accuracies.

    Example:
        >>> mean_of_worst([0.5, 0.9, 0.7], "val_acc")
        0.5
    """
    ordered = sorted(values, reverse=formatting.lower_is_better(key))
    return float(np.mean(ordered[: max(1, len(ordered) // 10)]))


def task_groups(state: ServerState, tasks: Mapping[JobId, str]) -> dict[str, int]:
    """Returns task -> the group whose model is evaluated on it: the group of most of its jobs (our reconstruction).

    FL-TAC takes the cluster in which the task has the majority; this leaves out a task that has the majority in no
    cluster. If several groups have equally many of the task's jobs, the best one-to-one matching of tasks and groups
    decides, else the first of them is taken. A task that hasn't appeared yet has no job in any group: the result
    doesn't contain the task, and its model is that of the home group. A task that has vanished keeps the group of its
    jobs.
    """
    if len(state.groups) == 1:
        return dict.fromkeys(tasks.values(), state.home)
    counts, names, gids = contingency(state, tasks)
    matched = dict(zip(*linear_sum_assignment(-counts), strict=True))
    group_of = {}
    for row, name in enumerate(names):
        most, own = counts[row].max(), matched.get(row)
        if most:
            column = own if own is not None and counts[row, own] == most else int(counts[row].argmax())
            group_of[name] = gids[column]
    return group_of
