"""Construction of the federation that a configuration describes: data, backbone and clients."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.core.typed import typed
from flt.data import encode
from flt.data.chat_template import message_keys, with_chat_template
from flt.data.client_tests import client_tests
from flt.data.deal import deal
from flt.data.examples import Collate, Examples, stratified_sample
from flt.data.instructions import encode_instructions
from flt.data.joint_jobs import TaskData, is_joint
from flt.data.stores import TextStore
from flt.data.tasks import DataSet, kind_of, load_all
from flt.data.templates import Template
from flt.export.inputs import ModelInputs, task_inputs
from flt.models import backbones, heads
from flt.models.causal import CausalModule
from flt.models.class_names import name_outputs, output_names
from flt.models.config import ModelConfig
from flt.models.label_name_head import LabelNameClassifier, label_texts
from flt.models.layer_names import output_layer
from flt.models.model_files import check_ids
from flt.models.module import MODEL_PREFIX, ClientModule, Optimizer
from flt.run.federation import Federation
from flt.run.schema import TrainConfig


def federation(cfg: TrainConfig) -> Federation:
    """Loads the data and the backbone that a configuration names, and divides the data among the clients."""
    sets, model = load_all(cfg), _model(cfg)
    classes = {task: width for data_set in sets for task, width in data_set.classes.items()}
    kind = kind_of(sets)
    if cfg.heads == "task" and kind == "causal":
        raise InputError.of("heads", cfg.heads, "shape, shared", "a causal model has no head of its own for a task")
    texts = _label_texts(cfg, model, sets)
    head_of = heads.head_names(cfg.heads, classes, is_joint(cfg, classes))
    widths = {head_of[task]: width for task, width in classes.items() if head_of[task]}
    joint = is_joint(cfg, classes) and bool(widths)
    # Texts also exist for classes without training examples. A joint head has the outputs of all heads.
    widest = sum(widths.values()) if joint else max([*classes.values(), len(texts)])
    backbone = backbones.load(model, kind, widest, cfg.seed, texts)
    names = {task: own for data_set in sets for task, own in data_set.names.items()}
    if kind != "causal":
        name_outputs(backbone.model.config, output_names(names.values()))
    formats = {data_set.raw.templates: data_set.data.text for data_set in sets if data_set.raw.templates}
    tasks = [task for data_set in sets for task in _encoded(cfg, data_set, backbone, model.max_length, head_of)]
    evaluated = _by_column(cfg, tasks) if cfg.eval.by_column else tasks
    clients = deal(cfg, tasks)
    return Federation(
        module=_module(cfg, backbone, kind, widest, joint),
        clients=clients,
        validation=_sampled(evaluated, "validation", cfg.eval.examples, cfg.seed),
        test=_sampled(evaluated, "test", cfg.eval.test_examples, cfg.seed),
        client_tests=client_tests(cfg, tasks, clients),
        collate=Collate(backbone.pad_token_id, backbone.mean, backbone.std),
        source=backbone.source,
        subsets={subset.name: tasks[0].name for subset in evaluated} if cfg.eval.by_column else {},
        preprocessor=_preprocessor(backbone, formats),
        inputs=ModelInputs(
            {task: task_inputs(data_set) for data_set in sets for task in data_set.tasks},
            model.max_length,
            cfg.precision,
        ),
        kind=kind,
        prompts=list(dict.fromkeys(str(template) for data_set in sets for template in data_set.raw.templates)),
        message_keys=message_keys(*next(iter(formats.items()))) if len(formats) == 1 else {},
        license=backbone.license,
        heads=_initial(backbone.model, widths, cfg.seed, joint),
    )


def _by_column(cfg: TrainConfig, tasks: Sequence[TaskData]) -> list[TaskData]:
    """Divides the only task into subsets that are evaluated separately, one for each value of ``data.column``.

    Raises:
        InputError: There are several tasks, a split has no such column, there are no validation examples, or
            ``eval.distributed`` is true.
    """
    task, lacking = tasks[0], sorted(set(tasks[0].splits) - set(tasks[0].columns))
    if len(tasks) > 1 or lacking:
        why = "there are several tasks" if len(tasks) > 1 else f"no data.column in {', '.join(lacking)}"
        raise InputError.of("eval.by_column", "true", "false, or data of one task with a data.column", why)
    if "validation" not in task.splits:
        raise InputError.of("data.validation", cfg.data["validation"], "a share above 0 with eval.by_column=true")
    if cfg.eval.distributed:
        raise InputError.of("eval.distributed", "true", "false with eval.by_column=true")
    return list(task.by_column())


def _preprocessor(backbone: backbones.Backbone, formats: Mapping[tuple[Template, ...], str | None]) -> Any:
    """Returns what is exported beside the model.

    Args:
        backbone: The backbone with its tokenizer or image processor.
        formats: Templates of prompts -> value of ``data.text``. Data sets with different prompts can't share a chat
            template, and the tokenizer's own doesn't write the prompts of any of them.
    """
    if backbone.tokenizer is None or not formats:
        return backbone.preprocessor
    if len(formats) > 1:
        found = copy.copy(backbone.tokenizer)
        found.chat_template = None
        return found
    ((templates, text),) = formats.items()
    return with_chat_template(backbone.tokenizer, templates, text)


def _module(
    cfg: TrainConfig, backbone: backbones.Backbone, kind: str, classes: int, several_tasks: bool
) -> ClientModule:
    local = cfg.local
    optimizer = Optimizer(local.optimizer, local.lr, local.weight_decay, local.momentum)
    if kind == "causal":
        return CausalModule(backbone.model, optimizer)
    return ClientModule(backbone.model, classes, optimizer, several_tasks)


def _model(cfg: TrainConfig) -> ModelConfig:
    model = typed(ModelConfig, cfg.model, "model")
    slow = model.attention == "auto" and cfg.precision == "bf16-mixed" and not torch.cuda.is_available()
    return dataclasses.replace(model, attention="eager") if slow else model


def _label_texts(cfg: TrainConfig, model: ModelConfig, sets: Sequence[DataSet]) -> list[str]:
    if model.head != "label_names":
        return []
    if cfg.jobs == "per_task":
        raise InputError.of("model.head", model.head, "linear with jobs=per_task", "tasks have classes of their own")
    if sum(len(data_set.tasks) for data_set in sets) > 1:
        raise InputError.of("model.head", model.head, "linear with several tasks", "tasks have classes of their own")
    (data_set,) = sets
    names, data = data_set.raw.label_names, data_set.data
    # If data.classes selects some classes, data.label_texts may also contain texts of the other classes.
    given = {name: text for name, text in data.label_texts.items() if data.classes is None or name in names}
    return label_texts(names, given)


def _encoded(
    cfg: TrainConfig, data_set: DataSet, backbone: backbones.Backbone, max_length: int, head_of: Mapping[str, str]
) -> list[TaskData]:
    """Encodes the examples of a data set's tasks. Each split is encoded only once, because tasks share examples."""
    raw = data_set.raw
    splits = {split: encode_split(data_set, split, backbone, max_length, cfg.cache.limit) for split in raw.splits}
    column = data_set.data.column
    with_column = [split for split, rows in raw.splits.items() if column in rows.column_names]
    values = {split: raw.values(split, column) for split in with_column} if column else {}
    return [
        TaskData(
            task,
            {split: splits[split].view(*part) for split, part in parts.items()},
            {split: of_split[parts[split][0]] for split, of_split in values.items()},
            head_of[task],
            data_set.names[task],
            0 if raw.kind == "causal" else data_set.classes[task],
        )
        for task, parts in data_set.tasks.items()
    ]


def encode_split(
    data_set: DataSet, split: str, backbone: backbones.Backbone, max_length: int, limit: int = 20 * 10**9
) -> Examples:
    """Encodes one split of a data set for a backbone.

    Args:
        data_set: The data set.
        split: Name of the split.
        backbone: The backbone, whose tokenizer or image processor is used.
        max_length: Largest number of tokens of a text.
        limit: Largest size of the cache in bytes.

    Raises:
        InputError: The inputs aren't what the backbone reads.
    """
    raw = data_set.raw
    if raw.kind == "image":
        return encode.encode_images(raw.splits[split], raw, backbone.image_size, backbone.channels, backbone.prepare)
    assert backbone.tokenizer is not None, "a text backbone has one"
    called = f"{data_set.name} {split}"
    encoder = encode_instructions if raw.kind == "causal" else encode.encode_text
    examples = encoder(raw.splits[split], raw, backbone.tokenizer, max_length, called, limit)
    assert isinstance(examples.store, TextStore), "texts are encoded"
    model = backbone.model.encoder if isinstance(backbone.model, LabelNameClassifier) else backbone.model
    check_ids(model, backbone.source, examples.store.columns)
    return examples


def _initial(model: nn.Module, widths: Mapping[str, int], seed: int, joint: bool) -> dict[str, dict[str, Tensor]]:
    """Returns head -> name of a tensor in the module -> initial value; empty if all jobs have the same head.

    If jobs have several tasks, the heads differ only in their output layer. Layers of the head before it are shared.
    """
    differs = f"{output_layer(model)}." if joint else ""
    return {
        head: {
            f"{MODEL_PREFIX}{name}": value
            for name, value in heads.draw_head(model, seed, width).items()
            if name.startswith(differs)
        }
        for head, width in widths.items()
    }


def _sampled(tasks: Sequence[TaskData], split: str, size: int | None, seed: int) -> dict[str, Examples]:
    """Returns task -> a stratified sample of the task's split, or the whole split if ``size`` is None.

    The sample is the same in every run with this seed. Tasks without the split are left out.
    """
    whole = {task.name: task.splits[split] for task in tasks if split in task.splits}
    if size is None:
        return whole
    return {task: examples.view(stratified_sample(examples, size, seed)) for task, examples in whole.items()}
