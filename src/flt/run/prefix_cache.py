"""A federation whose examples carry the activations of the frozen prefix."""

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
from flt.models.activations import Activations
from flt.models.frozen_prefix import Prefix, lower_blocks
from flt.models.module import ClientModule
from flt.protocol.layout import Layout
from flt.run.federation import Federation
from flt.run.schema import TrainConfig


def prefixed(made: Federation, layout: Layout, cfg: TrainConfig, device: torch.device, show: bool) -> Federation:
    """Computes what lies below the adapters once per example, or finds it in the cache.

    Args:
        made: The federation, its adapters attached; the module gets hooks that skip the blocks below them.
        layout: Roles of its tensors.
        cfg: Precision and the cache's limit.
        device: Where the module is.
        show: Whether to show the progress.

    Raises:
        InputError: What lies below isn't the same in every step, or isn't known to be.
    """
    module = made.module
    assert isinstance(module, ClientModule)
    with _progress(show) as progress:
        task = progress.add_task("activations below the adapters", total=None, visible=False)
        activations = Activations(
            prefix=Prefix(module.model, lower_blocks(module.model, layout, "model.")),
            names={"model": str(cfg.model.get("path") or cfg.model["name"]), "data": str(cfg.data["name"])},
            collate=made.collate or Collate(),
            precision=cfg.precision,
            limit=cfg.cache.limit,
            device=device,
            watch=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
        sets = list(dict.fromkeys(_sets(made)))
        beside = dict(zip(sets, activations.beside(sets), strict=True))
    clients = [
        dataclasses.replace(client, data=tuple(job.but(dataset=beside[job.dataset]) for job in client.data))
        for client in made.clients
    ]
    validation, test = ({task: beside[s] for task, s in sets.items()} for sets in (made.validation, made.test))
    return dataclasses.replace(made, clients=clients, validation=validation, test=test)


def check_prefix(made: Federation, recipe: Recipe, cfg: TrainConfig) -> None:
    """Refuses examples whose activations below the adapters may change.

    Raises:
        InputError: What lies below isn't the same in every step, or isn't known to be.
    """

    def refuse(why: str) -> InputError:
        return InputError.of("prefix_cache", "on", "off", why)

    if not isinstance(made.module, ClientModule) or not all(isinstance(found, Examples) for found in _sets(made)):
        raise refuse("a module or data of the user's own may change from step to step")
    if cfg.model.get("dropout", 0):
        raise refuse(f"model.dropout={cfg.model['dropout']} draws anew in every step")
    if "base" in recipe.plan.roles:  # a rule writes into adapted layers alone, which lie above the prefix
        raise refuse("the plan trains the whole model")


def _sets(made: Federation) -> Iterator[Any]:
    yield from (job.dataset for client in made.clients for job in client.data)
    yield from (found for sets in (made.validation, made.test) for found in sets.values())


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(quiet=not show), transient=True)
