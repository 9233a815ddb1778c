"""Measurement of exported models: on whole data, on the examples of each value of a column, and of each client."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from flt.client.evaluator import Evaluator
from flt.client.settings import LocalSettings
from flt.data.examples import Examples
from flt.inference.evaluation import TaskEvaluation, means
from flt.inference.labelled import Labelled, whole_split
from flt.inference.metrics import MeasuredModule, Scores, checked
from flt.inference.models import Exported, Loaded, load_model
from flt.protocol.messages import JobId

Watch = Callable[[str, int, int], None]
"""Function called after each batch: (name of the model, number of finished batches, number of all batches)."""
PerModel = dict[str, dict[str, Scores]]
"""Task -> name of a model -> its scores."""


class Measurement:
    """Measures one model after another, so that only one is in memory.

    Args:
        sets: Examples of the tasks.
        held_out: Job -> the held-out examples of its client, for each of the job's tasks. Empty: the clients aren't
            measured.
        every: All models of the export. They tell which model a job uses.
        batch_size: Examples per batch.
        watch: Called after each batch.
    """

    def __init__(
        self,
        sets: Sequence[Labelled],
        held_out: Mapping[JobId, Sequence[Labelled]],
        every: Sequence[Exported],
        batch_size: int,
        watch: Watch | None = None,
    ) -> None:
        self.sets, self.batch_size, self.watch = sets, batch_size, watch
        self.encoded: dict[tuple[int, str], Examples] = {}
        self.found: PerModel = {one.task: {} for one in sets}
        self.values: dict[str, dict[str, dict[str, Scores]]] = defaultdict(lambda: defaultdict(dict))
        self.clients: dict[str, dict[str, Scores]] = defaultdict(dict)
        self.jobs: dict[str, list[tuple[JobId, Labelled]]] = defaultdict(list)
        for job, own in ((job, own) for job, of_job in held_out.items() for own in of_job):
            if (model := model_of(job, own.task, every)) is not None:
                self.jobs[model.called].append((job, own))

    def measure(self, model: Exported, device: torch.device) -> None:
        """Measures a model on the examples of its tasks, and on those of the clients that use it."""
        own = [one for one in self.sets if one.task in model.inputs.tasks]
        if not own:
            return
        loaded, name = load_model(model, device), model.called
        for one in own:
            self.found[one.task][name] = self._scores(loaded, one, name)
            for value, part in one.by_value().items():
                self.values[one.task][value][name] = self._scores(loaded, part, value)
        for (client, _), part in self.jobs[name]:
            if part.task in self.found:
                self.clients[part.task][f"client_{client}"] = self._scores(loaded, part, f"client_{client}")

    def results(self, models: Sequence[Exported]) -> tuple[TaskEvaluation, ...]:
        """Returns the evaluation of each task that one of the measured models knows."""
        evaluations = []
        for task, own in self.found.items():
            if own:
                main = main_model(task, models, own)
                values = {value: _of_models(scores, main) for value, scores in self.values[task].items()}
                clients = dict(sorted(self.clients[task].items(), key=lambda one: int(one[0].partition("_")[2])))
                evaluations.append(TaskEvaluation(task, main, own, values, clients))
        return tuple(evaluations)

    def _scores(self, loaded: Loaded, labelled: Labelled, called: str) -> Scores:
        key = id(labelled.data_set), labelled.split
        if key not in self.encoded:
            self.encoded[key] = whole_split(labelled, loaded)
        examples, watch = labelled.of(self.encoded[key]), self.watch
        report = None if watch is None else lambda done, total: watch(called, done, total)
        return scores_of(loaded, labelled.task, examples, self.batch_size, report)


def main_model(task: str, models: Sequence[Exported], scores: Mapping[str, Scores]) -> str:
    """Returns the name of the model whose figures are those of a task. Empty for clients' own models.

    It is the run's own choice. If the export doesn't say it, it is the model whose predictions are the most certain.
    """
    known = [one for one in models if one.called in scores]
    if len(known) == 1:
        return known[0].called
    if all(one.is_clients_own for one in known):
        return ""
    chosen = [one.called for one in known if task in one.inputs.evaluated]
    return chosen[0] if chosen else min(scores, key=lambda name: scores[name].metrics.get("entropy", math.inf))


def model_of(job: JobId, task: str, models: Sequence[Exported]) -> Exported | None:
    """Returns the model that a job uses. None if an export of an earlier version doesn't say it."""
    known = [one for one in models if task in one.inputs.tasks]
    users = [one for one in known if job in one.inputs.jobs] or [one for one in known if one.name == f"client_{job[0]}"]
    return next(iter(users), known[0] if len(known) == 1 and not known[0].inputs.jobs else None)


def scores_of(
    loaded: Loaded, task: str, examples: Examples, batch_size: int, watch: Callable[[int, int], None] | None = None
) -> Scores:
    """Returns the scores of a loaded model on encoded examples of a task, at least one."""
    names = loaded.exported.names(task)
    all_names = [*loaded.exported.names(), *(f"LABEL_{number}" for number in range(loaded.outputs))]
    further = all_names[len(names) : loaded.outputs]  # outputs that only other tasks use
    causal = loaded.exported.kind == "causal"
    measured = None if causal else MeasuredModule(loaded.backbone.model, [*names, *further]).to(loaded.device).eval()
    settings = LocalSettings(eval_batch_size=batch_size, precision=loaded.exported.inputs.precision)
    evaluator = Evaluator(measured or loaded.module, settings, loaded.collate)
    with isolate_rng():
        logged = evaluator.evaluate(examples, watch)
    if measured is not None:
        return measured.scores(len(names))
    checked(torch.tensor(logged["val_loss"]))
    metrics = {"loss": logged["val_loss"], "perplexity": logged["val_perplexity"], "accuracy": logged["val_acc"]}
    return Scores(metrics, len(examples))


def _of_models(scores: Mapping[str, Scores], main: str) -> Scores:
    """Returns the scores of the task's model, or means over the clients' own models."""
    if main:
        return scores[main]
    every = list(scores.values())
    return Scores(means([one.metrics for one in every]), every[0].examples)
