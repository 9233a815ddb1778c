"""Checks that the files of a model's folder belong together: configuration, weights, and the ids of its tokenizer."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from torch import nn
from transformers.utils import find_adapter_config_file

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.models.blocks import blocks
from flt.models.layer_names import inside

log = logging.getLogger(__name__)

FLOATS = ("F32", "F16", "BF16", "F64")
"""Types of numbers that the weights in a folder may have, as safetensors writes them."""
OWN_WEIGHTS = "a folder whose weights are those of its config.json"
OWN_TOKENIZER = "a folder whose tokenizer is the model's"


def check_files(config: Any, source: str, local: bool) -> None:
    """Refuses a folder or hub id that holds an adapter of peft, and a folder whose weights are integers.

    Args:
        config: Configuration of the model.
        source: Folder or hub id of the model.
        local: Whether to use local files only.

    Raises:
        InputError: There is such a file.
    """
    if find_adapter_config_file(source, local_files_only=local) is not None:
        # transformers would load the adapter, and would even take the weights of the base that the adapter names.
        raise InputError.of("model.path", source, "a whole model", "it holds an adapter_config.json beside config.json")
    if getattr(config, "quantization_config", None):
        return
    for path in sorted(Path(source).glob("*.safetensors")):
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # the file is no mapping
                kind = file.get_slice(name).get_dtype()
                if name.endswith(".weight") and kind not in FLOATS:
                    why = f"its weights have {name} of type {kind}, and its config.json says nothing of quantised ones"
                    raise InputError.of("model.path", source, f"weights of type {', '.join(FLOATS)}", why)


def check_report(model: nn.Module, head: str, report: Mapping[str, Any], source: str) -> None:
    """Refuses weights that lack parameters below a model's head, or have them in another shape.

    Layers above the uppermost block, such as a pooler, may be missing. A warning says if the weights have more blocks
    than the model.

    Args:
        model: The loaded model.
        head: Name of its head, whose weights are drawn anyway.
        report: Report of transformers about missing, unexpected and mismatched names.
        source: Folder or hub id of the model, for messages.

    Raises:
        InputError: The weights aren't those of the model.
    """
    try:
        stack = blocks(model)
    except InputError:  # a model without blocks
        stack = []
    below = _below(model, stack, head)
    for name, found, wanted in sorted(report["mismatched_keys"]):
        if name in below:
            why = f"its weights have {name} of shape {tuple(found)}, and its config.json says {tuple(wanted)}"
            raise InputError.of("model.path", source, OWN_WEIGHTS, why)
    if stack and (lacking := below & set(report["missing_keys"])):
        why = f"its weights lack {min(lacking)}, which the model of its config.json has"
        raise InputError.of("model.path", source, OWN_WEIGHTS, why)
    inner = stack[0].rpartition(".")[0].partition(".")[2] if stack else ""
    if inner and (unused := sorted(name for name in report["unexpected_keys"] if f"{inner}." in name)):
        log.warning("%s has weights that its config.json doesn't use: %s", last_name(source), ", ".join(unused[:4]))


def _below(model: nn.Module, stack: list[str], head: str) -> set[str]:
    """Returns the names of the parameters up to the uppermost block or, without blocks, of all outside the head."""
    names = [name for name, _ in model.named_modules()]
    last = max((i for i, name in enumerate(names) if stack and inside(name, stack[-1])), default=len(names))
    lower = set(names[: last + 1])
    parameters = (name for name, _ in model.named_parameters())
    return {name for name in parameters if name.rpartition(".")[0] in lower and not inside(name, head)}


def check_ids(model: Any, source: str, ids: Mapping[str, Any]) -> None:
    """Refuses a tokenizer that isn't the model's.

    Args:
        model: Model of transformers.
        source: Folder or hub id of the model and its tokenizer, for the message.
        ids: Name of an input, such as ``input_ids`` -> array of all its values.

    Raises:
        InputError: The model has no such input, or no embedding for one of the values.
    """
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name, values in ids.items():
        if name not in parameters and not takes_any:
            why = f"its tokenizer makes {name}, which {type(model).__name__} doesn't read"
            raise InputError.of("model.path", source, OWN_TOKENIZER, why)
        rows, largest = _rows(model, name), int(values.max()) if len(values) else 0
        if rows is not None and largest >= rows:
            why = f"its tokenizer makes {name} up to {largest}, and the model's embedding has {rows} rows"
            raise InputError.of("model.path", source, OWN_TOKENIZER, why)


def _rows(model: Any, name: str) -> int | None:
    """Returns the number of different values that a model can embed, or None if it isn't known."""
    if name == "token_type_ids":
        return getattr(model.config, "type_vocab_size", None) or None
    try:
        return int(model.get_input_embeddings().num_embeddings)
    except (AttributeError, NotImplementedError):  # CANINE has no table of tokens
        return None
