"""Facts about the run for the files of an export: the metadata to load it again, and the facts of the model cards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

import flt
from flt.core.files import expand_user, is_path
from flt.data.partition import BY_COLUMN, settings
from flt.data.suffixes import suffix_of
from flt.export.metadata import Card
from flt.export.model_card import SHOWN, RunFacts, finite
from flt.models.module import ClientModule
from flt.run.command_line import command_of
from flt.run.conf_groups import choices, summary
from flt.run.federation import Federation
from flt.run.schema import TrainConfig
from flt.run.stored import OWN

PACKAGES = ("torch", "transformers", "peft")
"""Packages whose versions a card names, beside that of flt."""
ADAPTER = ("rank", "alpha", "target_modules")
"""Settings of an adapter that a card names."""


def base_card(cfg: TrainConfig, federation: Federation, adapter: dict[str, Any]) -> Card:
    """Returns the metadata from which the exported model can be rebuilt.

    Args:
        cfg: Configuration of the run.
        federation: Module, clients and data.
        adapter: Settings of the adapter that the module has, see :attr:`flt.run.assembly.Setup.adapter`.
    """
    module, layers = federation.module, cfg.model.get("adapt_layers", "all")
    classes = module.accuracy.num_classes if isinstance(module, ClientModule) else None
    source = federation.source
    folder = expand_user(source).absolute().name if _is_folder(source) else ""
    joint = isinstance(module, ClientModule) and module.several_tasks
    return Card("" if folder else source, adapter, layers, classes, folder=folder, several_tasks=joint)


def facts_of(
    cfg: TrainConfig, federation: Federation, adapter: Mapping[str, Any], metrics: Mapping[str, float]
) -> RunFacts:
    """Returns what the model cards say about a run.

    Args:
        cfg: Configuration of the run.
        federation: Module, clients and data.
        adapter: Settings of the adapter that the module has.
        metrics: Metrics of the last round, and of the evaluation on the test examples.
    """
    own, source = cfg.data.get("name") == OWN, federation.source
    shown = {key: value for key, value in metrics.items() if key.startswith((*SHOWN, "comm/total_"))}
    return RunFacts(
        versions={"flt": flt.__version__, **{name: version(name) for name in PACKAGES}},
        algo=cfg.algo,
        method=summary("algo", cfg.algo) if cfg.algo in choices("algo") else "",
        command=command_of(cfg),
        kind=federation.kind,
        module="" if isinstance(federation.module, ClientModule) else type(federation.module).__name__,
        base=expand_user(source).absolute().name if _is_folder(source) else source,
        base_is_folder=_is_folder(source),
        random=bool(cfg.model.get("random")),
        license=federation.license,
        data="" if own else _data_name(cfg.data),
        dataset="" if own else _hub_id(cfg.data),
        adapter=_with_values(adapter, [key for key in ADAPTER if adapter.get(key)]),
        clients=len(federation.clients),
        partition="" if own else _partition(cfg),
        rounds=int(metrics["round"]),
        seed=cfg.seed,
        prompts=list(federation.prompts),
        message_keys=dict(federation.message_keys),
        metrics=finite(shown),
    )


def _is_folder(source: str) -> bool:
    """Returns whether a base is a folder. ``bert`` may be one, as well as ``./bert``."""
    return is_path(source) or (bool(source) and os.path.isdir(source))


def _data_name(data: Mapping[str, Any]) -> str:
    path = data.get("path")
    return expand_user(path).absolute().name if data.get("name") in ("file", "hub") and path else str(data.get("name"))


def _hub_id(data: Mapping[str, Any]) -> str:
    """Returns the hub id of the data, or an empty text if they are files of the user's or of a library."""
    path = str(data.get("path") or "")
    if "/" not in path or is_path(path) or suffix_of(path) or os.path.exists(expand_user(path)):
        return ""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return ""
    return path


def _partition(cfg: TrainConfig) -> str:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    if cfg.partition.kind in BY_COLUMN:
        known = {"column": cfg.data.get("column"), **known}
    return _with_values({"name": cfg.partition.kind, **known}, list(known))


def _with_values(named: Mapping[str, Any], keys: list[str]) -> str:
    values = ", ".join(f"{key} {named[key]}" for key in keys)
    return f"{named['name']} ({values})" if values else str(named["name"])
