"""Labelled data for an evaluation: any data that training takes.

Labels are matched with the model's classes by name, whatever numbers they have in the data.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.core.formatting import printable
from flt.core.typed import typed
from flt.data import dataset_sources
from flt.data.config import DataConfig
from flt.data.examples import Examples, stratified_sample
from flt.data.random_splits import Positions
from flt.data.suffixes import suffix_of
from flt.data.tasks import ALL, DataSet, load_all
from flt.export.inputs import TaskInputs
from flt.inference.class_matching import by_task
from flt.inference.models import Exported, Loaded
from flt.run.compose import compose_config
from flt.run.schema import TrainConfig
from flt.run.workload import encode_split

_log = logging.getLogger(__name__)
SPLITS = ("validation", "test", "test_split", "test_path", "tasks", "sets", "use")
"""Settings that divide data, which a file or folder that is read whole can't have."""


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Examples of a task before they are encoded, with labels as positions among the classes of the model.

    Attributes:
        task: The task.
        data_set: Data set that contains the examples.
        split: Split of the data set.
        positions: Positions of the examples in the split, shape (n,).
        labels: Position of each example's class among the model's classes of the task, shape (n,).
        sample: Largest number of examples in the stratified sample that a run evaluates, and the seed of the sample.
            None: all examples are evaluated.
        values: Value of ``data.column`` of each example, texts of shape (n,), if each value is evaluated separately.
    """

    task: str
    data_set: DataSet
    split: str
    positions: Positions
    labels: NDArray[np.int64]
    sample: tuple[int, int] | None = None
    values: NDArray[np.str_] | None = None

    def of(self, whole: Examples) -> Examples:
        """Returns the examples, or a sample of them, out of the encoded examples of the whole split."""
        examples = whole.view(self.positions, self.labels)
        return examples if self.sample is None else examples.view(stratified_sample(examples, *self.sample))

    def by_value(self) -> dict[str, Labelled]:
        """Returns value of ``data.column`` -> the examples with this value, each sampled by itself as in a run."""
        if self.values is None:
            return {}
        rows = {str(value): np.flatnonzero(self.values == value) for value in np.unique(self.values)}
        return {value: self.at(own) for value, own in rows.items()}

    def at(self, rows: Positions) -> Labelled:
        """Returns some of the examples, whose values aren't evaluated separately."""
        return dataclasses.replace(self, positions=self.positions[rows], labels=self.labels[rows], values=None)


def whole_split(labelled: Labelled, loaded: Loaded) -> Examples:
    """Encodes the whole split that contains the examples, for a loaded model."""
    inputs = loaded.exported.inputs
    return encode_split(labelled.data_set, labelled.split, loaded.backbone, inputs.max_length)


def other_data(
    data: str,
    overrides: Sequence[str],
    models: Sequence[Exported],
    split: str | None,
    task: str | None,
    seed: int,
) -> list[Labelled]:
    """Loads other data: a file, a folder, a data set on the hub, or one with a name in conf/data.

    Args:
        data: Value of ``data=``.
        overrides: Further settings of the data, such as ``data.label=stars``.
        models: The models to evaluate.
        split: Name of the split. None: test, or the only split of a file or folder.
        task: Task of the models that the examples belong to. None: the classes' names tell it.
        seed: Seed with which splits are drawn that the source lacks.

    Returns:
        The examples of each task. With ``data.column`` among the overrides, its values are evaluated separately.

    Raises:
        InputError: The data can't be read, lack a column or a split, or have a class that the model doesn't know.
    """
    tasks = known_tasks(models)
    if task is not None and task not in tasks:
        raise InputError.of("task", task, tasks, "the models know no such task")
    per_task = set(tasks) != {ALL}
    cfg = compose_config([f"data={data}", *overrides, f"jobs={'per_task' if per_task else 'per_client'}"])
    cfg.seed = seed
    path = cfg.data.get("path")
    by_column = any(text.startswith("data.column=") for text in overrides)
    if cfg.data.name not in ("file", "hub") or not path or not _is_here(path):
        if not per_task or not (cfg.data.get("tasks") or cfg.data.get("sets")):
            cfg.jobs, cfg.data.tasks = "per_client", {}
        sets = known_parts(load_all(typed(TrainConfig, cfg, "")), models, task)
        return matched(sets, models, split or "test", task=task, by_column=by_column)
    settings = data_settings(cfg.data, overrides, _columns(tasks, task))
    raw = dataset_sources.load(settings, seed, split or "")
    positions = np.arange(len(raw.splits["train"]))
    labels = np.asarray(raw.splits["train"][raw.label][:])
    known = {task or ALL: {"train": (positions, labels)}}
    found = DataSet(os.path.basename(path.rstrip("/")), settings, raw, known, {task or ALL: raw.label_names})
    return matched([found], models, "train", task=task, by_column=by_column)


def known_tasks(models: Sequence[Exported]) -> dict[str, TaskInputs]:
    """Returns the tasks of some models, with the columns of their data."""
    return {task: columns for one in models for task, columns in one.inputs.tasks.items()}


def data_settings(section: Any, overrides: Sequence[str], known: TaskInputs) -> DataConfig:
    """Returns the settings of a file or folder. Columns that the user hasn't set are those that training has read.

    Args:
        section: Section ``data`` of a configuration.
        overrides: The user's settings.
        known: Columns of the training data.

    Raises:
        InputError: A setting divides the data, which are read whole.
    """
    check_unused(overrides, SPLITS)
    written: Any = OmegaConf.to_container(section)
    settings = {**written, "validation": 0.0, "test": 0.0, "test_split": "test", "tasks": {}}
    given = {text.partition("=")[0].removeprefix("data.") for text in overrides}
    inputs = {"image": "image"} if known.kind == "image" else {"text": "text", "text_pair": "text_pair"}
    if not given & set(inputs) and known.kind != "causal":
        settings |= dict(zip(inputs, known.columns, strict=False))
    for key in ("label", "label_name", "response", "prompts"):
        if key not in given and getattr(known, key):
            value = getattr(known, key)
            settings[key] = list(value) if isinstance(value, tuple) else value
    built: DataConfig = typed(DataConfig, OmegaConf.create(settings), "data")
    return built


def check_unused(overrides: Sequence[str], keys: Sequence[str]) -> None:
    """Checks that the user has given none of the settings of data that would change nothing.

    Raises:
        InputError: One of them is given.
    """
    for text in overrides:
        key, _, value = text.partition("=")
        if key.removeprefix("data.").partition(".")[0] in keys:
            raise InputError.of(key, value, "nothing here", "the rows of the file or folder are read whole")


def _columns(tasks: Mapping[str, TaskInputs], task: str | None) -> TaskInputs:
    """Returns the columns of a task, or of all tasks if they have the same."""
    if task is not None:
        return tasks[task]
    first, *others = tasks.values()
    if any(other != first for other in others):
        raise InputError.of("task", task, tasks, "the data of the tasks have different columns")
    return first


def _is_here(path: str) -> bool:
    place = expand_user(path)
    return bool(suffix_of(path)) or os.path.exists(place)


def known_parts(sets: Sequence[DataSet], models: Sequence[Exported], task: str | None = None) -> list[DataSet]:
    """Returns the data sets without the tasks that the models don't know, if they know some of the tasks by name.

    A line names the tasks that are left out, unless the user has chosen one.

    Args:
        sets: The data sets.
        models: The models.
        task: The chosen task. None: all tasks.
    """
    tasks, names = known_tasks(models), [name for data_set in sets for name in data_set.tasks]
    wanted = [name for name in names if name in tasks and task in (None, name)]
    if not wanted or len(wanted) == len(names):
        return list(sets)
    if task is None:
        left_out = printable(", ".join(name for name in names if name not in wanted))
        _log.warning("left out are examples of tasks that the models don't know: %s", left_out)
    kept = [{name: parts for name, parts in data_set.tasks.items() if name in wanted} for data_set in sets]
    return [dataclasses.replace(one, tasks=own) for one, own in zip(sets, kept, strict=True) if own]


def matched(
    sets: Sequence[DataSet],
    models: Sequence[Exported],
    split: str,
    sample: tuple[int, int] | None = None,
    task: str | None = None,
    by_column: bool = False,
) -> list[Labelled]:
    """Matches the classes of data sets with those of the models.

    Args:
        sets: The data sets.
        models: The models.
        split: Name of the split.
        sample: As in :class:`Labelled`.
        task: Task of the models that the examples belong to. None: the names of tasks and classes tell it.
        by_column: Whether the values of ``data.column`` are evaluated separately.

    Raises:
        InputError: There is no such split, or a class is unknown to the models, or several tasks know it.
    """
    classes = {name: one.names(name) for one in models for name in one.inputs.tasks}
    merges = {name: columns.merge for name, columns in known_tasks(models).items()}
    found: list[Labelled] = []
    for data_set in sets:
        for name, parts in data_set.tasks.items():
            if split not in parts:
                raise InputError.of("split", split, list(parts), f"{data_set.name} has no such split")
            positions, labels = parts[split]
            values = _values(data_set, split)[positions] if by_column else None
            if data_set.raw.kind == "causal":
                own = task or (name if name in classes else next(iter(classes)))
                found.append(Labelled(own, data_set, split, positions, labels, sample, values))
                continue
            own_tasks = [task] if task else [name] if name in classes else list(classes)
            parts_of = by_task(data_set.names[name], labels, {own: classes[own] for own in own_tasks}, merges)
            found += [
                Labelled(
                    own, data_set, split, positions[rows], numbers, sample, None if values is None else values[rows]
                )
                for own, rows, numbers in parts_of
            ]
    return found


def _values(data_set: DataSet, split: str) -> NDArray[np.str_]:
    """Returns the value of ``data.column`` of each example of a split, as text."""
    column, names = data_set.data.column, data_set.raw.splits[split].column_names
    if column is None or column not in names:
        raise InputError.of("data.column", column, names, "no such column")
    return data_set.raw.values(split, column).astype(str)
