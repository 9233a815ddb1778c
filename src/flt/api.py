"""The ten-line way in, on which the command line stands too."""

from __future__ import annotations

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
from flt.run.federation import Federation
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
    """Federates the fine-tuning of a LightningModule.

    LoRA goes on the module's linear layers and the last linear layer is the head, trained whole; a module that already
    holds peft layers keeps them. The module is changed in place. Its buffers, such as the statistics of a batch norm,
    are put back after each fit: they aren't federated. In evaluation torch's transformer layers read their weights past
    LoRA; flt keeps them from it, and so does ``flt.core.quiet.whole_layers()`` around your own inference.

    Args:
        module: Trained by a Lightning Trainer on each client, as it is: its own steps, optimisers and logs.
        clients: From :func:`partition`.
        algo: Name of a recipe in conf/algo, or a whole configuration, before which all the numbers here give way.
        rounds: Rounds in all.
        seed: Of everything that is drawn.
        batch_size: Examples per batch.
        target_modules: Ends of the names of the layers to adapt.
        head: Name of the module that is trained whole; ``none`` for no head.
        validation: Examples on which the global model is evaluated in each round, of one task or by task; None: what
            the clients hold out.
        test: Examples for one evaluation at the end.
        collate_fn: Builds a batch from a list of examples.
        callbacks: Lightning callbacks, of which each fit gets copies, and callbacks of the federation.
        logger: Lightning loggers in the place of TensorBoard's.
        progress: Show the progress and the table at the end.
        source: What ``from_pretrained`` loads the base by, for the adapter's card.
        overrides: Further keys of the configuration, such as ``local.steps=5``, ``resume=last``.

    Raises:
        InputError: Something of it is wrong; the message is one line.
    """
    given: dict[str, Any] = {"rounds": rounds, "seed": seed, "batch_size": batch_size, "adapter.head": head}
    given["adapter.target_modules"] = target_modules
    cfg = algo if isinstance(algo, TrainConfig) else _configured(algo, overrides, **given)
    if not clients:
        raise InputError.of("clients", "[]", "at least one client, as flt.partition makes them")
    sets = _by_task(validation, clients) or _held_out(clients)
    federated = Federation(module, clients, sets, _by_task(test, clients), collate_fn, source)
    lightning = [callback for callback in callbacks if isinstance(callback, pl.Callback)]
    own = [callback for callback in callbacks if isinstance(callback, FedCallback)]
    loggers = [logger] if isinstance(logger, Logger) else list(logger or ())
    return Run(cfg, federated, lightning, own, loggers, progress)()


def train(cfg: TrainConfig) -> Result:
    """Runs a whole configuration: what ``flt train`` does."""
    from flt.run.workload import federation  # reading data takes libraries that flt.fit needn't wait for

    made = federation(cfg)
    made.validation = made.validation or _held_out(made.clients)
    return Run(cfg, made)()


def _configured(algo: str, overrides: Sequence[str], **given: Any) -> TrainConfig:
    """The recipe with the arguments of :func:`fit` as overrides, before those that the user spelt out."""
    listed = {key: _spelt(value) for key, value in given.items() if value is not None}
    return configure([f"algo={algo}", *(f"{key}={value}" for key, value in listed.items()), *overrides])


def _spelt(value: Any) -> str:
    """A value as Hydra's command line spells it."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)


def _by_task(dataset: Dataset | Mapping[str, Dataset] | None, clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    if dataset is None:
        return {}
    if isinstance(dataset, Mapping):
        return dict(dataset)
    return {clients[0].data[0].task: dataset}


def _held_out(clients: Sequence[ClientSpec]) -> dict[str, Dataset]:
    """Task -> all that its clients hold out."""
    sets: dict[str, list[Subset]] = {}
    for job in (job for client in clients for job in client.data):
        if len(job.held_out):
            sets.setdefault(job.task, []).append(job.validation_set(None))
    return {task: _joined(parts) for task, parts in sets.items()}


def _joined(parts: Sequence[Subset]) -> Dataset:
    """One data set of several; of flt's own, a view that still knows its lengths."""
    owners = {id(part.dataset): part.dataset for part in parts}
    owner = next(iter(owners.values()))
    if len(owners) == 1 and isinstance(owner, Examples):
        return owner.view([position for part in parts for position in part.indices])
    return ConcatDataset(parts)
