"""The file ``flt_inputs.json`` beside an exported model: what the model's inputs are, and how they were encoded.

With it, an export without its run can read new data. It contains names of columns and ids of clients, but no example.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flt.export.cards import NAME, OBJECT, Rule, check, dict_of, integer, list_of, one_of, optional, read, text

if TYPE_CHECKING:
    from flt.data.tasks import DataSet
    from flt.export.final_models import Model

INPUTS = "flt_inputs.json"
KINDS = ("text", "pair", "image", "causal")


@dataclasses.dataclass(frozen=True)
class TaskInputs:
    """Columns of the data of a task.

    Attributes:
        kind: Kind of the inputs: ``text``, ``pair``, ``image`` or ``causal``.
        columns: Names of the input columns. Empty: not known, so that columns with usual names are used.
        label: Column of the labels. Empty: there is none, or it isn't known.
        label_name: Column of the names of the classes. None: there is none.
        response: Column of the responses. Empty except for a causal model.
        prompts: Templates of the prompts, as in ``data.prompts``. Empty except for a causal model.
        merge: New class -> classes of the data that it replaces, as in ``data.merge``.
    """

    kind: str
    columns: tuple[str, ...] = ()
    label: str = ""
    label_name: str | None = None
    response: str = ""
    prompts: tuple[str, ...] = ()
    merge: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """Description of an exported model's inputs.

    Attributes:
        tasks: Task -> columns of its data, for the tasks of the jobs that use the model.
        max_length: Largest number of tokens of a text.
        precision: Precision of the run, such as ``32-true``.
        head: Name of the model's head. Empty: all jobs have the same head.
        jobs: Client and index of each job that uses the model.
        evaluated: Tasks that the run evaluated with this model.
    """

    tasks: Mapping[str, TaskInputs]
    max_length: int = 128
    precision: str = "32-true"
    head: str = ""
    jobs: tuple[tuple[int, int], ...] = ()
    evaluated: tuple[str, ...] = ()

    def of_model(self, model: Model) -> ModelInputs:
        """Returns what one of the run's models knows: the part of its own tasks and jobs."""
        tasks = {task: columns for task, columns in self.tasks.items() if task in model.tasks}
        return dataclasses.replace(
            self, tasks=tasks or self.tasks, head=model.head, jobs=model.jobs, evaluated=model.evaluated
        )


MODEL: dict[str, Rule] = {
    "version": one_of(1),
    "tasks": dict_of(OBJECT),
    "max_length": integer(1),
    "precision": one_of("32-true", "bf16-mixed"),
    "head": NAME,
    "jobs": list_of(list_of(integer(0))),
    "evaluated": list_of(NAME),
}
"""Keys of flt_inputs.json."""
TASK: dict[str, Rule] = {
    "kind": one_of(*KINDS),
    "columns": list_of(NAME),
    "label": NAME,
    "label_name": optional(NAME),
    "response": NAME,
    "prompts": list_of(text(2**16)),
    "merge": dict_of(list_of(NAME)),
}
"""Keys of a task in flt_inputs.json."""


def task_inputs(data_set: DataSet) -> TaskInputs:
    """Returns the columns that a run has read from a data set."""
    from flt.data.dataset_sources import ONE_CLASS  # imports libraries for reading data, which flt.fit doesn't need

    raw, data = data_set.raw, data_set.data
    label = "" if raw.label == ONE_CLASS else raw.label
    prompts = tuple(map(str, raw.templates))
    return TaskInputs(raw.kind, raw.inputs, label, data.label_name, raw.response, prompts, data.merge)


def inputs_text(inputs: ModelInputs) -> str:
    """Returns the content of the file."""
    return json.dumps({"version": 1, **dataclasses.asdict(inputs)}, indent=1, ensure_ascii=True)


def read_inputs(folder: Path) -> ModelInputs | None:
    """Reads the file beside an exported model. Returns None if there is none, as in exports of earlier versions.

    Raises:
        InputError: A key or a value isn't allowed.
        ValueError: The file isn't JSON.
    """
    path = folder / INPUTS
    if not path.is_file():
        return None
    card: dict[str, Any] = read(path, MODEL, *MODEL)
    del card["version"]
    for task, columns in card["tasks"].items():
        check(f"{INPUTS}: {task}", columns, TASK, ("kind", "columns"))
    tasks = {task: TaskInputs(**_with_tuples(columns)) for task, columns in card["tasks"].items()}
    jobs = tuple((job[0], job[1]) for job in card["jobs"] if len(job) == 2)
    return ModelInputs(**{**card, "tasks": tasks, "jobs": jobs, "evaluated": tuple(card["evaluated"])})


def _with_tuples(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in columns.items()}
