"""Loading of the data sets of a run, and their division into tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flt.core.errors import InputError
from flt.core.typed import typed
from flt.data import dataset_sources, encode
from flt.data.classes import matching
from flt.data.columns import Kind
from flt.data.random_splits import Positions

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

OUTSIDE = ("sets", "use", "tasks", "share")
"""Settings that a data set in ``data.sets`` can't have."""
ALL = "all"
"""Name of the task that contains all examples, if a data set isn't divided into tasks."""
Parts = Mapping[str, tuple[Positions, NDArray[np.int64]]]
"""Split -> (positions of a task's examples in the split, labels of these examples). A task's labels start at 0."""


@dataclass(frozen=True)
class DataSet:
    """Data set and its tasks, before the inputs are encoded as tensors.

    Attributes:
        name: Name of the data set, which is also used in the cache.
        data: Settings of the data set.
        raw: Splits, columns and classes of the data set.
        tasks: Task -> positions and labels of the task's examples in each split.
        names: Task -> names of its classes, in the order of the task's labels.
    """

    name: str
    data: dataset_sources.DataConfig
    raw: dataset_sources.RawData
    tasks: Mapping[str, Parts]
    names: Mapping[str, tuple[str, ...]]

    @property
    def classes(self) -> dict[str, int]:
        """Number of classes of each task. For a causal model it is 1, since all tasks predict the same tokens."""
        if self.raw.kind == "causal":
            return dict.fromkeys(self.tasks, 1)
        return {task: 1 + max(int(own.max()) for _, own in parts.values()) for task, parts in self.tasks.items()}


def kind_of(sets: Sequence[DataSet]) -> Kind:
    """Returns the kind of inputs that a backbone must accept for all data sets.

    The kind is ``"pair"`` if at least one data set has pairs.
    """
    kinds = {found.raw.kind for found in sets}
    return "pair" if "pair" in kinds else kinds.pop()


def load_all(cfg: TrainConfig) -> list[DataSet]:
    """Loads the one or several data sets of a configuration. If there are several, each of them has one task.

    Raises:
        InputError: A data set can't be read, there are no tasks for ``jobs=per_task``, or data sets can't be combined.
    """
    data = typed(dataset_sources.DataConfig, cfg.data, "data")
    if data.sets:
        return _several(cfg, data)
    if data.use is not None:
        raise InputError.of("data.use", data.use, "null", f"data={data.name} is one data set")
    if cfg.jobs == "per_task" and not data.tasks:
        raise InputError.of("data.tasks", "{}", "task: [classes], as jobs=per_task needs them")
    known = {"file": Path(str(data.path)).name, "hub": str(data.path)}
    divided = cfg.jobs == "per_task" or cfg.heads != "shape"  # else a client has one job with all classes
    return [_load(data, data.tasks if divided else {}, known.get(data.name, data.name), cfg.seed)]


def _several(cfg: TrainConfig, data: dataset_sources.DataConfig) -> list[DataSet]:
    used = list(data.sets) if data.use is None else data.use
    if not used or len(set(used)) < len(used) or not set(used) <= set(data.sets):
        raise InputError.of("data.use", used, data.sets, "different sets of data.sets")
    if data.tasks:
        raise InputError.of("data.tasks", list(data.tasks), "{}", "each of data.sets is a task")
    if data.test_path is not None and len(used) > 1:
        why = "the sets have different classes; in a file of conf/data, each of data.sets may have its own test_path"
        raise InputError.of("data.test_path", data.test_path, "null, or data.use=[one set]", why)
    common = {key: value for key, value in cfg.data.items() if key not in OUTSIDE}
    are_tasks = cfg.jobs == "per_task" or len(used) > 1
    found = [_named(cfg, name, {**common, **data.sets[name]}, name if are_tasks else ALL) for name in used]
    kinds = {one.name: one.raw.kind for one in found}
    if len({"text" if kind == "pair" else kind for kind in kinds.values()}) > 1:
        raise InputError.of("data.use", used, "sets of one kind; text and pairs go together", f"they are {kinds}")
    return found


def _named(cfg: TrainConfig, name: str, settings: dict[str, Any], task: str) -> DataSet:
    """Loads one data set of ``data.sets``, whose examples are those of a task."""
    if wrong := [key for key in OUTSIDE if key in settings]:
        raise InputError.of(
            f"data.sets.{name}.{wrong[0]}", settings[wrong[0]], "nothing: a set has no sets, and is a task"
        )
    data = typed(dataset_sources.DataConfig, settings, f"data.sets.{name}")
    try:
        loaded = _load(data, {}, f"{cfg.data['name']} {name}", cfg.seed)
    except InputError as error:
        raise InputError(f"data.sets.{name}: {error}") from error
    return replace(loaded, tasks={task: loaded.tasks[ALL]}, names={task: loaded.names[ALL]})


def _load(data: dataset_sources.DataConfig, tasks: Mapping[str, list[str]], name: str, seed: int) -> DataSet:
    raw = dataset_sources.load(data, seed)
    found = {split: encode.tasks(raw.values(split, raw.label), raw.label_names, tasks) for split in raw.splits}
    parts = {task: {split: of_split[task] for split, of_split in found.items()} for task in found["train"]}
    return DataSet(name, data, raw, parts, {task: _names(raw, task, tasks) for task in parts})


def _names(raw: dataset_sources.RawData, task: str, tasks: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Returns the names of a task's classes. Within a task, classes keep their order."""
    if not tasks:
        return raw.label_names
    return tuple(raw.label_names[k] for k in matching(f"data.tasks.{task}", tasks[task], raw.label_names))
