"""The data sets of a run, and the tasks in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flt.config import TrainConfig, typed
from flt.data import encode, sources
from flt.data.draws import Positions
from flt.errors import InputError

Parts = Mapping[str, tuple[Positions, NDArray[np.int64]]]
"""Split -> positions among its examples, and their labels counted inside the task."""


@dataclass(frozen=True)
class DataSet:
    """A data set before encoding.

    Attributes:
        name: What to call it in the cache.
        data: Its settings.
        raw: Its splits.
        tasks: Task -> its part of each split.
    """

    name: str
    data: sources.DataConfig
    raw: sources.RawData
    tasks: Mapping[str, Parts]

    @property
    def classes(self) -> dict[str, int]:
        """Task -> its number of classes; a causal model's tasks have none: they predict the same tokens."""
        if self.raw.kind == "causal":
            return dict.fromkeys(self.tasks, 1)
        return {task: 1 + max(int(own.max()) for _, own in parts.values()) for task, parts in self.tasks.items()}


def load_all(cfg: TrainConfig) -> list[DataSet]:
    """The data sets that a configuration names.

    Raises:
        InputError: A data set can't be read, or there are no tasks where each job has one.
    """
    data = typed(sources.DataConfig, cfg.data, "data")
    if cfg.jobs == "per_task" and not data.tasks:
        raise InputError.of("data.tasks", "{}", "task: [classes], as jobs=per_task needs them")
    known = {"file": Path(str(data.path)).name, "hub": str(data.path)}
    return [_load(data, data.tasks if cfg.jobs == "per_task" else {}, known.get(data.name, data.name), cfg.seed)]


def _load(data: sources.DataConfig, tasks: Mapping[str, list[str]], name: str, seed: int) -> DataSet:
    raw = sources.load(data, seed)
    found = {split: encode.tasks(raw.values(split, raw.label), raw.label_names, tasks) for split in raw.splits}
    return DataSet(
        name, data, raw, {task: {split: its[task] for split, its in found.items()} for task in found["train"]}
    )
