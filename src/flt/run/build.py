"""Config -> objects: parts by name, sampler, engine, settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl

from flt.algorithm.recipe import Recipe
from flt.algorithm.registry import part
from flt.client.settings import LocalSettings
from flt.client.trainer import LocalTrainer
from flt.core.errors import InputError
from flt.core.typed import typed
from flt.data.clients import ClientSpec
from flt.engines.distributed import INSIDE, DistributedEngine, DistributedSettings
from flt.engines.process_group import ProcessGroup
from flt.engines.registry import ENGINES
from flt.engines.sharded import ShardedEngine, ShardedSettings
from flt.models.adapters.registry import ADAPTERS
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId
from flt.run.schema import TrainConfig
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.engine import Engine
from flt.server.failure_policy import STRICT, FailurePolicy


def attach(cfg: TrainConfig, module: pl.LightningModule) -> Layout:
    """Freezes a module, attaches the adapter that was chosen and says which tensor has which role.

    Raises:
        InputError: The adapter's settings are wrong, or it doesn't fit the module.
    """
    kind, attach_to = ADAPTERS[cfg.adapter["name"]]
    return attach_to(module, typed(kind, cfg.adapter, "adapter"), cfg.seed, cfg.model.get("adapt_layers", "all"))


def recipe(cfg: TrainConfig, tasks: int, truth: Mapping[JobId, str] | None = None) -> Recipe:
    """The parts of a method.

    ``grouping.k=tasks`` becomes the number of tasks, ``rounds: null`` of a part the run's, and the schedule's
    ``initiating: null`` the plan's first stage.

    Args:
        cfg: The configuration.
        tasks: Number of tasks.
        truth: Job -> its task, for ``grouping=oracle`` alone.
    """
    chosen = dict(cfg.grouping)
    if chosen.get("k") == "tasks":
        chosen["k"] = tasks
    grouping = part("grouping", chosen).with_tasks(truth or {})
    plan = part("plan", _filled(cfg.plan, rounds=cfg.rounds))
    return Recipe(
        rule=part("rule", cfg.rule),
        plan=plan,
        schedule=part("schedule", _filled(cfg.schedule, rounds=cfg.rounds, initiating=plan.initiating)),
        selection=part("selection", cfg.selection),
        importance=part("importance", cfg.importance),
        grouping=grouping,
        compression=part("compression", cfg.compression),
        transfer=part("transfer", cfg.transfer),
        server_optimizer=part("server_optimizer", cfg.server_optimizer),
    )


def _filled(chosen: Mapping[str, Any], **values: int) -> dict[str, Any]:
    """A part's settings with what the run knows in the place of null."""
    return {key: values[key] if value is None and key in values else value for key, value in chosen.items()}


def sampler(cfg: TrainConfig, clients: int) -> FixedSize | Poisson:
    """Who takes part in a round."""
    kinds: dict[str, FixedSize | Poisson] = {"fixed": FixedSize(cfg.cohort.size), "poisson": Poisson(cfg.cohort.rate)}
    if cfg.cohort.sampling not in kinds:
        raise InputError.of("cohort.sampling", cfg.cohort.sampling, kinds)
    chosen = kinds[cfg.cohort.sampling]
    chosen.check(clients)
    return chosen


def engine(
    cfg: TrainConfig,
    local_trainer: LocalTrainer,
    clients: Mapping[int, ClientSpec],
    processes: ProcessGroup,
    on_settings: Callable[[dict[str, Any]], None] | None = None,
) -> Engine:
    """Returns the engine that trains the jobs.

    Args:
        cfg: The configuration.
        local_trainer: The resident module.
        clients: Client id -> its data.
        processes: Those of the run.
        on_settings: Called with the engine's settings once it has chosen those that were left open.
    """
    settings = engine_settings(cfg)
    if isinstance(settings, ShardedSettings):
        return ShardedEngine(local_trainer, clients, processes, settings.nodes, settings.strategy)
    if not isinstance(settings, DistributedSettings):
        return INSIDE[settings.name][1](local_trainer, clients, settings, on_settings)

    def of_all(inside: dict[str, Any]) -> None:
        if on_settings is not None:
            on_settings(dataclasses.asdict(dataclasses.replace(settings, jobs=inside["jobs"])))

    return DistributedEngine(
        INSIDE[settings.inside][1](local_trainer, clients, settings.of_inside(), of_all), processes
    )


def failure_policy(cfg: TrainConfig, jobs: int) -> FailurePolicy:
    """What a round puts up with.

    Args:
        cfg: The configuration.
        jobs: The most that a cohort can have.

    Raises:
        InputError: A number is out of range, or a client's fit is in all processes, of which one can't fail alone.
    """
    found = FailurePolicy(cfg.min_updates, cfg.max_retries, cfg.client_timeout)
    if found.min_updates is not None and found.min_updates > jobs:
        raise InputError.of("min_updates", found.min_updates, f"an integer from 1 to {jobs}, the most jobs of a cohort")
    if isinstance(engine_settings(cfg), ShardedSettings) and found != STRICT:
        key = next(key for key, its in dataclasses.asdict(STRICT).items() if getattr(found, key) != its)
        why = "with engine=sharded all processes train each client together, and none fails alone"
        raise InputError.of(key, getattr(found, key), str(getattr(STRICT, key)), why)
    return found


def engine_settings(cfg: TrainConfig) -> Any:
    """The settings of the engine.

    Raises:
        InputError: There is no such engine, or its settings are wrong.
    """
    name = cfg.engine.get("name")
    if name not in ENGINES:
        raise InputError.of("engine", name, ENGINES)
    return typed(ENGINES[name], cfg.engine, "engine")


def local_settings(cfg: TrainConfig) -> LocalSettings:
    """Length and manner of the fits."""
    local = cfg.local
    return LocalSettings(
        steps=local.steps,
        epochs=local.epochs,
        batch_size=cfg.batch_size,
        length_window=cfg.length_window,
        eval_batch_size=cfg.eval.batch_size,
        eval_examples=cfg.eval.client_examples,
        clip=local.clip,
        accumulate=local.accumulate,
        precision=cfg.precision,
    )
