"""Checks of the arguments of ``flt.fit``. A wrong type is an error of one line that says what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.data.arguments import check_dataset, check_integer, check_text, described
from flt.data.clients import ClientSpec, check_order, class_names_of
from flt.data.label_values import class_names
from flt.run.schema import TrainConfig
from flt.server.callback import FedCallback

CLIENTS = "a list of clients, as flt.partition(dataset) makes them"


def check_fit(module: Any, clients: Any, algo: Any, **given: Any) -> None:
    """Checks the types of the arguments of :func:`flt.fit`, by their names.

    Raises:
        InputError: An argument has a wrong type, a number is too small, or data sets number their classes differently.
    """
    _check_module(module)
    _check_clients(clients)
    if not isinstance(algo, str | TrainConfig):
        raise InputError.of("algo", described(algo), 'the name of a recipe, such as "fedit"')
    for key, least in (("rounds", 1), ("batch_size", 1), ("seed", 0)):
        check_integer(key, given[key], least)
    if given["head"] is not None:
        check_text("head", given["head"], "the name of a submodule of the module, or None")
    check_text("source", given["source"], "a text: the name or path from which the base is loaded")
    if not isinstance(given["progress"], bool):
        raise InputError.of("progress", described(given["progress"]), "True or False")
    _check_collate(given["collate_fn"])
    for key, example in (("target_modules", "query"), ("overrides", "local.steps=5")):
        _check_texts(key, given[key], example)
    _check_callbacks(given["callbacks"])
    _check_logger(given["logger"])
    names = class_names_of(job for client in clients for job in client.data)
    for key in ("validation", "test"):
        _check_evaluated(key, given[key])
        _check_names(key, given[key], names, clients[0].data[0].task)


def _check_module(module: Any) -> None:
    if isinstance(module, pl.LightningModule):
        return
    allowed, why = "an instance of a lightning.pytorch.LightningModule", ""
    if isinstance(module, type):
        allowed = f"an instance: {module.__name__}(...)"
    elif any(base.__module__.partition(".")[0] == "pytorch_lightning" for base in type(module).__mro__):
        why = "it is one of the package pytorch_lightning, not of lightning.pytorch"
    elif isinstance(module, nn.Module):
        why = "it has no training_step and configure_optimizers"
    raise InputError.of("module", described(module), allowed, why)


def _check_clients(clients: Any) -> None:
    if isinstance(clients, ClientSpec):
        raise InputError.of("clients", "ClientSpec", "a list of clients: [client]")
    if not isinstance(clients, Sequence) or isinstance(clients, str):
        raise InputError.of("clients", described(clients), CLIENTS)
    if not clients:
        raise InputError.of("clients", "[]", "at least one client, as flt.partition makes them")
    for client in clients:
        if not isinstance(client, ClientSpec):
            raise InputError.of("clients", f"a list with {described(client)}", CLIENTS)


def _check_collate(collate: Any) -> None:
    """Checks the function that builds a batch. It may be a class whose constructor takes the examples."""
    if isinstance(collate, type) and any("__call__" in vars(base) for base in collate.__mro__):
        raise InputError.of("collate_fn", described(collate), f"an instance: {collate.__name__}(...)")
    if collate is not None and not callable(collate):
        raise InputError.of("collate_fn", described(collate), "a function of a list of examples, or None")


def _check_texts(key: str, value: Any, example: str) -> None:
    """Checks a list of texts. Only the argument ``target_modules`` may be None."""
    if value is None and key == "target_modules":
        return
    if not isinstance(value, Sequence) or isinstance(value, str):
        shown = value if isinstance(value, str) else example
        raise InputError.of(key, described(value), f'a list of texts, such as ["{shown}"]')
    for part in value:
        check_text(key, part, f'a list of texts, such as ["{example}"]')


def _check_callbacks(callbacks: Any) -> None:
    allowed = "a list of callbacks of Lightning and of flt"
    if isinstance(callbacks, pl.Callback | FedCallback):
        raise InputError.of("callbacks", described(callbacks), f"{allowed}: [callback]")
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise InputError.of("callbacks", described(callbacks), allowed)
    for callback in callbacks:
        if isinstance(callback, type):
            raise InputError.of("callbacks", described(callback), f"instances: [{callback.__name__}(...)]")
        if not isinstance(callback, pl.Callback | FedCallback):
            raise InputError.of("callbacks", f"a list with {described(callback)}", allowed)


def _check_logger(logger: Any) -> None:
    for one in logger if isinstance(logger, Sequence) and not isinstance(logger, str) else [logger]:
        if not isinstance(one, Logger) and not (one is None and logger is None):
            allowed = "a logger of lightning.pytorch.loggers, a list of them, or None for TensorBoard"
            raise InputError.of("logger", described(one), allowed)


def _check_evaluated(key: str, dataset: Any) -> None:
    """Checks the examples of an evaluation: one data set, or task -> data set."""
    if dataset is None or (isinstance(dataset, Mapping) and not dataset):
        return
    parts = {key: dataset}
    if isinstance(dataset, Mapping) and not all(hasattr(part, "column_names") for part in dataset.values()):
        parts = {f"{key}[{task!r}]": part for task, part in dataset.items()}
        if columns := [name for name, part in parts.items() if isinstance(part, Tensor | np.ndarray)]:
            why = f"{columns[0]} is a column"
            raise InputError.of(key, described(dataset), "one data set, or {task: data set}", why)
    for name, part in parts.items():
        check_dataset(name, part)
        if not len(part):
            raise InputError.of(name, "no examples", "at least one example, or None")


def _check_names(key: str, given: Any, names: Mapping[str, tuple[str, ...]], task: str) -> None:
    """Checks that examples of an evaluation don't number the classes otherwise than the clients' examples of the task.

    A single data set belongs to ``task``.
    """
    for name, dataset in (given if isinstance(given, Mapping) else {task: given}).items():
        for column in getattr(dataset, "column_names", None) or ["label"]:
            check_order(key, names.get(name, ()), class_names(dataset, column))
