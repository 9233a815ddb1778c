"""Functions that start a run: ``flt.fit`` for a user's own module and data, ``train`` for a configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger
from torch.utils.data import ConcatDataset, Dataset, Subset

from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.data.examples import Examples
from flt.data.partition_dataset import partition
from flt.run.federation import OWN, Federation
from flt.run.resume import configure
from flt.run.run import Result, Run
from flt.run.schema import TrainConfig
from flt.server.callback import FedCallback

__all__ = ["Result", "fit", "partition", "train"]


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

    LoRA adapts the module's linear layers. The last linear layer is the head and is trained whole. A module that
    already holds peft layers keeps them. The module is changed in place. Its buffers, such as the statistics of a batch
    norm, are restored after each local fit and aren't federated. In evaluation, torch's transformer layers read their
    weights directly and skip LoRA. flt prevents that during a run. Around your own inference,
    ``flt.core.quiet.without_fast_path()`` prevents it.

    Args:
        module: Module to train. A Lightning Trainer fits it on each client, with its own steps, optimisers and logs.
        clients: The clients, from :func:`partition`.
        algo: Name of a recipe in conf/algo, or a whole configuration. A whole configuration takes precedence over all
            numbers here.
        rounds: Number of rounds.
        seed: Seed of everything that is drawn at random.
        batch_size: Examples per batch.
        target_modules: Endings of the names of the layers to adapt.
        head: Name of the module that is trained whole; ``none`` for no head.
        validation: Examples on which the global model is evaluated in each round: one data set, or one for each task.
            None stands for the examples that the clients hold out.
        test: Examples for one evaluation at the end.
        collate_fn: Builds a batch from a list of examples.
        callbacks: Lightning callbacks, which each local fit gets copies of, and callbacks of the federation.
        logger: Lightning loggers that replace the default one for TensorBoard.
        progress: Show the progress and the table at the end.
        source: Name or path from which ``from_pretrained`` loads the base, for the adapter's card.
        overrides: Further keys of the configuration, such as ``local.steps=5`` or ``resume=last``.

    Raises:
        InputError: An argument is wrong. The message is one line.
    """
    given: dict[str, Any] = {"rounds": rounds, "seed": seed, "batch_size": batch_size, "adapter.head": head}
    given["adapter.target_modules"] = target_modules
    cfg = algo if isinstance(algo, TrainConfig) else _configured(algo, overrides, **given)
    cfg = _with_own_names(cfg, module)
    if not clients:
        raise InputError.of("clients", "[]", "at least one client, as flt.partition makes them")
    sets = _by_task(validation, clients) or _held_out(clients)
    federated = Federation(module, clients, sets, _by_task(test, clients), collate_fn, source)
    lightning = [callback for callback in callbacks if isinstance(callback, pl.Callback)]
    own = [callback for callback in callbacks if isinstance(callback, FedCallback)]
    loggers = [logger] if isinstance(logger, Logger) else list(logger or ())
    return Run(cfg, federated, lightning, own, loggers, progress)()


def train(cfg: TrainConfig) -> Result:
    """Runs a whole configuration, as ``flt train`` does.

    Raises:
        InputError: The configuration is wrong, or belongs to a run that ``flt.fit`` has started.
    """
    from flt.run.workload import federation  # loads libraries that read data, which flt.fit doesn't need

    if cfg.data["name"] == OWN:
        why = "the run to go on with trains a module and data that only the caller of flt.fit has"
        raise InputError.of("resume", cfg.resume, 'flt.fit(..., overrides=["resume=last"])', why)
    workload = federation(cfg)
    workload.validation = workload.validation or _held_out(workload.clients)
    return Run(cfg, workload)()


def _configured(algo: str, overrides: Sequence[str], **given: Any) -> TrainConfig:
    """Returns the recipe's configuration. The user's overrides come last and replace the arguments of :func:`fit`."""
    arguments = {key: _spelt(value) for key, value in given.items() if value is not None}
    return configure([f"algo={algo}", *(f"{key}={value}" for key, value in arguments.items()), *overrides])


def _with_own_names(cfg: TrainConfig, module: pl.LightningModule) -> TrainConfig:
    """Replaces the default sections of data and model, which describe neither the user's examples nor the module.

    Settings of the model that apply to any module stay.
    """
    model = {"name": type(module).__name__, "adapt_layers": cfg.model.get("adapt_layers", "all")}
    if cfg.model.get("quantise"):
        model["quantise"] = cfg.model["quantise"]
    return dataclasses.replace(cfg, data={"name": OWN}, model=model)


def _spelt(value: Any) -> str:
    """Writes a value as Hydra's command line reads it."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)


def _by_task(dataset: Dataset | Mapping[str, Dataset] | None, clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    if dataset is None:
        return {}
    if isinstance(dataset, Mapping):
        return dict(dataset)
    return {clients[0].data[0].task: dataset}


def _held_out(clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    """Returns the held-out examples of all clients for each task."""
    sets: dict[str, list[Subset]] = {}
    for job in (job for client in clients for job in client.data):
        if len(job.held_out):
            sets.setdefault(job.task, []).append(job.validation_set(None))
    return {task: _joined(parts) for task, parts in sets.items()}


def _joined(parts: Sequence[Subset]) -> Dataset:
    """Joins several data sets; parts of one of flt's own become a view of it, which has the lengths of its texts."""
    owners = {id(part.dataset): part.dataset for part in parts}
    owner = next(iter(owners.values()))
    if len(owners) == 1 and isinstance(owner, Examples):
        return owner.view([position for part in parts for position in part.indices])
    return ConcatDataset(parts)
