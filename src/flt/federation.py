"""What is federated: module, clients and evaluation examples, as the command line's configuration describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import Dataset

from flt import backbones
from flt.client import ClientModule, ClientSpec, Optimizer
from flt.config import TrainConfig, typed
from flt.data import encode, sources
from flt.data.deal import deal
from flt.errors import InputError
from flt.label_names import label_texts


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
        clients=deal(cfg, splits["train"], names, column),
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
