"""Functions that start or plan a run: ``flt.fit`` for a user's own module and data, ``train``, and ``flt.plan``."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from torch.utils.data import ConcatDataset, Dataset, Subset

from flt.api.result import Result
from flt.core import cache
from flt.core.errors import InputError
from flt.data.arguments import check_text, described
from flt.data.clients import ClientSpec
from flt.data.examples import Examples
from flt.data.partition_dataset import partition
from flt.reports.live import live_reports
from flt.run.arguments import check_fit
from flt.run.federation import Federation
from flt.run.planning.outcome import RunPlan
from flt.run.resume import configure
from flt.run.run import Run
from flt.run.schema import TrainConfig
from flt.run.stored import OWN
from flt.server.callback import FedCallback

__all__ = ["RunPlan", "fit", "partition", "plan", "train"]


def fit(
    module: pl.LightningModule,
    clients: Sequence[ClientSpec],
    algo: str | TrainConfig = "hafl",
    rounds: int = 10,
    *,
    seed: int = 0,
    batch_size: int = 16,
    target_modules: Sequence[str] | None = None,
    head: str | None = None,
    validation: Dataset | Mapping[str, Dataset] | None = None,
    test: Dataset | Mapping[str, Dataset] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    callbacks: Sequence[pl.Callback | FedCallback] = (),
    logger: Logger | Sequence[Logger] | None = None,
    progress: bool = True,
    source: str = "",
    overrides: Sequence[str] = (),
) -> Result:
    """Fine-tunes a LightningModule on the data of several clients.

    By default, LoRA adapts the module's linear layers, and the last linear layer is the head, which is trained without
    LoRA. In a transformers model inside the module, LoRA adapts the layers that are usual for its type, and a layer
    that computes the logits of tokens isn't trained as a head. If the module already contains LoRA layers of peft, flt
    uses these layers and adds none. The module is changed in place. Buffers that training changes, such as the
    running statistics of a batch norm, are averaged; the part ``buffers`` decides this. A batch norm whose weights are
    frozen stays in evaluation mode.

    In evaluation mode, torch's transformer layers have a fast path that reads the weights directly and thereby skips
    LoRA. flt turns the fast path off during a run. For your own inference, use the context manager
    ``flt.core.quiet.without_fast_path()``.

    Args:
        module: Module to train. A Lightning Trainer fits it on each client, with the module's own ``training_step``,
            optimisers and logs.
        clients: The clients, from :func:`partition`.
        algo: Name of a recipe in conf/algo, or a whole configuration. With a whole configuration, the arguments
            ``rounds``, ``seed``, ``batch_size``, ``target_modules``, ``head`` and ``overrides`` are ignored.
        rounds: Number of rounds.
        seed: Seed of everything that is drawn at random.
        batch_size: Examples per batch.
        target_modules: Names, or ends of names, of the layers to adapt. If None, the adapter chooses the layers.
        head: Name of the submodule that is the head: all of its weights are trained, without an adapter. With the
            string ``"none"``, there is no head. If None, the adapter chooses the head.
        validation: Examples on which the global model is evaluated: one data set, or task -> data set. None: the
            held-out examples of all clients.
        test: Examples for one evaluation at the end: one data set, or task -> data set. None: no such evaluation.
        collate_fn: Function that builds a batch from a list of examples. None: torch's default.
        callbacks: Lightning callbacks and federation callbacks. Each local fit gets its own copies of the Lightning
            callbacks. Lightning's progress bars are left out of the fits.
        logger: Lightning logger, or several. None: those of the configuration's key ``logger``, by default a
            TensorBoardLogger.
        progress: Whether to show the progress, and a table of results at the end.
        source: Name or path from which ``from_pretrained`` loads the base. The source is written into the metadata
            of the exported adapter. Empty if unknown.
        overrides: Further settings of the configuration, such as ``local.steps=5`` or ``resume=last``.

    Returns:
        The trained module, the metrics, and the folders of the run. The result predicts, evaluates and reports.

    Raises:
        InputError: An argument is wrong, or a fit changes what the recipe doesn't train. The message is one line.
    """
    check_fit(
        module, clients, algo, rounds=rounds, seed=seed, batch_size=batch_size, target_modules=target_modules,
        head=head, validation=validation, test=test, collate_fn=collate_fn, callbacks=callbacks, logger=logger,
        progress=progress, source=source, overrides=overrides,
    )  # fmt: skip
    given: dict[str, Any] = {"rounds": rounds, "seed": seed, "batch_size": batch_size, "adapter.head": head}
    given["adapter.target_modules"] = target_modules
    cfg = algo if isinstance(algo, TrainConfig) else _configured(algo, overrides, **given)
    cfg = _with_own_names(cfg, module)
    sets = _by_task(validation, clients) or _held_out(clients)
    federated = Federation(module, clients, sets, _by_task(test, clients), collate_fn, source)
    lightning = [callback for callback in callbacks if isinstance(callback, pl.Callback)]
    own = [callback for callback in callbacks if isinstance(callback, FedCallback)]
    loggers = [logger] if isinstance(logger, Logger) else list(logger or ())
    return _run(Run(cfg, federated, lightning, own, loggers, progress))


def train(cfg: TrainConfig) -> Result:
    """Runs the training that a configuration describes, like the command ``flt train``.

    Raises:
        InputError: The configuration is wrong, or belongs to a run that ``flt.fit`` has started.
    """
    if cfg.data["name"] == OWN:
        why = "the run to go on with trains a module and data that only the caller of flt.fit has"
        raise InputError.of("resume", cfg.resume, 'flt.fit(..., overrides=["resume=last"])', why)
    try:
        return _run(Run(cfg, _named(cfg)))
    finally:
        cache.release(cfg.cache.keep)


def plan(
    settings: TrainConfig | Sequence[str] = (),
    *,
    module: pl.LightningModule | None = None,
    clients: Sequence[ClientSpec] = (),
    validation: Dataset | Mapping[str, Dataset] | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    trial: bool = False,
    progress: bool = True,
) -> RunPlan:
    """Returns what a run would cost, or why it would be refused, like the command ``flt plan``.

    Nothing is trained, unless ``trial`` is set, and no run's folder is written.

    Args:
        settings: Settings as on the command line, such as ``["algo=hafl", "rounds=20"]``, or a whole configuration.
        module: The module that :func:`fit` would train. A copy of it is used. None: the model that the settings name.
        clients: The clients of :func:`fit`, if there is a module.
        validation: The examples of :func:`fit` on which the global model is evaluated. Only a trial uses them.
        collate_fn: The function of :func:`fit` that builds a batch.
        trial: Whether to train a few steps on a few clients, from which the time of the run is extrapolated.
        progress: Whether to show the progress on standard error.

    Returns:
        The plan. If the run would be refused, its ``refused`` has the reasons, and nothing else is filled in.

    Raises:
        InputError: A key or a value of the settings is wrong, or an argument has a wrong type.
    """
    from flt.run.planning.plan import plan_run

    _check_planned(settings, trial)
    if module is None:
        cfg = settings if isinstance(settings, TrainConfig) else configure(settings)
        try:
            return plan_run(cfg, lambda: _named(cfg), trial, progress)
        finally:
            cache.release(cfg.cache.keep)
    check_fit(
        module, clients, "hafl", rounds=1, seed=0, batch_size=1, target_modules=None, head=None, validation=validation,
        test=None, collate_fn=collate_fn, callbacks=(), logger=None, progress=progress, source="", overrides=(),
    )  # fmt: skip
    cfg = settings if isinstance(settings, TrainConfig) else configure(["rounds=10", *settings])
    cfg, own = _with_own_names(cfg, module), copy.deepcopy(module)
    sets = _by_task(validation, clients) or _held_out(clients)
    return plan_run(cfg, lambda: Federation(own, clients, sets, {}, collate_fn), trial, progress)


def _check_planned(settings: Any, trial: Any) -> None:
    """Checks the types of the arguments of :func:`plan`."""
    if isinstance(settings, str):
        raise InputError.of("settings", described(settings), f'a list of texts: ["{settings}"]')
    if not isinstance(settings, TrainConfig):
        if not isinstance(settings, Sequence):
            raise InputError.of("settings", described(settings), 'a list of texts, such as ["algo=hafl"]')
        for text in settings:
            check_text("settings", text, 'a list of texts, such as ["algo=hafl"]')
    if not isinstance(trial, bool):
        raise InputError.of("trial", described(trial), "True or False")


def _named(cfg: TrainConfig) -> Federation:
    """Returns the federation that a configuration names. Without validation examples, held-out ones are used."""
    from flt.run.workload import federation  # imports libraries for reading data, which flt.fit doesn't need

    workload = federation(cfg)
    workload.validation = workload.validation or _held_out(workload.clients)
    return workload


def _run(run: Run) -> Result:
    """Executes a run. With ``report=true``, the first process also writes the report of the run."""
    reports = live_reports(run.cfg)
    try:
        result = dataclasses.replace(run, own=[*run.own, *reports])()
    except BaseException:
        for report in reports:
            report.stop()
        raise
    for report in reports:
        report.finish(result.path)
    return Result.of(result)


def _configured(algo: str, overrides: Sequence[str], **given: Any) -> TrainConfig:
    """Returns the recipe's configuration, changed by the arguments of :func:`fit` and then by the user's overrides."""
    arguments = {key: _spelt(value) for key, value in given.items() if value is not None}
    return configure([f"algo={algo}", *(f"{key}={value}" for key, value in arguments.items()), *overrides])


def _with_own_names(cfg: TrainConfig, module: pl.LightningModule) -> TrainConfig:
    """Replaces the settings of flt's own data and model by the names of the user's data and module.

    The settings ``model.adapt_layers`` and ``model.quantise`` stay, because these two apply to any module.
    """
    model = {"name": type(module).__name__, "adapt_layers": cfg.model.get("adapt_layers", "all")}
    if cfg.model.get("quantise"):
        model["quantise"] = cfg.model["quantise"]
    return dataclasses.replace(cfg, data={"name": OWN}, model=model)


def _spelt(value: Any) -> str:
    """Returns a value in the syntax of Hydra's command line."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)


def _by_task(dataset: Dataset | Mapping[str, Dataset] | None, clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    if dataset is None:
        return {}
    if isinstance(dataset, Mapping):
        return dict(dataset)
    return {clients[0].data[0].task: dataset}


def _held_out(clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    """Returns task -> the held-out examples of all clients."""
    sets: dict[str, list[Subset]] = {}
    for job in (job for client in clients for job in client.data):
        if len(job.held_out):
            sets.setdefault(job.task, []).append(job.validation_set(None))
    return {task: _joined(parts) for task, parts in sets.items()}


def _joined(parts: Sequence[Subset]) -> Dataset:
    """Joins subsets into one data set.

    If all subsets belong to the same ``Examples``, the result is a view of that object. Unlike a
    ``ConcatDataset``, a view contains the lengths of the texts.
    """
    owners = {id(part.dataset): part.dataset for part in parts}
    owner = next(iter(owners.values()))
    if len(owners) == 1 and isinstance(owner, Examples):
        return owner.view([position for part in parts for position in part.indices])
    return ConcatDataset(parts)
