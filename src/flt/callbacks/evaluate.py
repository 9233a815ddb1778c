"""Evaluation of the global models, and means of the metrics that the clients measured on their own examples."""

from __future__ import annotations

import dataclasses
import functools
import itertools
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
    """Settings of the evaluation. The section ``eval`` of conf/train.yaml explains each of them."""

    examples: int | None
    train_examples: int
    test_examples: int | None
    client_examples: int
    distributed: bool
    batch_size: int
    every: int
    by_column: bool
    divergence: bool
    client_test_examples: int
    client_labels: list[str]


class Evaluate(FedCallback):
    """Logs the metrics of the global model and of the clients' models.

    X stands for the name of a metric that the module logs, such as ``val_acc``.

    - ``round/X``: X of the global model on ``datasets``. If there are several data sets, ``round/X`` is the mean over
      the data sets, and the value of each data set is logged as ``task/<name>/X``.
    - ``clients/X``: mean of X over the cohort's jobs. Each job uses its own held-out examples to evaluate the model
      that it received.
    - ``clients/X_worst10``: mean of these values over the worst 10 % of the jobs.
    - ``clients/fitted_X``: mean of X over the cohort's jobs, measured on the same held-out examples after the local
      fit.
    - ``clients/fit_X``: mean of X over the cohort's jobs, where X is a metric that the module logs during the local
      fit.
    - ``clients/steps``: number of optimiser steps of all jobs together.
    - ``train/acc``, ``train/loss`` and so on: the metrics of the global model on ``training``, as means over the tasks.
    - ``gap/acc``, ``gap/loss`` and so on: by how much the global model is better on ``training`` than on ``datasets``:
      the validation loss minus the training loss, or the training accuracy minus the validation accuracy.

    If the global model of a task hasn't changed since the last evaluation, the metrics are reused. If clients train
    private tensors, there is no global model, and only ``clients/*`` is logged.

    Args:
        datasets: Task -> examples on which the global model is evaluated. Most federations have one task.
        tasks: Job -> its task, or its tasks if it has several. This callback uses the tasks only to choose a model for
            each data set.
        every: The global model is evaluated in every round whose number is a multiple of this integer, and in the last
            round.
        test: Task -> test examples. After the last round, the global model is evaluated once on the test examples, and
            ``test/acc``, ``test/loss`` and so on are added to the metrics of that round. If None or empty, this
            evaluation is left out.
        heads: Task -> name of the head with which the task is evaluated. If None, or if the names are empty, all jobs
            have the same head.
        subsets: Name of a subset -> its task, if the examples of a task are divided into subsets that are evaluated
            separately (``eval.by_column``). In that case, the keys of ``datasets`` and ``test`` are the names of these
            subsets. If None or empty, the keys are tasks.
        training: Task -> training examples on which the global model is evaluated, too. If None or empty, ``train/*``
            and ``gap/*`` aren't logged.
        joint: Job with several tasks -> the examples of all its tasks, on which the model that the job receives is
            evaluated (``eval.distributed``). If None or empty, each job has one task.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        tasks: Mapping[JobId, str | tuple[str, ...]],
        every: int = 1,
        test: Mapping[str, Dataset] | None = None,
        heads: Mapping[str, str] | None = None,
        subsets: Mapping[str, str] | None = None,
        training: Mapping[str, Dataset] | None = None,
        joint: Mapping[JobId, Dataset] | None = None,
    ) -> None:
        self.joint = joint or {}
        self.datasets, self.tasks, self.every, self.test = datasets, tasks, every, test or {}
        self.heads, self.subsets, self.training = heads or {}, subsets or {}, training or {}
        self.memo = Memo()

    def on_round_start(self, federator: Federator) -> None:
        """Forgets the metrics that weren't used in the previous round."""
        self.memo.turn()

    def on_round_end(self, federator: Federator) -> None:
        """Logs the clients' metrics, and evaluates the global model if it is due in this round."""
        self._log_clients(federator)
        if _has_global(federator) and (federator.round % self.every == 0 or federator.round == federator.rounds):
            federator.log(self.global_metrics(federator))
            federator.log(self._training_metrics(federator) if self.training else {})

    def on_fit_end(self, federator: Federator) -> None:
        """Evaluates the global model on the test examples."""
        if not _has_global(federator):
            return
        for key, value in _means(self._evaluate(federator, self.test)).items():
            federator.history[-1][f"test/{key.removeprefix('val_')}"] = value

    def global_metrics(self, federator: Federator) -> dict[str, float]:
        """Evaluates the global models on ``datasets``. Returns the metrics on each data set and the mean metrics."""
        results = self._evaluate(federator, self.datasets)
        metrics = {f"round/{key}": value for key, value in _means(results).items()}
        if len(results) > 1:
            metrics |= {f"task/{task}/{key}": value for task, r in results.items() for key, value in r.items()}
        return metrics

    def _training_metrics(self, federator: Federator) -> dict[str, float]:
        """Evaluates the global models on ``training``. The results on ``datasets`` are already known."""
        trained = self._evaluate(federator, self.training)
        both = {task: self.datasets[task] for task in self.training if task in self.datasets}
        gaps = {
            task: {key: _gain(key, trained[task][key], value) for key, value in found.items() if key in trained[task]}
            for task, found in self._evaluate(federator, both).items()
        }
        means = (("train", _means(trained)), ("gap", _means(gaps)))
        return {f"{at}/{key.removeprefix('val_')}": value for at, of in means for key, value in of.items()}

    def examples_for(self, job: JobId) -> Dataset | None:
        """Returns the examples on which the model that a job receives is evaluated. None: its tasks have none."""
        if job in self.joint:
            return self.joint[job]
        own = self.tasks[job]
        tasks = (own,) if isinstance(own, str) else own
        return self.datasets.get(tasks[0]) if len(tasks) == 1 else None

    def of_group(self, federator: Federator, gid: int, dataset: Dataset, head: str = "") -> dict[str, float]:
        """Returns the metrics of one group's global model on a data set.

        Args:
            federator: Federator whose current state contains the group.
            gid: Id of the group.
            dataset: Examples to evaluate on.
            head: Name of the head to use; empty if all jobs have the same head.
        """
        state = federator.state
        group = state.groups[gid]
        tensors = {**federator.server.layout.model(group.weights, state.active, head), **group.buffers}
        watch = functools.partial(federator.call, "on_evaluation")
        run = functools.partial(federator.engine.local_trainer.evaluate_group, state, gid, dataset, watch, head)
        return self.memo(fingerprint(state.base.version, tensors), dataset, run)

    def _evaluate(self, federator: Federator, datasets: Mapping[str, Dataset]) -> dict[str, dict[str, float]]:
        state = federator.state
        groups = task_groups(state, self.tasks)
        task_of = {name: self.subsets.get(name, name) for name in datasets}
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
    """Returns whether there is a global model. There is one if the clients trained no private tensors in this round."""
    plan = federator.server.recipe.plan(federator.round - 1)
    return federator.server.has_global(plan)


def _gain(key: str, value: float, other: float) -> float:
    """Returns by how much a value of a metric is better than another value."""
    return other - value if formatting.lower_is_better(key) else value - other


def _means(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns metric -> its mean over the data sets."""
    keys = sorted({key for result in results.values() for key in result})
    return {key: float(np.mean([result[key] for result in results.values() if key in result])) for key in keys}


def gather(federator: Federator, stage: str) -> dict[str, list[float]]:
    """Returns metric -> list of values. Each job of the round that measured the metric adds one value.

    Args:
        federator: Federator with the updates of the round, which contain the metrics.
        stage: Time of the measurement. ``distributed``: before the local fit, with the model as received; ``fit``:
            during the local fit; ``fitted``: after the local fit.
    """
    values: dict[str, list[float]] = {}
    for update in federator.updates:
        for key, value in update.metrics.items():
            measured_at, _, metric = key.partition("/")
            if measured_at == stage:
                values.setdefault(metric, []).append(value)
    return values


def mean_of_worst(values: list[float], key: str) -> float:
    """Returns the mean over the worst 10 % of the values, but at least over one value.

    The worst values are the highest ones if the metric is a loss or a perplexity, else the lowest ones.

    Args:
        values: Values of the metric.
        key: Name of the metric.

    Example:
        >>> mean_of_worst([0.5, 0.9, 0.7], "val_acc")
        0.5
    """
    ordered = sorted(values, reverse=formatting.lower_is_better(key))
    return float(np.mean(ordered[: max(1, len(ordered) // 10)]))


def task_groups(state: ServerState, tasks: Mapping[JobId, str | tuple[str, ...]]) -> dict[str, int]:
    """Returns task -> id of the group whose model is evaluated on the task.

    The group that contains more of the task's jobs than any other group is chosen. If several groups tie, the best
    one-to-one matching of tasks and groups decides. If the matched group isn't one of the tied groups, the tied group
    with the smallest id is chosen. This choice is our reconstruction. FL-TAC chooses the cluster in which the task has
    the majority, and therefore has no cluster for a task that has the majority in no cluster.

    If there are several groups, the result doesn't contain a task whose jobs haven't taken part yet. Such a task is
    evaluated with the home group's model. A task whose jobs no longer take part keeps its group.
    """
    if len(state.groups) == 1:
        every = ((named,) if isinstance(named, str) else named for named in tasks.values())
        return dict.fromkeys(itertools.chain.from_iterable(every), state.home)
    counts, names, gids = contingency(state, tasks)
    matched = dict(zip(*linear_sum_assignment(-counts), strict=True))
    group_of = {}
    for row, name in enumerate(names):
        most, own = counts[row].max(), matched.get(row)
        if most:
            column = own if own is not None and counts[row, own] == most else int(counts[row].argmax())
            group_of[name] = gids[column]
    return group_of
