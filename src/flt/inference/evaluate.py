"""Evaluation of a run's exported models on labelled data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import Dataset

from flt.callbacks.evaluate import mean_of_worst
from flt.client.evaluator import Evaluator
from flt.client.settings import LocalSettings
from flt.core.errors import InputError
from flt.core.files import last_name
from flt.data.examples import Examples
from flt.inference.confusion import confusion_figure, write_picture
from flt.inference.labelled import Labelled, other_data, own_data, own_settings
from flt.inference.metrics import MeasuredModule, Scores, checked
from flt.inference.models import Exported, Loaded, choose, device_of, find_models, load_model
from flt.inference.own_module import evaluate_module
from flt.run.stored import find_run, run_around

SCHEMA = 1
"""Version of the dictionary that :meth:`Evaluation.as_dict` returns. It is increased when a key changes its meaning."""
Watch = Callable[[str, int, int], None]
"""Function called after each batch: (name of the model, number of finished batches, number of all batches)."""


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """Evaluation of one task.

    Attributes:
        task: Name of the task; ``all`` if the data aren't divided into tasks.
        model: Name of the model whose figures are the task's. Empty if they are means over the clients' own models.
        models: Name of a model -> its scores, for all models that know the task.
    """

    task: str
    model: str
    models: Mapping[str, Scores]

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the task's model, or means over the clients' own models."""
        if self.model:
            return dict(self.models[self.model].metrics)
        return _means([scores.metrics for scores in self.models.values()])

    @property
    def scores(self) -> Scores:
        """Scores of the task's model, or of the first client's own model."""
        return self.models[self.model] if self.model else next(iter(self.models.values()))

    def as_dict(self) -> dict[str, Any]:
        """Returns the evaluation as plain values, for JSON."""
        scores = self.scores
        found: dict[str, Any] = {"model": self.model or None, "examples": scores.examples, "metrics": self.metrics}
        if scores.classes and self.model:
            found["classes"] = [one.as_dict() for one in scores.classes]
            found["confusion_matrix"] = [list(row) for row in scores.confusion]
        if not self.model:
            found["worst_10_percent"] = {
                key: mean_of_worst([s.metrics[key] for s in self.models.values()], key.replace("nll", "loss"))
                for key in self.metrics
            }
        found["models"] = {
            name: {"examples": s.examples, "metrics": dict(s.metrics)} for name, s in self.models.items()
        }
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run's models.

    Attributes:
        run: Name of the run's or the export's folder.
        data: Name of the data.
        split: Split of the data. Empty for a file without splits.
        kind: Kind of the inputs: ``text``, ``pair``, ``image`` or ``causal``.
        tasks: The evaluation of each task.
    """

    run: str
    data: str
    split: str
    kind: str
    tasks: tuple[TaskEvaluation, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the tasks' metrics, in which every task has the same weight, as in ``test/acc`` of a run."""
        return _means([task.metrics for task in self.tasks])

    def as_dict(self) -> dict[str, Any]:
        """Returns the evaluation as plain values, for JSON.

        The keys are ``schema``, ``run``, ``data``, ``split``, ``kind``, ``metrics`` and ``tasks``. Each task has
        ``model``, ``examples``, ``metrics``, ``models`` and, for a classifier, ``classes`` and ``confusion_matrix``,
        whose rows are the true classes. Without a global model, ``model`` is null, the metrics are means over the
        clients' own models, and ``worst_10_percent`` has the means over the worst of them.
        """
        about = {"schema": SCHEMA, "run": self.run, "data": self.data, "split": self.split or None, "kind": self.kind}
        return {**about, "metrics": self.metrics, "tasks": {task.task: task.as_dict() for task in self.tasks}}


def write_pictures(found: Evaluation, folder: Path) -> list[Path]:
    """Writes the confusion matrix of each task as a PNG file. There is none for causal models and clients' own models.

    Args:
        found: The evaluation.
        folder: Folder, which must exist.

    Returns:
        The paths of the files, such as ``confusion_test.png``.
    """
    paths = []
    for task in found.tasks:
        if task.scores.classes and task.model:
            name = task.task if len(found.tasks) > 1 else ""
            figure = confusion_figure(task.scores, ", ".join(filter(None, [found.data, found.split, name])))
            paths.append(write_picture(figure, folder, Path(found.data).stem, found.split, name))
    return paths


def evaluate(
    run: str | Path = "last",
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    *,
    group: str | int | None = None,
    task: str | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
    device: str = "auto",
    root: str | Path = "lightning_logs",
    module: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    watch: Watch | None = None,
) -> Evaluation | dict[str, float]:
    """Evaluates the exported models of a run on labelled data.

    A task is evaluated with the model with which the run itself evaluates it, and every other model that knows the
    task's classes is evaluated beside it. If the run has no such model, because each client has its own, the figures
    are means over the clients' models. The classes of the data are matched with those of the model by name.

    Args:
        run: Folder of a run or of an export, or ``last``.
        data: Data as for training: a file, a folder, a hub id, or a name such as ``digits``. None: the run's own data.
            With ``module``, a data set.
        split: Name of the split. None: ``test``, or the only split of a file.
        group: Name or number of a group, or name of another exported model, such as ``client_3``. None: all models.
        task: Task that the data belong to. None: the names of the classes tell it.
        overrides: Settings of the data, such as ``data.label=stars``.
        batch_size: Examples per batch. None: as in the run.
        device: ``auto``, ``cpu`` or ``cuda``.
        root: Folder of all runs, in which ``last`` is looked for.
        module: For a run of :func:`flt.fit`: the module, into which the export is loaded. What its
            ``validation_step`` logs is returned, as a dictionary.
        collate_fn: With ``module``, function that builds a batch from a list of examples. None: torch's default.
        watch: Called after each batch.

    Returns:
        The evaluation. With ``module``, the metrics that the module logs.

    Raises:
        InputError: The run or the data can't be used, or labels are unknown to the model.
    """
    if module is not None:
        return evaluate_module(module, run, data, group, batch_size or 64, device, root, collate_fn)
    if data is not None and not isinstance(data, str | Path):
        raise InputError.of(
            "data", type(data).__name__, "a file, a folder, a hub id or a name; a data set needs module="
        )
    every = find_models(run, root)
    models = choose(every, None if group is None else str(group))
    folder = find_run(run, root)
    inside = run_around(folder)
    if data is None:
        if inside is None:
            raise InputError.of("data", None, "data=...", "the export isn't inside its run, whose data it could take")
        sets = own_data(inside, every, split or "test")
    else:
        seed = own_settings(inside).seed if inside is not None else 0
        sets = other_data(str(data), overrides, every, split, task, seed)
    size = batch_size or (own_settings(inside).eval.batch_size if inside is not None else 64)
    tasks = _evaluated(models, [one for one in sets if task in (None, one.task)], size, device_of(device), watch)
    if not tasks:
        raise InputError.of("task", task, sorted({one.task for one in sets}), "no chosen model knows it")
    names = {str(last_name(one.data_set.name)) for one in sets}
    name = names.pop() if len(names) == 1 else names.pop().partition(" ")[0]  # sets are called "glue sst2", "glue rte"
    kind = sets[0].data_set.raw.kind
    shown = split or ("test" if sets[0].split != "train" else "")
    return Evaluation(folder.absolute().name, name, shown, kind, tasks)


def _evaluated(
    models: Sequence[Exported], sets: Sequence[Labelled], batch_size: int, device: torch.device, watch: Watch | None
) -> tuple[TaskEvaluation, ...]:
    """Evaluates each model on the examples of its tasks. One model after another is in memory."""
    found: dict[str, dict[str, Scores]] = {one.task: {} for one in sets}
    encoded: dict[int, Examples] = {}
    for model in models:
        own = [number for number, one in enumerate(sets) if one.task in model.inputs.tasks]
        if not own:
            continue
        loaded = load_model(model, device)
        for number in own:
            if number not in encoded:
                encoded[number] = sets[number].encoded(loaded.backbone, model.inputs.max_length)
            scores = _scores(loaded, sets[number].task, encoded[number], batch_size, watch)
            found[sets[number].task][model.called] = scores
    return tuple(TaskEvaluation(task, _main(task, models, own), own) for task, own in found.items() if own)


def _main(task: str, models: Sequence[Exported], scores: Mapping[str, Scores]) -> str:
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


def _scores(loaded: Loaded, task: str, examples: Examples, batch_size: int, watch: Watch | None) -> Scores:
    names, name = loaded.exported.names(task), loaded.exported.called
    all_names = [*loaded.exported.names(), *(f"LABEL_{number}" for number in range(loaded.outputs))]
    further = all_names[len(names) : loaded.outputs]  # outputs that only other tasks use
    causal = loaded.exported.kind == "causal"
    measured = None if causal else MeasuredModule(loaded.backbone.model, [*names, *further]).to(loaded.device).eval()
    settings = LocalSettings(eval_batch_size=batch_size, precision=loaded.exported.inputs.precision)
    evaluator = Evaluator(measured or loaded.module, settings, loaded.collate)
    with isolate_rng():
        logged = evaluator.evaluate(examples, None if watch is None else lambda done, all: watch(name, done, all))
    if measured is not None:
        return measured.scores(len(names))
    checked(torch.tensor(logged["val_loss"]))
    metrics = {"loss": logged["val_loss"], "perplexity": logged["val_perplexity"], "accuracy": logged["val_acc"]}
    return Scores(metrics, len(examples))


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: sum(one[key] for one in figures) / len(figures) for key in figures[0]}
