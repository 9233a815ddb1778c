"""Functions that build the objects of a run from its configuration: recipe, sampler, engine, settings."""

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
from flt.data.config import DataConfig
from flt.engines.distributed import INNER_ENGINES, DistributedEngine, DistributedSettings
from flt.engines.launcher import FORK, check_devices
from flt.engines.process_group import ProcessGroup
from flt.engines.registry import ENGINES
from flt.engines.sharded import ShardedEngine, ShardedSettings
from flt.models.adapters.registry import ADAPTERS
from flt.models.complete import complete
from flt.models.config import ModelConfig
from flt.protocol.layout import Layout
from flt.protocol.messages import JobId
from flt.run.schema import TrainConfig
from flt.server.client_sampling import FixedSize, Poisson
from flt.server.engine import Engine
from flt.server.failure_policy import STRICT, FailurePolicy
from flt.server.fleet.config import fleet_settings

WIDEST = 1 << 16
"""Largest integer in an adapter's settings, which are its widths. A wider adapter would have more parameters than the
model."""


def attach(cfg: TrainConfig, module: pl.LightningModule) -> Layout:
    """Completes and freezes a module, attaches the configured adapter, and returns the names and roles of all tensors.

    Raises:
        InputError: The adapter's settings are wrong, or the adapter can't be attached to this module.
    """
    complete(module)
    kind, attach_to = ADAPTERS[cfg.adapter["name"]]
    layers = cfg.model.get("adapt_layers", "all")
    if not isinstance(layers, str):
        raise InputError.of("model.adapt_layers", layers, "all, or top<k>")
    settings = typed(kind, cfg.adapter, "adapter")
    for key, value in dataclasses.asdict(settings).items():
        if isinstance(value, int) and value > WIDEST:
            raise InputError.of(f"adapter.{key}", value, f"an integer up to {WIDEST}")
    return attach_to(module, settings, cfg.seed, layers)


def recipe(cfg: TrainConfig, tasks: int, truth: Mapping[JobId, str] | None = None) -> Recipe:
    """Builds the recipe from the configured parts.

    Three settings are filled in here. ``grouping.k=tasks`` becomes the number of tasks. ``rounds: null`` of the plan or
    the schedule becomes the run's number of rounds. ``initiating: null`` of the schedule becomes the length of the
    plan's first stage.

    Args:
        cfg: Configuration of the run.
        tasks: Number of tasks.
        truth: Job -> its task. Only ``grouping=oracle`` uses the tasks.
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
        buffers=part("buffers", cfg.buffers),
    )


def _filled(chosen: Mapping[str, Any], **values: int) -> dict[str, Any]:
    """Returns a part's settings, in which null is replaced by the given value of the same key."""
    return {key: values[key] if value is None and key in values else value for key, value in chosen.items()}


def sampler(cfg: TrainConfig, clients: int) -> FixedSize | Poisson:
    """Builds the sampler, which draws the clients of each round."""
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
    """Builds the engine, which trains the jobs.

    Args:
        cfg: Configuration of the run.
        local_trainer: Object that trains single jobs on the resident module, which stays on its device.
        clients: Client id -> the client.
        processes: Processes of the run.
        on_settings: Function that is called with all settings of the engine if the engine has chosen some of them
            itself, such as the number of jobs that are trained at once. None: no function is called.
    """
    settings = engine_settings(cfg)
    if isinstance(settings, ShardedSettings):
        return ShardedEngine(local_trainer, clients, processes, settings.nodes, settings.strategy)
    if not isinstance(settings, DistributedSettings):
        return INNER_ENGINES[settings.name][1](local_trainer, clients, settings, on_settings)

    def on_inside(inside: dict[str, Any]) -> None:
        if on_settings is not None:
            on_settings(dataclasses.asdict(dataclasses.replace(settings, jobs=inside["jobs"])))

    return DistributedEngine(
        INNER_ENGINES[settings.inside][1](local_trainer, clients, settings.inner_settings(), on_inside), processes
    )


def failure_policy(cfg: TrainConfig, jobs: int) -> FailurePolicy:
    """Builds the failure policy, which decides how many jobs of a round may fail and how often a round is repeated.

    Args:
        cfg: Configuration of the run.
        jobs: Largest number of jobs that a cohort can have.

    Raises:
        InputError: A number is out of range, or failures are allowed with ``engine=sharded``. That engine trains each
            client in all processes together, and therefore no client can fail alone.
    """
    policy = FailurePolicy(cfg.min_updates, cfg.max_retries, cfg.client_timeout)
    if policy.min_updates is not None and policy.min_updates > jobs:
        allowed = f"an integer from 1 to {jobs}, the most jobs of a cohort"
        raise InputError.of("min_updates", policy.min_updates, allowed)
    if getattr(engine_settings(cfg), "replicated", False) and policy != STRICT:
        key = next(key for key, strict in dataclasses.asdict(STRICT).items() if getattr(policy, key) != strict)
        why = "with engine=sharded all processes train each client together, and none fails alone"
        raise InputError.of(key, getattr(policy, key), str(getattr(STRICT, key)), why)
    return policy


def engine_settings(cfg: TrainConfig) -> Any:
    """Returns the settings of the engine.

    Raises:
        InputError: There is no engine with the configured name, or the engine's settings are wrong.
    """
    name = cfg.engine.get("name")
    if name not in ENGINES:
        raise InputError.of("engine", name, ENGINES)
    return typed(ENGINES[name], cfg.engine, "engine")


def checked_engine(cfg: TrainConfig) -> Any:
    """Returns the settings of the engine, after the checks that this machine can start its processes.

    Raises:
        InputError: The engine's settings are wrong, or its processes can't be started here.
    """
    settings = engine_settings(cfg)
    if getattr(settings, "forks", False) and (cfg.threads or 1) > 1:
        why = "a forked process has none of the threads of the one that it comes from"
        raise InputError.of("threads", cfg.threads, f"1, or null, with engine.strategy={FORK}", why)
    check_devices(cfg.devices, settings)
    return settings


def local_settings(cfg: TrainConfig) -> LocalSettings:
    """Returns the settings of the local fits."""
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


def check_parts(cfg: TrainConfig) -> None:
    """Checks the types and ranges of those settings that a run checks only when it uses them.

    Raises:
        InputError: A setting isn't one of its part, or has a value that isn't allowed.
    """
    typed(DataConfig, cfg.data, "data")
    typed(ModelConfig, cfg.model, "model")
    typed(ADAPTERS[cfg.adapter["name"]][0], cfg.adapter, "adapter")
    recipe(cfg, max(1, len(cfg.data.get("tasks") or {})))
    engine_settings(cfg)
    fleet_settings(cfg.fleet)
    sampler(cfg, cfg.clients)
    local_settings(cfg)
