"""Configurations of transformers models (config.json, generation_config.json) from an export or its base.

Only plain values of known keys reach transformers. Settings that name code, files, kernels or other models are left
out. Sizes are compared with the weights before a tensor is created, see :func:`check_size`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.models.auto import modeling_auto

from flt.core.errors import InputError
from flt.export.cards import NAME
from flt.export.weights import Header

ARCHITECTURES = frozenset(
    name
    for models in (
        modeling_auto.MODEL_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )
    for value in models.values()
    for name in ([value] if isinstance(value, str) else value)
    if "Timm" not in name  # a timm model's configuration names the code and the files of another library
)
"""Names of the classes of transformers that flt can train."""
CODE = {
    "attn_implementation", "auto_map", "backbone", "backbone_kwargs", "configuration_files", "custom_pipelines",
    "distributed_config", "dtype", "experts_implementation", "fusion_config", "kernel_config", "per_layer_config",
    "torch_dtype", "transformers_weights", "use_pretrained_backbone", "use_timm_backbone",
}  # fmt: skip
"""Keys that are never passed on, because they name code or files, or because flt sets them itself (the dtype)."""
LARGEST_INTEGER = 2**24
"""An integer of a configuration may be at most this, or the number of elements of the weights, if that is larger."""
FREQUENCIES = ("theta", "base_freq", "rotary_base", "rotary_emb_base", "rotary_embedding_base", "timescale")
"""Parts of the keys of rotary positions' frequencies. Their values make no tensor larger, and may have 63 bits."""
MOST_LAYERS = 1000
"""A number of layers may be at most this, or the number of tensors in the weights, if that is larger."""
MOST_LABELS = 2**16
"""A number of labels may be at most this, or the largest number of rows of a tensor, if that is larger."""
SPARE = 2**26
"""Bytes that a model may have in addition to its weights, such as buffers and an unused pooler."""
DRAWN_FREELY = 2**27
"""Largest number of elements of a base that is drawn at random and whose folder has no weights to compare with."""


def architecture(name: str) -> Any:
    """Returns the model class of transformers with this name. No other name is looked up.

    Raises:
        InputError: flt can't train a model of this class.
    """
    found = getattr(transformers, name, None) if name in ARCHITECTURES else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError.of("architecture", name, "a model class of transformers")
    return found


def config_of(card: Mapping[str, Any], kind: Any, header: Header | None, **changes: Any) -> Any:
    """Builds a model's configuration from the plain values of a config.json.

    Args:
        card: Content of config.json.
        kind: Class of the model.
        header: Header of the model's weights. If None, there are no weights to compare with.
        changes: Entries that replace those of the card.

    Raises:
        InputError: The card is that of another type of model, describes quantised weights, or has an entry that isn't
            plain or is too large.
    """
    if (
        kind.config_class is None
        or card.get("model_type", kind.config_class.model_type) != kind.config_class.model_type
    ):
        allowed = getattr(kind.config_class, "model_type", "another architecture")
        raise InputError.of("config.json: model_type", card.get("model_type"), allowed)
    if card.get("quantization_config"):
        raise InputError.of("config.json", "quantization_config", "weights that aren't quantised")
    known = {*kind.config_class().to_dict(), *(kind.config_class.attribute_map or {})}
    plain = {key: value for key, value in card.items() if key in known or type(value) in (int, float, bool)}
    plain = _without_code(plain)
    plain.pop("label2id", None)  # its keys are names of classes, which may equal the names of other settings
    for key, value in plain.items():
        _check_value(key, value, header, 0)
    config = kind.config_class.from_dict(plain, **changes)
    names = config.id2label or {}
    config.label2id = {name: number for number, name in names.items() if isinstance(name, str)}
    return config


def generation_config_of(card: Mapping[str, Any]) -> transformers.GenerationConfig:
    """Builds the settings of text generation from the numbers and lists of numbers in a card."""
    plain = (int, float, bool, type(None))
    known = transformers.GenerationConfig().to_dict()
    kept = {
        key: value
        for key, value in card.items()
        if key in known and (type(value) in plain or (isinstance(value, list) and {type(v) for v in value} <= {int}))
    }
    return transformers.GenerationConfig(**kept)


def check_size(kind: Any, config: Any, header: Header | None, extra: Header | None = None) -> set[str]:
    """Compares the size of a model with its weights. The model is built without memory for its tensors.

    Args:
        kind: Class of the model.
        config: Configuration of the model.
        header: Header of the model's weights. If None, the model may have DRAWN_FREELY elements.
        extra: Header of an adapter, which may hold tensors that the weights lack.

    Returns:
        The last parts of the names of the model's tensors that hold integers, such as ``position_ids``.

    Raises:
        InputError: The model is larger than its weights.
    """
    headers = [part for part in (header, extra) if part is not None]
    numbers = sum(part.numbers for part in headers) if header is not None else DRAWN_FREELY
    tensors = sum(len(part.shapes) for part in headers) if header is not None else 2**16
    most = 5 * numbers + SPARE  # 4 bytes each, and a quarter for what the weights of another kind of model lack
    with torch.device("meta"), _limited(4 * tensors + MOST_LAYERS, 4 * most):
        model: nn.Module = kind(config)
    parts = {id(part): part for part in (*model.parameters(), *model.buffers())}
    size = sum(part.numel() * part.element_size() for part in parts.values())
    if size > most:
        allowed = f"at most {most}, because its weights are smaller"
        raise InputError.of("config.json", f"a model of {size} bytes", allowed)
    integers = {name.rpartition(".")[2] for name, part in model.named_buffers() if not part.is_floating_point()}
    return integers | {"position_ids"}  # files of older models have these


@contextlib.contextmanager
def _limited(tensors: int, size: int) -> Iterator[None]:
    """Stops the construction of a model that gets more tensors or bytes than a limit."""
    seen = [0, 0]

    def count(module: nn.Module, name: str, value: Any) -> None:
        if value is not None:
            seen[0], seen[1] = seen[0] + 1, seen[1] + value.numel() * value.element_size()
        if seen[0] > tensors or seen[1] > size:
            allowed = f"at most {tensors} tensors and {size} bytes, because its weights are smaller"
            raise InputError.of("config.json", f"a model of {seen[0]} tensors and {seen[1]} bytes", allowed)

    handles = [
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without_code(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_code(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {k: _without_code(part) for k, part in value.items() if k not in CODE and not str(k).startswith("_")}


def _check_value(key: str, value: Any, header: Header | None, depth: int) -> None:
    """Raises an InputError if a value of a configuration isn't plain, or is a size that the weights don't justify."""
    if isinstance(value, list | dict) and depth < 4:
        for name, part in value.items() if isinstance(value, dict) else ((key, part) for part in value):
            _check_value(name if isinstance(value, dict) else key, part, header, depth + 1)
    elif type(value) is int:
        numbers, tensors = (header.numbers, len(header.shapes)) if header else (0, 0)
        limit = max(MOST_LAYERS, tensors) if "layer" in key else max(LARGEST_INTEGER, numbers)
        if key == "num_labels":
            limit = most_labels(header)
        elif any(part in key for part in FREQUENCIES):
            limit = 2**63
        if abs(value) > limit:
            raise InputError.of(f"config.json: {key}", value, f"an integer up to {limit}")
    elif not (value is None or isinstance(value, bool | float) or NAME[0](value)):
        raise InputError.of(f"config.json: {key}", value, "numbers, and texts that are short")


def most_labels(*headers: Header | None) -> int:
    """Returns the largest number of labels: the largest number of rows of a tensor, or MOST_LABELS."""
    return max([MOST_LABELS, *(shape[0] for header in headers if header for shape in header.shapes.values() if shape)])
