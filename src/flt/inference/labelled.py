"""Labelled data for an evaluation: the run's own, or any other data that training takes.

Labels are matched with the model's classes by name, whatever numbers they have in the data.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
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
from flt.inference.models import Exported
from flt.models.backbones import Backbone
from flt.run.compose import compose_config
from flt.run.schema import TrainConfig
from flt.run.stored import OWN, read_settings
from flt.run.workload import encode_split

MOST_SHOWN = 50
"""Largest number of classes that an error's line names."""
_log = logging.getLogger(__name__)


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
    """

    task: str
    data_set: DataSet
    split: str
    positions: Positions
    labels: NDArray[np.int64]
    sample: tuple[int, int] | None = None

    def encoded(self, backbone: Backbone, max_length: int) -> Examples:
        """Encodes the examples for a backbone."""
        whole = encode_split(self.data_set, self.split, backbone, max_length)
        examples = whole.view(self.positions, self.labels)
        return examples if self.sample is None else examples.view(stratified_sample(examples, *self.sample))


def own_data(run: Any, models: Sequence[Exported], split: str) -> list[Labelled]:
    """Loads the examples on which the run itself evaluated its models.

    Args:
        run: Folder of the run.
        models: The run's models.
        split: Name of the split.

    Raises:
        InputError: The run has no data that flt can load, or no such split.
    """
    cfg = own_settings(run)
    if cfg.data["name"] == OWN:
        raise InputError.of("data", None, "data=...", "the run's data are known only to the caller of flt.fit")
    size = {"test": cfg.eval.test_examples, "validation": cfg.eval.examples}.get(split)
    sample = None if size is None else (size, cfg.seed)
    return _matched(load_all(cfg), models, split, sample)


def own_settings(run: Any) -> TrainConfig:
    """Returns the configuration of a run, also of one that an older version of flt has written."""
    defaults: Any = OmegaConf.to_container(compose_config([]))
    saved: Any = OmegaConf.to_container(read_settings(run, "run"))
    sections = {key: {**defaults[key], **saved.get(key, {})} for key in ("eval", "cache", "partition", "cohort")}
    known = {key: saved.get(key, value) for key, value in defaults.items()}
    built: TrainConfig = typed(TrainConfig, OmegaConf.create({**known, **sections, "resume": None}), "run")
    return built


def other_data(
    data: str, overrides: Sequence[str], models: Sequence[Exported], split: str | None, task: str | None, seed: int
) -> list[Labelled]:
    """Loads other data: a file, a folder, a data set on the hub, or one with a name in conf/data.

    Args:
        data: Value of ``data=``.
        overrides: Further settings of the data, such as ``data.label=stars``.
        models: The models to evaluate.
        split: Name of the split. None: test, or the only split of a file or folder.
        task: Task of the models that the examples belong to. None: the classes' names tell it.
        seed: Seed with which splits are drawn that the source lacks.

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
    if cfg.data.name not in ("file", "hub") or not path or not _is_here(path):
        if not per_task or not (cfg.data.get("tasks") or cfg.data.get("sets")):
            cfg.jobs, cfg.data.tasks = "per_client", {}
        return _matched(load_all(typed(TrainConfig, cfg, "")), models, split or "test", None, task)
    settings = data_settings(cfg.data, overrides, _columns(tasks, task))
    raw = dataset_sources.load(settings, seed, split or "")
    positions = np.arange(len(raw.splits["train"]))
    labels = np.asarray(raw.splits["train"][raw.label][:])
    known = {task or ALL: {"train": (positions, labels)}}
    return _matched(
        [DataSet(os.path.basename(path.rstrip("/")), settings, raw, known, {task or ALL: raw.label_names})],
        models, "train", None, task,
    )  # fmt: skip


def known_tasks(models: Sequence[Exported]) -> dict[str, TaskInputs]:
    """Returns the tasks of some models, with the columns of their data."""
    return {task: columns for one in models for task, columns in one.inputs.tasks.items()}


def data_settings(section: Any, overrides: Sequence[str], known: TaskInputs) -> DataConfig:
    """Returns the settings of a file or folder. Columns that the user hasn't set are those that training has read.

    Args:
        section: Section ``data`` of a configuration.
        overrides: The user's settings.
        known: Columns of the training data.
    """
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


def _matched(
    sets: Sequence[DataSet],
    models: Sequence[Exported],
    split: str,
    sample: tuple[int, int] | None,
    task: str | None = None,
) -> list[Labelled]:
    """Matches the classes of data sets with those of the models."""
    classes = {name: one.names(name) for one in models for name in one.inputs.tasks}
    merges = {name: columns.merge for name, columns in known_tasks(models).items()}
    found: list[Labelled] = []
    for data_set in sets:
        for name, parts in data_set.tasks.items():
            if split not in parts:
                raise InputError.of("split", split, list(parts), f"{data_set.name} has no such split")
            positions, labels = parts[split]
            if data_set.raw.kind == "causal":
                own = task or (name if name in classes else next(iter(classes)))
                found.append(Labelled(own, data_set, split, positions, labels, sample))
                continue
            names = data_set.names[name]
            own_tasks = [task] if task else [name] if name in classes else list(classes)
            found += [
                Labelled(own, data_set, split, positions[rows], numbers, sample)
                for own, rows, numbers in _by_task(names, labels, {own: classes[own] for own in own_tasks}, merges)
            ]
    return found


def _by_task(
    names: Sequence[str],
    labels: NDArray[np.int64],
    classes: Mapping[str, Sequence[str]],
    merges: Mapping[str, Mapping[str, Sequence[str]]],
) -> list[tuple[str, Positions, NDArray[np.int64]]]:
    """Divides examples among the tasks that know their classes.

    Args:
        names: Name of each class of the data.
        labels: Class of each example, shape (n,).
        classes: Task -> names of the model's classes.
        merges: Task -> new class -> classes of the data that it replaces.

    Returns:
        Task, positions of its examples, and their labels as positions among the model's classes.
    """
    present = [int(k) for k in np.unique(labels)]
    maps = {task: _positions([names[k] for k in present], own, merges[task]) for task, own in classes.items()}
    whole = [task for task, found in maps.items() if (found >= 0).all()]
    if len(whole) > 1 or (np.stack(list(maps.values())) >= 0).sum(axis=0).max(initial=0) > 1:
        raise InputError.of("task", None, classes, "the classes of the data fit several tasks")
    if not whole and (unknown := [k for i, k in enumerate(present) if all(found[i] < 0 for found in maps.values())]):
        numbered = _as_numbers(names, present, classes)
        if numbered is None:
            model = named_shortly([name for own in classes.values() for name in own])
            data = named_shortly([names[k] for k in present])
            why = f"the model doesn't know this class; the data have {data}"
            raise InputError.of("data.label", names[unknown[0]], f"the model's classes: {model}", why)
        maps, whole = numbered, list(numbered)
    lookups = {}
    for task, found in maps.items():
        lookup = np.full(len(names), -1)
        lookup[present] = found
        lookups[task] = lookup[labels]
    kept = {task: np.flatnonzero(numbers >= 0) for task, numbers in lookups.items() if not whole or task in whole}
    return [(task, rows, lookups[task][rows]) for task, rows in kept.items() if len(rows)]


def _positions(names: Sequence[str], classes: Sequence[str], merged: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """Returns the position of each name among the model's classes. A name that the model doesn't know gets -1."""
    place = {name: number for number, name in enumerate(classes)}

    def position(name: str) -> int:
        if name in place:
            return place[name]
        new = next((new for new, old in merged.items() if any(fnmatchcase(name, pattern) for pattern in old)), None)
        return place.get(new, -1) if new is not None else -1

    return np.array([position(name) for name in names], dtype=np.int64)


def _as_numbers(
    names: Sequence[str], present: Sequence[int], classes: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.int64]] | None:
    """Reads labels such as 0 and 1 as the numbers of the model's classes, if no name of a class is a number.

    A line says so. Returns None if the labels aren't such numbers, or if several tasks could be meant.
    """
    if len(classes) != 1:
        return None
    ((task, own),) = classes.items()
    numbers = [int(names[k]) if names[k].isdecimal() else -1 for k in present]
    if any(not 0 <= number < len(own) for number in numbers) or any(name.lstrip("-").isdecimal() for name in own):
        return None
    read = ", ".join(f"{number} is {own[number]}" for number in numbers[:8])
    _log.warning("the labels are read as numbers of the model's classes: %s", printable(read))
    return {task: np.array(numbers, dtype=np.int64)}


def named_shortly(names: Sequence[str]) -> str:
    """Returns names with commas between them, and how many there are beyond ``MOST_SHOWN``."""
    shown = ", ".join(names[:MOST_SHOWN])
    return shown if len(names) <= MOST_SHOWN else f"{shown} and {len(names) - MOST_SHOWN} more"
