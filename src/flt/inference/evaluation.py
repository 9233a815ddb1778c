"""The result of an evaluation: the scores of each task, of each value of a column, and of each client."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from flt.callbacks.evaluate import mean_of_worst
from flt.inference.confusion import confusion_figure, write_picture
from flt.inference.metrics import Scores

SCHEMA = 1
"""Version of the dictionary that :meth:`Evaluation.as_dict` returns. It is increased when a key changes its meaning."""


@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """Evaluation of one task.

    Attributes:
        task: Name of the task; ``all`` if the data aren't divided into tasks.
        model: Name of the model whose figures are the task's. Empty if they are means over the clients' own models.
        models: Name of a model -> its scores, for all models that know the task.
        values: Value of ``data.column``, such as a language -> scores of the task's model on the examples with this
            value. Empty unless the values are evaluated separately. Without a global model, the scores have only means
            over the clients' own models.
        clients: Name of a client, such as ``client_3`` -> scores of the client's model on its own held-out examples.
            The client's model is that of its group, or its own. Empty if the clients aren't evaluated.
    """

    task: str
    model: str
    models: Mapping[str, Scores]
    values: Mapping[str, Scores] = dataclasses.field(default_factory=dict)
    clients: Mapping[str, Scores] = dataclasses.field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the task's model, or means over the clients' own models.

        If the values of a column are evaluated separately, they are means over the values, as in the run's figures.
        """
        if self.values:
            return means([scores.metrics for scores in self.values.values()])
        if self.model:
            return dict(self.models[self.model].metrics)
        return means([scores.metrics for scores in self.models.values()])

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
            found["worst_10_percent"] = worst(list(self.models.values()))
        found["models"] = _plain(self.models)
        if self.values:
            found["values"] = _plain(self.values)
        if self.clients:
            own = list(self.clients.values())
            found["held_out"] = {
                "mean": means([one.metrics for one in own]),
                "standard_deviation": deviations(own),
                "worst_10_percent": worst(own),
                "clients": _plain(self.clients),
            }
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluation of a run's models.

    Attributes:
        run: Last two parts of the path of the run's folder, such as ``hafl/version_3``; name of an export's folder.
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

    def __repr__(self) -> str:
        """Returns one line, such as ``Evaluation('hafl/version_3', 'test.csv', accuracy=0.95, macro_f1=0.94)``."""
        where = [repr(text) for text in (self.run, self.data, self.split) if text]
        return f"Evaluation({', '.join([*where, *(f'{key}={value:.4g}' for key, value in self.metrics.items())])})"

    def _repr_html_(self) -> str:
        """Returns tables for a notebook: the metrics of each task, and the figures of its classes."""
        where = " ".join(text for text in (self.run, self.data, self.split) if text)
        names = [name for name in self.metrics if name != "entropy"]
        rows = [[t.task, t.model, t.scores.examples, *(t.metrics[name] for name in names)] for t in self.tasks]
        tables = [_html(where, ["task", "model", "examples", *names], rows)]
        for task in self.tasks:
            if task.scores.classes and task.model:
                classes = [[one.name, one.precision, one.recall, one.f1, one.support] for one in task.scores.classes]
                tables.append(_html(task.task, ["class", "precision", "recall", "F1", "examples"], classes))
        return f"<div>{''.join(tables)}</div>"

    @property
    def metrics(self) -> dict[str, float]:
        """Means of the tasks' metrics, in which every task has the same weight, as in ``test/acc`` of a run."""
        return means([task.metrics for task in self.tasks])

    def as_dict(self) -> dict[str, Any]:
        """Returns the evaluation as plain values, for JSON.

        The keys are ``schema``, ``run``, ``data``, ``split``, ``kind``, ``metrics`` and ``tasks``. Each task has
        ``model``, ``examples``, ``metrics``, ``models`` and, for a classifier, ``classes`` and ``confusion_matrix``,
        whose rows are the true classes. Without a global model, ``model`` is null, the metrics are means over the
        clients' own models, and ``worst_10_percent`` has the means over the worst of them. ``values`` has the scores of
        each value of ``data.column`` if they are evaluated separately; the metrics are then means over the values.
        ``held_out`` has the scores of each client on its own held-out examples, their mean, standard deviation and
        the mean over the worst 10 %.
        """
        about = {"schema": SCHEMA, "run": self.run, "data": self.data, "split": self.split or None, "kind": self.kind}
        return {**about, "metrics": self.metrics, "tasks": {task.task: task.as_dict() for task in self.tasks}}


def _html(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in columns)
    texts = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row)}</tr>" for row in texts)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


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


def means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns metric -> its mean, in which every mapping has the same weight.

    Example:
        >>> means([{"accuracy": 0.5}, {"accuracy": 1.0}])
        {'accuracy': 0.75}
    """
    return {key: sum(one[key] for one in figures) / len(figures) for key in figures[0]}


def deviations(scores: Sequence[Scores]) -> dict[str, float]:
    """Returns metric -> its standard deviation over all of some models or clients."""
    return {key: float(np.std([one.metrics[key] for one in scores])) for key in scores[0].metrics}


def worst(scores: Sequence[Scores]) -> dict[str, float]:
    """Returns metric -> its mean over the worst 10 %, at least one; each metric has worst ones of its own."""
    return {
        key: mean_of_worst([one.metrics[key] for one in scores], key.replace("nll", "loss"))
        for key in scores[0].metrics
    }


def _plain(scores: Mapping[str, Scores]) -> dict[str, Any]:
    return {name: {"examples": one.examples, "metrics": dict(one.metrics)} for name, one in scores.items()}
