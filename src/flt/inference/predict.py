"""Predictions of an exported model for new data, one window of rows after another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from flt.core.errors import InputError
from flt.core.formatting import printable
from flt.export.inputs import TaskInputs
from flt.inference.labelled import known_tasks
from flt.inference.metrics import entropy
from flt.inference.models import Exported, Loaded, choose, device_of, find_models, load_model
from flt.inference.outputs import Columns, check_out, writer
from flt.inference.own_module import check_no_base, predict_module
from flt.inference.predictor import Predictor
from flt.inference.rows import Rows, open_rows

SAMPLE = 256
"""Number of rows, from the beginning of the data, on which the nearest of several models is chosen."""
WINDOW = 16
"""Number of batches whose rows are in memory, and whose texts are sorted by length together."""
RESULTS = ("prediction", "probability")
"""Columns that are added to the rows."""
_log = logging.getLogger(__name__)
Watch = Callable[[int, int | None], None]
"""Function called after each window: (number of rows so far, number of all rows if it is known)."""


def nearest(
    models: Sequence[Exported], rows: Rows, batch_size: int = 64, device: str | torch.device = "cpu"
) -> tuple[Loaded, str]:
    """Chooses the model that is the most certain of its predictions on the first rows. No labels are needed.

    For each model, the mean entropy of the predictions on the first ``SAMPLE`` rows is divided by the entropy of a
    uniform prediction, because models may have different numbers of classes. The model with the smallest figure is
    chosen; of equal ones, the first. This choice is our reconstruction: FL-TAC doesn't say which cluster's adapter
    reads new data.

    Args:
        models: The models, at least one.
        rows: The data.
        batch_size: Examples per batch.
        device: Device of the models.

    Returns:
        The loaded model, and a line about the choice. The line is empty if there is only one model.
    """
    if len(models) == 1:
        return load_model(models[0], device), ""
    sample = next(rows.batches(SAMPLE), None)
    if sample is None:
        return load_model(models[0], device), ""
    best: tuple[float, Loaded] | None = None
    figures = {}
    for model in models:
        loaded = load_model(model, device)
        figure = float(entropy(Predictor(loaded, batch_size).log_probabilities(sample, rows.inputs)).mean())
        figures[model.called] = figure
        if best is None or figure < best[0]:
            best = figure, loaded
    assert best is not None, "there is a model"
    name = best[1].exported.called
    others = [f"{other} {figure:.3f}" for other, figure in figures.items() if other != name]
    further = f", {len(others) - 5} more" if len(others) > 5 else ""
    return best[1], (
        f"{name} predicts: it is the most certain on the first {sample.num_rows} rows (relative entropy "
        f"{best[0]:.3f}; {', '.join(others[:5])}{further}); group= chooses another"
    )


def predict(
    run: str | Path = "last",
    data: Any = None,
    out: str | Path | None = None,
    *,
    group: str | int | None = None,
    task: str | None = None,
    split: str | None = None,
    probabilities: bool = False,
    overrides: Sequence[str] = (),
    batch_size: int = 64,
    device: str = "auto",
    root: str | Path = "lightning_logs",
    base: str | Path | None = None,
    module: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    watch: Watch | None = None,
) -> Any:
    """Predicts the classes of new data with an exported model. No labels are needed.

    Each row of the data keeps its columns of texts and numbers, and gets the columns ``prediction`` (name of the class)
    and ``probability``. The rows keep their order. Columns of the data that have these names are replaced.

    Args:
        run: Folder of a run or of an export, or ``last``.
        data: A file, a folder of files or images, a hub id, a name such as ``digits``, a list of texts or of pairs of
            texts, a data frame or a ``datasets.Dataset``. With ``module``, a data set of any kind.
        out: Path of a .csv, .jsonl or .parquet file, or ``-`` for csv on standard output. The rows are then written as
            they are predicted, and aren't kept in memory. None: a data frame is returned.
        group: Name or number of a group, or name of another exported model, such as ``client_3``. None: of several
            models, the one that is the most certain on the first rows, see :func:`nearest`.
        task: Task whose classes are predicted, if tasks share a head. None: all classes of the model.
        split: Split of a hub data set, or of one with a name. None: ``test``.
        probabilities: Whether to add a column ``probability_<class>`` for each class.
        overrides: Settings of the data, such as ``data.text=review``.
        batch_size: Examples per batch.
        device: ``auto``, ``cpu`` or ``cuda``.
        root: Folder of all runs, in which ``last`` is looked for.
        base: Folder or hub id of the base, for an export away from its run whose base was a folder. None: the one that
            the export names.
        module: For a run of :func:`flt.fit`: the module, into which the export is loaded.
        collate_fn: With ``module``, function that builds a batch from a list of examples. None: torch's default.
        watch: Called after each window of rows.

    Returns:
        A data frame with a row for each row of the data; the number of rows if ``out`` is given. With ``module``, what
        its ``predict_step`` returns: one tensor if the outputs of the batches are tensors, else a list.

    Raises:
        InputError: The run or the data can't be used, or the file can't be written.
    """
    if module is not None:
        check_no_base(base)
        return predict_module(module, run, data, group, batch_size, device, root, collate_fn)
    if batch_size < 1:
        raise InputError.of("batch_size", batch_size, "an integer >= 1")
    if data is None:
        raise InputError.of("data", None, "a file, a folder, a hub id or a name, such as data=new.csv")
    if out is not None and str(out) != "-":
        _check_not_data(check_out(out), data)
    place, models = device_of(device), _of_task(choose(find_models(run, root, base), _text(group)), task)
    if models[0].kind == "causal":
        raise InputError.of("run", run, "a classifier; flt generate writes the responses of a causal model")
    rows = open_rows(data, _columns(models, task), overrides, split)
    loaded, line = nearest(models, rows, batch_size, place)
    if line:
        _log.info("%s", printable(line))
    classes = loaded.exported.classes
    if task is None and len({tuple(names) for names in classes.values()}) > 1:
        raise InputError.of("task", task, classes, f"they share the outputs of {loaded.exported.called}")
    if replaced := [name for name in rows.columns if name in RESULTS]:
        _log.warning("the data's columns %s are replaced", ", ".join(replaced))
    found = _predicted(Predictor(loaded, batch_size, task), rows, probabilities, watch)
    if out is None:
        frames = [pd.DataFrame(dict(columns)) for columns in found]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(RESULTS))
    count = 0
    with writer(out) as write:
        for columns in found:
            write(columns)
            count += len(columns[RESULTS[0]])
    return count


def _predicted(predictor: Predictor, rows: Rows, probabilities: bool, watch: Watch | None) -> Iterator[Columns]:
    """Yields the rows with their predictions, one window after another."""
    names, done = predictor.names, 0
    for table in rows.batches(predictor.batch_size * WINDOW):
        found = predictor.log_probabilities(table, rows.inputs).exp().numpy()
        shown = _shown(table)
        best = found.argmax(1)
        results: dict[str, Sequence[Any]] = {
            "prediction": [names[k] for k in best],
            "probability": found.max(1).tolist(),
        }
        if probabilities:
            results |= {f"probability_{name}": found[:, k].tolist() for k, name in enumerate(names)}
        start = {} if shown else {"row": list(range(done + 1, done + 1 + len(found)))}
        done += len(found)
        yield {**start, **{name: values for name, values in shown.items() if name not in results}, **results}
        if watch is not None:
            watch(done, rows.count)
    if not done:  # a file without rows, whose columns still have names
        further = [f"probability_{name}" for name in names] if probabilities else []
        yield dict.fromkeys([*(name for name in rows.columns if name not in RESULTS), *RESULTS, *further], [])


def _shown(table: pa.Table) -> dict[str, Sequence[Any]]:
    """Returns the columns of texts, numbers, dates and truth values. Images and lists are left out."""
    return {
        name: column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not any(test(column.type) for test in (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary))
        and not isinstance(column.type, pa.ExtensionType)
    }


def _text(group: str | int | None) -> str | None:
    return None if group is None else str(group)


def _of_task(models: list[Exported], task: str | None) -> list[Exported]:
    """Returns the models that know a task; those with which the run evaluates it, if there are such.

    Raises:
        InputError: No model knows the task.
    """
    if task is None:
        return models
    found = [one for one in models if task in one.inputs.tasks]
    if not found:
        raise InputError.of("task", task, known_tasks(models), "no chosen model knows it")
    return [one for one in found if task in one.inputs.evaluated] or found


def _columns(models: Sequence[Exported], task: str | None) -> TaskInputs:
    """Returns the columns that the models read: those of the task, or of the first task with the widest inputs."""
    tasks = known_tasks(models)
    return tasks[task] if task is not None else max(tasks.values(), key=lambda one: len(one.columns))


def _check_not_data(out: Path, data: Any) -> None:
    """Checks that the predictions don't replace the file that they are made of."""
    if isinstance(data, str | Path) and out.exists() and os.path.exists(data) and os.path.samefile(out, data):
        raise InputError.of("out", out, "another file than data=, whose rows would be lost")
