"""Config -> objects: parts by name, and the federation of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import Dataset

from flt import backbones
from flt.callbacks.server import Recipe
from flt.client import ClientModule, ClientSpec, JobData, Optimizer
from flt.clustering import Everyone, KMeansGrouping
from flt.config import TrainConfig, typed
from flt.data import encode, sources
from flt.data.collect import job_data
from flt.data.partition import partition, settings
from flt.engines.serial import Serial
from flt.errors import InputError
from flt.label_names import label_texts
from flt.plans import AdapterPlan
from flt.ranks.importance import DeltaSensitivity, GradientSensitivity, NoImportance
from flt.ranks.schedule import Constant
from flt.ranks.selection import All, Freeze, Truncate
from flt.rules.mean import Mean
from flt.rules.scaffold import Scaffold
from flt.rules.stacking import Stacking
from flt.sampling import FixedSize, Poisson
from flt.settings import LocalSettings
from flt.site import Site

PARTS: dict[str, dict[str, type]] = {
    "plan": {"adapter": AdapterPlan},
    "schedule": {"constant": Constant},
    "selection": {"all": All, "freeze": Freeze, "truncate": Truncate},
    "importance": {"none": NoImportance, "gradient": GradientSensitivity, "delta": DeltaSensitivity},
    "grouping": {"everyone": Everyone, "kmeans": KMeansGrouping},
    "rule": {"mean": Mean, "stacking": Stacking, "scaffold": Scaffold},
}
"""Part -> name in conf/<part>/ -> its class: the table that a new part adds a line to."""


ATTEMPTS = 100
"""Draws of a partition, before a client without a job is an error."""


ENGINES = {"serial": Serial}


@dataclasses.dataclass
class Federation:
    """What is federated: a module, clients, and the examples on which the global model is evaluated.

    Attributes:
        module: The LightningModule; its adapters are attached later.
        clients: One entry per client.
        validation: Task -> examples for the evaluation of the rounds.
        test: Task -> examples for the one evaluation at the end.
        collate: Builds a batch from a list of examples; None: torch's default.
        source: What ``from_pretrained`` loads the base by; empty for a user's own module.
    """

    module: pl.LightningModule
    clients: Sequence[ClientSpec]
    validation: Mapping[str, Dataset]
    test: Mapping[str, Dataset]
    collate: Callable[[list[Any]], Any] | None = None
    source: str = ""

    def tasks(self) -> dict[tuple[int, int], str]:
        """Job -> its task, for evaluation."""
        return {(client.id, index): job.task for client in self.clients for index, job in enumerate(client.data)}


def part(group: str, chosen: Mapping[str, Any]) -> Any:
    """One part of a recipe, by name.

    Raises:
        InputError: There is no such part, or its settings are wrong.
    """
    name = chosen.get("name")
    if name not in PARTS[group]:
        raise InputError.of(group, name, PARTS[group])
    return typed(PARTS[group][name], {key: value for key, value in chosen.items() if key != "name"}, group)


def recipe(cfg: TrainConfig, tasks: int) -> Recipe:
    """The parts of a method; ``grouping.k=tasks`` becomes the number of tasks."""
    grouping = dict(cfg.grouping)
    if grouping.get("k") == "tasks":
        grouping["k"] = tasks
    return Recipe(
        rule=part("rule", cfg.rule),
        plan=part("plan", cfg.plan),
        schedule=part("schedule", cfg.schedule),
        selection=part("selection", cfg.selection),
        importance=part("importance", cfg.importance),
        grouping=part("grouping", grouping),
    )


def sampler(cfg: TrainConfig, clients: int) -> FixedSize | Poisson:
    """Who takes part in a round."""
    kinds: dict[str, FixedSize | Poisson] = {"fixed": FixedSize(cfg.cohort.size), "poisson": Poisson(cfg.cohort.rate)}
    if cfg.cohort.sampling not in kinds:
        raise InputError.of("cohort.sampling", cfg.cohort.sampling, kinds)
    chosen = kinds[cfg.cohort.sampling]
    chosen.check(clients)
    return chosen


def engine(cfg: TrainConfig, site: Site, clients: Mapping[int, ClientSpec]) -> Serial:
    """Where jobs are trained."""
    name = cfg.engine.get("name")
    if name not in ENGINES:
        raise InputError.of("engine", name, ENGINES)
    return ENGINES[name](site, clients)


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


def federation(cfg: TrainConfig) -> Federation:
    """The federation that a configuration describes: data, backbone, clients."""
    local = cfg.local
    optimizer = Optimizer(local.optimizer, local.lr, local.weight_decay, local.momentum)
    data = typed(sources.DataConfig, cfg.data, "data")
    raw = sources.load(data, cfg.seed)
    model = _model(cfg)
    names = encode.tasks(raw.values("train", raw.label), raw.label_names, _tasks(cfg, data))
    width = max(int(labels.max()) + 1 for _, labels in names.values())
    texts = _label_texts(cfg, model, raw, data)
    width = max(width, len(texts))  # a class that train lacks has a name all the same
    backbone = backbones.load(model, raw.kind, width, cfg.seed, texts)
    splits = {name: _encode(cfg, raw, name, backbone, model.max_length) for name in raw.splits}
    by_task = {name: _by_task(examples, raw, _tasks(cfg, data)) for name, examples in splits.items()}
    column = raw.values("train", data.column) if data.column else None
    return Federation(
        module=ClientModule(backbone.model, width, optimizer),
        clients=_clients(cfg, splits["train"], names, column),
        validation=_sampled(by_task.get("validation", {}), cfg.eval.examples, cfg.seed),
        test=_sampled(by_task.get("test", {}), cfg.eval.test_examples, cfg.seed),
        collate=encode.Collate(backbone.pad_token_id, backbone.mean, backbone.std),
        source=backbone.source,
    )


def _model(cfg: TrainConfig) -> backbones.ModelConfig:
    model = typed(backbones.ModelConfig, cfg.model, "model")
    slow = model.attention == "auto" and cfg.precision == "bf16-mixed" and not torch.cuda.is_available()
    return dataclasses.replace(model, attention="eager") if slow else model


def _label_texts(
    cfg: TrainConfig, model: backbones.ModelConfig, raw: sources.RawData, data: sources.DataConfig
) -> list[str]:
    if model.head != "label_names":
        return []
    if cfg.jobs == "per_task":
        raise InputError.of("model.head", model.head, "linear with jobs=per_task", "tasks have classes of their own")
    # texts for all classes of a data set may stay where some are left out
    given = {name: text for name, text in data.label_texts.items() if data.classes is None or name in raw.label_names}
    return label_texts(raw.label_names, given)


def _tasks(cfg: TrainConfig, data: sources.DataConfig) -> dict[str, list[str]]:
    if cfg.jobs == "per_client":
        return {}
    if not data.tasks:
        raise InputError.of("data.tasks", "{}", "task: [classes], as jobs=per_task needs them")
    return data.tasks


def _encode(
    cfg: TrainConfig, raw: sources.RawData, name: str, backbone: backbones.Backbone, max_length: int
) -> encode.Examples:
    if raw.kind == "image":
        return encode.encode_images(raw.splits[name], raw, backbone.image_size, backbone.channels)
    assert backbone.tokenizer is not None, "a text backbone has one"
    known = {"file": Path(str(cfg.data.get("path"))).name, "hub": str(cfg.data.get("path"))}
    called = f"{known.get(cfg.data['name'], cfg.data['name'])} {name}"
    return encode.encode_text(raw.splits[name], raw, backbone.tokenizer, max_length, called, cfg.cache.limit)


def _by_task(
    examples: encode.Examples, raw: sources.RawData, tasks: Mapping[str, Sequence[str]]
) -> dict[str, encode.Examples]:
    found = encode.tasks(examples.labels, raw.label_names, tasks)
    return {task: examples.view(positions, labels) for task, (positions, labels) in found.items()}


def _sampled(by_task: Mapping[str, encode.Examples], size: int | None, seed: int) -> dict[str, encode.Examples]:
    """A fixed stratified sample of each task; without a size, all of it."""
    if size is None:
        return dict(by_task)
    return {task: examples.view(encode.take(examples, size, seed)) for task, examples in by_task.items()}


def _clients(
    cfg: TrainConfig,
    train: encode.Examples,
    tasks: Mapping[str, tuple[np.ndarray, np.ndarray]],
    column: np.ndarray | None,
) -> list[ClientSpec]:
    """Deals each task to the clients on its own; drawn again until every client has something to do."""
    for attempt in range(ATTEMPTS):
        parts = {
            task: _partition(cfg, labels, None if column is None else column[positions], (cfg.seed, number, attempt))
            for number, (task, (positions, labels)) in enumerate(tasks.items())
        }
        if all(any(len(of_one) for of_one in shares) for shares in zip(*parts.values(), strict=True)):
            break
    else:
        allowed = "fewer, a larger partition.alpha, or a smaller partition.min_share"
        raise InputError.of("clients", cfg.clients, allowed, f"no draw out of {ATTEMPTS} gave each of them an example")
    clients: list[list[JobData]] = [[] for _ in next(iter(parts.values()))]
    for task, (positions, labels) in tasks.items():
        examples = train.view(positions, labels)
        for jobs, share in zip(clients, parts[task], strict=True):
            if len(share):
                jobs.append(job_data(examples, labels, share, cfg.partition.held_out, cfg.seed, task))
    return [ClientSpec(client, tuple(jobs)) for client, jobs in enumerate(clients)]


def _partition(
    cfg: TrainConfig, labels: np.ndarray, column: np.ndarray | None, seed: tuple[int, ...]
) -> list[np.ndarray]:
    known = {name: getattr(cfg.partition, name) for name in settings(cfg.partition.kind)}
    return partition(cfg.partition.kind, labels=labels, column=column, clients=cfg.clients, seed=seed, **known)
