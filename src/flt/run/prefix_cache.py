"""Prefix cache. Adds to each example the outputs (activations) of the frozen blocks below all adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flt.algorithm.recipe import Recipe
from flt.core.errors import InputError
from flt.data.examples import Collate, Examples
from flt.data.joint import JointExamples
from flt.models.activations import Activations
from flt.models.frozen_prefix import Prefix, lower_blocks
from flt.models.module import MODEL_PREFIX, ClientModule
from flt.protocol.layout import Layout
from flt.run.federation import Federation
from flt.run.schema import TrainConfig


def prefixed(federation: Federation, layout: Layout, cfg: TrainConfig, device: torch.device, show: bool) -> Federation:
    """Returns the federation with data sets that also contain the activations of the blocks below the adapters.

    The activations are computed once per example, or read from the cache on disk.

    Args:
        federation: Federation with its adapter attached. Its module gets hooks that skip the blocks below the adapter.
        layout: Names and roles of the module's tensors.
        cfg: Configuration of the run.
        device: Device of the module.
        show: Whether to show the progress.

    Raises:
        InputError: No frozen block lies below the adapters, or a tensor before the blocks is trained.
    """
    module = federation.module
    assert isinstance(module, ClientModule)
    with _progress(show) as progress:
        task = progress.add_task("computing activations below the adapters, once", total=None, visible=False)
        activations = Activations(
            prefix=Prefix(module.model, lower_blocks(module.model, layout, MODEL_PREFIX)),
            names={"model": str(cfg.model.get("path") or cfg.model["name"]), "data": str(cfg.data["name"])},
            collate=federation.collate or Collate(),
            precision=cfg.precision,
            limit=cfg.cache.limit,
            device=device,
            watch=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
        sets = list(dict.fromkeys(_sets(federation)))
        cached: dict[Any, Any] = dict(zip(sets, activations.beside(sets), strict=True))
    joint = {_joint(job.dataset) for client in federation.clients for job in client.data if job.parts}
    cached |= {data: data.with_parts([cached[part] for part in data.parts]) for data in joint}
    clients = [
        dataclasses.replace(client, data=tuple(job.with_dataset(cached.__getitem__) for job in client.data))
        for client in federation.clients
    ]
    evaluated = (federation.validation, federation.test)
    validation, test = ({task: cached[s] for task, s in sets.items()} for sets in evaluated)
    return dataclasses.replace(federation, clients=clients, validation=validation, test=test)


def check_prefix(federation: Federation, recipe: Recipe, cfg: TrainConfig) -> None:
    """Checks that the activations below the adapters are the same in every step.

    Raises:
        InputError: The activations change between steps, or may change.
    """

    def refuse(why: str) -> InputError:
        return InputError.of("prefix_cache", "on", "off", why)

    own_module = not isinstance(federation.module, ClientModule)
    if own_module or not all(isinstance(examples, Examples) for examples in _sets(federation)):
        raise refuse("a module or data of the user's own may change from step to step")
    if cfg.model.get("dropout", 0):
        raise refuse(f"model.dropout={cfg.model['dropout']} draws anew in every step")
    if "base" in recipe.plan.roles:  # rules that change the base change only adapted layers, above the prefix
        raise refuse("the plan trains the whole model")


def _sets(federation: Federation) -> Iterator[Any]:
    for job in federation.job_data:
        yield from _joint(job.dataset).parts if job.parts else [job.dataset]
    yield from (examples for sets in (federation.validation, federation.test) for examples in sets.values())


def _joint(dataset: Any) -> JointExamples:
    """Returns the data set of a job with several tasks."""
    assert isinstance(dataset, JointExamples)
    return dataset


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(quiet=not show), transient=True)
