"""What a configuration describes, as the command line needs it: data, backbone, clients."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.core.typed import typed
from flt.data import encode
from flt.data.deal import TaskData, deal
from flt.data.examples import Collate, Examples, take
from flt.data.instructions import encode_instructions
from flt.data.sets import DataSet, kind_of, load_all
from flt.models import backbones, heads
from flt.models.causal import CausalModule
from flt.models.label_name_head import label_texts
from flt.models.module import ClientModule, Optimizer
from flt.run.federation import Federation
from flt.run.schema import TrainConfig


def federation(cfg: TrainConfig) -> Federation:
    """The federation that a configuration describes: data, backbone, clients."""
    local = cfg.local
    optimizer = Optimizer(local.optimizer, local.lr, local.weight_decay, local.momentum)
    sets, model = load_all(cfg), _model(cfg)
    classes = {task: width for found in sets for task, width in found.classes.items()}
    kind = kind_of(sets)
    if cfg.heads == "task" and kind == "causal":
        raise InputError.of("heads", cfg.heads, "shape, shared", "a causal model has no head of its own for a task")
    texts = _label_texts(cfg, model, sets)
    widest = max([*classes.values(), len(texts)])  # a class that train lacks has a name all the same
    backbone = backbones.load(model, kind, widest, cfg.seed, texts)
    head_of = heads.variants(cfg.heads, classes)
    tasks = [task for found in sets for task in _encoded(cfg, found, backbone, model.max_length, head_of)]
    shown = _by_column(cfg, tasks) if cfg.eval.by_column else tasks
    return Federation(
        module=_module(backbone, kind, widest, optimizer),
        clients=deal(cfg, tasks),
        validation=_sampled(shown, "validation", cfg.eval.examples, cfg.seed),
        test=_sampled(shown, "test", cfg.eval.test_examples, cfg.seed),
        collate=Collate(backbone.pad_token_id, backbone.mean, backbone.std),
        source=backbone.source,
        parts={part.name: tasks[0].name for part in shown} if cfg.eval.by_column else {},
        heads=_initial(backbone.model, {head_of[task]: width for task, width in classes.items()}, cfg.seed),
    )


def _by_column(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[TaskData]:
    """What is evaluated apart.

    Raises:
        InputError: There is no column, or what else is evaluated goes by task.
    """
    found, lacking = tasks[0], sorted(set(tasks[0].splits) - set(tasks[0].columns))
    if len(tasks) > 1 or lacking:
        why = "there are several tasks" if len(tasks) > 1 else f"no data.column in {', '.join(lacking)}"
        raise InputError.of("eval.by_column", "true", "false, or data of one task with a data.column", why)
    if "validation" not in found.splits:
        raise InputError.of("data.validation", cfg.data["validation"], "a share above 0 with eval.by_column=true")
    if cfg.eval.distributed:
        raise InputError.of("eval.distributed", "true", "false with eval.by_column=true")
    return list(found.by_column())


def _module(backbone: backbones.Backbone, kind: str, classes: int, optimizer: Optimizer) -> ClientModule:
    if kind == "causal":
        return CausalModule(backbone.model, optimizer)
    return ClientModule(backbone.model, classes, optimizer)


def _model(cfg: TrainConfig) -> backbones.ModelConfig:
    model = typed(backbones.ModelConfig, cfg.model, "model")
    slow = model.attention == "auto" and cfg.precision == "bf16-mixed" and not torch.cuda.is_available()
    return dataclasses.replace(model, attention="eager") if slow else model


def _label_texts(cfg: TrainConfig, model: backbones.ModelConfig, sets: Sequence[DataSet]) -> list[str]:
    if model.head != "label_names":
        return []
    if cfg.jobs == "per_task":
        raise InputError.of("model.head", model.head, "linear with jobs=per_task", "tasks have classes of their own")
    (found,) = sets
    names, data = found.raw.label_names, found.data
    # texts for all classes of a data set may stay where some are left out
    given = {name: text for name, text in data.label_texts.items() if data.classes is None or name in names}
    return label_texts(names, given)


def _encoded(
    cfg: TrainConfig, found: DataSet, backbone: backbones.Backbone, max_length: int, head_of: Mapping[str, str]
) -> list[TaskData]:
    """The tasks of a data set; a split is encoded once for all of them."""
    raw = found.raw
    splits = {split: _encode(cfg, found, split, backbone, max_length) for split in raw.splits}
    column = found.data.column
    there = [split for split, rows in raw.splits.items() if column in rows.column_names]
    values = {split: raw.values(split, column) for split in there} if column else {}
    return [
        TaskData(
            task,
            {split: splits[split].view(*part) for split, part in parts.items()},
            {split: its[parts[split][0]] for split, its in values.items()},
            head_of[task],
        )
        for task, parts in found.tasks.items()
    ]


def _encode(cfg: TrainConfig, found: DataSet, split: str, backbone: backbones.Backbone, max_length: int) -> Examples:
    raw = found.raw
    if raw.kind == "image":
        return encode.encode_images(raw.splits[split], raw, backbone.image_size, backbone.channels)
    assert backbone.tokenizer is not None, "a text backbone has one"
    called = f"{found.name} {split}"
    encoder = encode_instructions if raw.kind == "causal" else encode.encode_text
    return encoder(raw.splits[split], raw, backbone.tokenizer, max_length, called, cfg.cache.limit)


def _initial(model: nn.Module, widths: Mapping[str, int], seed: int) -> dict[str, dict[str, Tensor]]:
    """Head -> its initial values under their names in the client's module; empty where there is one head."""
    return {
        head: {f"model.{name}": value for name, value in heads.draw(model, seed, width).items()}
        for head, width in widths.items()
        if head
    }


def _sampled(tasks: Sequence[TaskData], split: str, size: int | None, seed: int) -> dict[str, Examples]:
    """Task -> a fixed stratified sample of one of its splits; without a size, all of it."""
    found = {task.name: task.splits[split] for task in tasks if split in task.splits}
    if size is None:
        return found
    return {task: examples.view(take(examples, size, seed)) for task, examples in found.items()}
