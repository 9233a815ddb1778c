"""Evaluation of a run's exported models on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.inference.evaluation import Evaluation
from flt.inference.labelled import Labelled, other_data
from flt.inference.measure import Measurement, Watch
from flt.inference.models import Exported, choose, device_of, find_models
from flt.inference.own_data import own_data, own_settings
from flt.inference.own_module import check_no_base, evaluate_module
from flt.protocol.messages import JobId
from flt.run.stored import find_run, label_of, run_around


def evaluate(
    run: str | Path = "last",
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    *,
    group: str | int | None = None,
    task: str | None = None,
    clients: bool | None = None,
    overrides: Sequence[str] = (),
    batch_size: int | None = None,
    device: str = "auto",
    root: str | Path = "lightning_logs",
    base: str | Path | None = None,
    module: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    watch: Watch | None = None,
) -> Evaluation | dict[str, float]:
    """Evaluates the exported models of a run on labelled data.

    A task is evaluated with the model with which the run itself evaluates it, and every other model that knows the
    task's classes is evaluated beside it. If the run has no such model, because each client has its own, the figures
    are means over the clients' models. The classes of the data are matched with those of the model by name.

    With the run's own data, each client's held-out examples are evaluated, too, with the model that the client uses.
    They are those on which the run evaluates the models that the client receives. If the run evaluates the values of
    ``data.column`` separately (``eval.by_column``), or if ``data.column`` is among ``overrides``, each value has scores
    of its own, and the metrics are means over the values.

    Args:
        run: Folder of a run or of an export, or ``last``.
        data: Data as for training: a file, a folder, a hub id, or a name such as ``digits``. None: the run's own data.
            With ``module``, a data set.
        split: Name of the split. None: ``test``, or the only split of a file.
        group: Name or number of a group, or name of another exported model, such as ``client_3``. None: all models.
        task: Task that the data belong to. None: the names of the classes tell it.
        clients: Whether the clients' held-out examples are evaluated, too. None: yes for the run's own test split, if
            there are several clients, and the run evaluates such examples.
        overrides: Settings of the data, such as ``data.label=stars``.
        batch_size: Examples per batch. None: as in the run.
        device: ``auto``, ``cpu`` or ``cuda``.
        root: Folder of all runs, in which ``last`` is looked for.
        base: Folder or hub id of the base, for an export away from its run whose base was a folder. None: the one that
            the export names.
        module: For a run of :func:`flt.fit`: the module, into which the export is loaded. What its
            ``validation_step`` logs is returned, as a dictionary.
        collate_fn: With ``module``, function that builds a batch from a list of examples. None: torch's default.
        watch: Called after each batch.

    Returns:
        The evaluation. With ``module``, the metrics that the module logs.

    Raises:
        InputError: The run or the data can't be used, or labels are unknown to the model.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError.of("batch_size", batch_size, "an integer >= 1")
    if module is not None:
        check_no_base(base)
        return evaluate_module(module, run, data, group, batch_size or 64, device, root, collate_fn)
    if data is not None and not isinstance(data, str | Path):
        raise InputError.of(
            "data", type(data).__name__, "a file, a folder, a hub id or a name; a data set needs module="
        )
    place = device_of(device)
    every, folder = find_models(run, root, base), find_run(run, root)
    models = choose(every, None if group is None else str(group))
    inside = run_around(folder)
    sets, held_out = _data(inside, every, data, split, task, clients, overrides)
    size = batch_size or (own_settings(inside).eval.batch_size if inside is not None else 64)
    measurement = Measurement([one for one in sets if task in (None, one.task)], held_out, every, size, watch)
    for model in models:
        measurement.measure(model, place)
    tasks = measurement.results(models)
    if not tasks:
        raise InputError.of("task", task, sorted({one.task for one in sets}), "no chosen model knows it")
    shown = split or ("test" if sets[0].split != "train" else "")
    label = folder.absolute().name if inside is None else label_of(inside)
    return Evaluation(label, _name(sets), shown, sets[0].data_set.raw.kind, tasks)


def _data(
    inside: Path | None, every: Sequence[Exported], data: str | Path | None, split: str | None, task: str | None,
    clients: bool | None, overrides: Sequence[str],
) -> tuple[list[Labelled], dict[JobId, list[Labelled]]]:  # fmt: skip
    """Returns the examples of the tasks, and the held-out examples of the jobs if they are to be evaluated."""
    if data is not None:
        if clients:
            raise InputError.of("clients", True, "false with data=", "only the run's own data belong to its clients")
        seed = own_settings(inside).seed if inside is not None else 0
        return other_data(str(data), overrides, every, split, task, seed), {}
    if inside is None:
        raise InputError.of("data", None, "data=...", "the export isn't inside its run, whose data it could take")
    if overrides:
        key, _, value = overrides[0].partition("=")
        raise InputError.of(key, value, "nothing without data=", "the run's own data are read as the run read them")
    cfg = own_settings(inside)
    usual = split in (None, "test") and cfg.clients > 1 and cfg.eval.client_examples > 0
    return own_data(cfg, every, split or "test", usual if clients is None else clients)


def _name(sets: Sequence[Labelled]) -> str:
    names = {str(last_name(one.data_set.name)) for one in sets}
    return names.pop() if len(names) == 1 else names.pop().partition(" ")[0]  # sets are called "glue sst2", "glue rte"
