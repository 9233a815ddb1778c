"""Loading of exported models: an adapter together with its base, or a model into which everything was merged."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from torch.utils.data import Dataset

from flt.core.errors import InputError
from flt.core.files import expand_user
from flt.core.quiet import quiet_transformers
from flt.core.typed import first_line, typed
from flt.data.clients import JobData
from flt.export.base import base_of, merged_model
from flt.export.cards import CLASS_NAMES, LABELS, LORA, NAME, OWN, OWN_NEEDED, check, read, read_json
from flt.export.lora_card import PREFIX, checked_config
from flt.export.metadata import BASE, WEIGHTS
from flt.export.places import CARD, CLASSES, MERGED_CARD, PEFT_CARD, PLACES, label_names_folder
from flt.export.weights import Header, check_numbers, state_of
from flt.models.adapters.client_context import client_aware_modules, set_client
from flt.models.adapters.registry import ADAPTERS
from flt.models.class_names import SINGLE_LABEL, name_models_inside, name_outputs, output_names
from flt.models.complete import complete
from flt.models.label_name_head import LabelNameClassifier
from flt.models.module import ClientModule, Optimizer, backbone_of
from flt.models.peft_modules import without_peft
from flt.protocol.layout import TRAVELLING

PEFT_WEIGHTS = "adapter_model.safetensors"
OWN_ADAPTERS = tuple(name for name in ADAPTERS if name != "lora")
"""Names of the adapters that flt saves and loads itself."""


def load(folder: str | Path, model: nn.Module | str | None = None) -> nn.Module:
    """Loads an exported model of a run, in eval mode.

    Args:
        folder: Folder ``adapter/`` or ``model/`` of a run, or a subfolder for one group, head, client or job.
        model: The base, or its folder or hub id. The function changes a base that is a module in place. Adapters of
            peft that it holds are removed first, without being merged. If None, the function loads the base that the
            folder describes. If the run trained a user's own module, this module is required.

    Returns:
        The model with the exported weights. If ``model`` is None, the result is a transformers model or a
        LabelNameClassifier. A LoRA adapter is attached by peft, which puts the transformers model inside a PeftModel.

    Raises:
        InputError: The folder isn't an export of flt, the export is damaged, or the export doesn't fit ``model``.

    Example:
        >>> load("lightning_logs/c2a/version_0/adapter")  # doctest: +SKIP
    """
    folder = expand_user(folder)
    card_name = next((name for name in _READERS if os.path.isfile(folder / name)), None)
    if card_name is None:
        inner = sorted(path.name for place in PLACES for path in folder.glob(f"{place}_*"))
        allowed = f"one of its folders: {', '.join(inner)}" if inner else "adapter/ or model/ of a finished run"
        raise InputError.of("folder", folder, allowed, "" if inner else "nothing that flt exports is in it")
    if isinstance(model, nn.Module):
        complete(model)
        model = without_peft(model)
    with _broken(folder):
        loaded = _READERS[card_name](folder, model).eval()
        _name_classes(loaded, folder)
        return loaded


def _own(folder: Path, model: nn.Module | str | None) -> nn.Module:
    """Loads an adapter that peft doesn't support (C2A, bottleneck adapters) with flt's own code."""
    card = read(folder / CARD, OWN, *OWN_NEEDED)
    header = Header.of(folder / WEIGHTS)
    held = {name.removeprefix("encoder.") if label_names_folder(folder) else name for name in header.shapes}
    name = card["adapter"].get("name")
    if name not in OWN_ADAPTERS:
        raise InputError.of(f"{CARD}: adapter", name, OWN_ADAPTERS)
    base = _with_head(base_of(folder, card["source"], model, held, header), folder)
    shell = (
        base
        if card["classes"] is None
        else ClientModule(base, card["classes"], Optimizer(), bool(card.get("several_tasks")))
    )
    settings, attach = ADAPTERS[name]
    with torch.device("meta"):  # no memory until the sizes have been compared
        layout = attach(shell, typed(settings, card["adapter"], "adapter"), 0, card["adapt_layers"])
    _, prefix = backbone_of(shell)
    header.check(folder, state_of(base), {name.removeprefix(prefix) for name in layout.names(TRAVELLING)})
    tensors = header.load()
    check_numbers(folder, tensors)
    _create(base)
    base.load_state_dict(tensors, strict=False)
    if counts := card["label_counts"]:
        nothing = np.arange(0)
        set_client(client_aware_modules(base), JobData(Dataset(), nothing, nothing, label_counts=tuple(counts)))
    return base


def _create(module: nn.Module) -> None:
    """Replaces each parameter that has a shape but no memory by one with memory."""
    for sub in module.modules():
        for name, parameter in list(sub.named_parameters(recurse=False)):
            if parameter.is_meta:
                setattr(sub, name, nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad))


def _peft(folder: Path, model: nn.Module | str | None) -> nn.Module:
    """Loads a LoRA adapter with peft.

    A folder without the safetensors file is refused. From such a folder, peft would load pickled weights, and these
    could run code. peft doesn't read the card; it gets a configuration that was made from checked values.
    """
    if not (folder / PEFT_WEIGHTS).is_file():
        raise InputError.of("folder", folder, f"a folder with {PEFT_WEIGHTS}", "the tensors are missing")
    card = read(folder / PEFT_CARD, LORA, "peft_type", "r", "lora_alpha", "target_modules")
    header = Header.of(folder / PEFT_WEIGHTS)
    names = set(header.shapes)
    held = {name.removeprefix(PREFIX).replace(".base_layer.", ".") for name in names}
    base: Any = base_of(folder, card.get("base_model_name_or_path"), model, held, header)
    encoder = base.encoder if isinstance(base, LabelNameClassifier) else base
    config = checked_config(card, header, folder, encoder)
    check_numbers(folder, header.load())
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(encoder, folder, config=config)
        wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if lacking := sorted(wanted - names):
        raise InputError.of("folder", folder, "the tensors of its adapter and head", f"{lacking[0]} is missing")
    if strange := sorted(names - wanted - set(state_of(adapted))):  # peft would ignore them silently
        raise InputError.of("folder", folder, "tensors of its model", f"{strange[0]} is none")
    return _with_head(adapted, folder)


def _merged(folder: Path, model: nn.Module | str | None) -> nn.Module:
    """Loads a model into which everything was merged: a transformers model, or the weights of a user's own module."""
    card = read_json(folder / MERGED_CARD)
    if "module" not in card:
        if model is not None:
            key, value = ("base", model) if isinstance(model, str) else ("model", type(model).__name__)
            raise InputError.of(key, value, "nothing for this export", f"{folder} holds the whole model")
        return _with_head(merged_model(folder), folder)
    check(MERGED_CARD, card, {"module": NAME})
    if not isinstance(model, nn.Module):
        raise InputError.of("model", model, f"your {card['module']}", "the weights are those of a module of your own")
    header, state = Header.of(folder / "model.safetensors"), state_of(model)
    header.check(folder, state, state)
    tensors = header.load()
    check_numbers(folder, {name: tensors[name] for name, _ in model.named_parameters() if name in tensors})
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
    return model


def _name_classes(model: nn.Module, folder: Path) -> None:
    """Writes the names of the classes into the config of a loaded model. Exports of older versions have no names."""
    if not (folder / CLASSES).is_file():
        return
    tasks, (allows, allowed) = read_json(folder / CLASSES), CLASS_NAMES
    if not allows(tasks):
        raise InputError.of(CLASSES, "an object", allowed)
    config: Any = getattr(model, "config", None)
    names = output_names(tasks.values())
    if (folder / BASE).is_file() and hasattr(config, "num_labels"):  # names in it are those of the base's own classes
        name_outputs(config, names)
        config.problem_type = SINGLE_LABEL
    else:
        name_models_inside(model, names)


_READERS = {CARD: _own, PEFT_CARD: _peft, MERGED_CARD: _merged}


def _with_head(encoder: nn.Module, folder: Path) -> nn.Module:
    """Adds the label-name head to an encoder if the run used this head. Otherwise returns the encoder unchanged."""
    path = label_names_folder(folder)
    if path is None or isinstance(encoder, LabelNameClassifier):
        return encoder
    card = read(path.with_suffix(".json"), LABELS, *LABELS)
    header = Header.of(path.with_suffix(".safetensors"))
    width: Any = getattr(encoder.config, "hidden_size", None) or next(iter(header.shapes.values()))[-1]
    header.check(path.parent, {"names": torch.empty(len(card["texts"]), width, device="meta")}, ["names"])
    tensors = header.load()
    check_numbers(path.parent, tensors)
    return LabelNameClassifier(encoder, tensors["names"].float(), card["scale"], card["texts"])


@contextlib.contextmanager
def _broken(folder: Path) -> Iterator[None]:
    """Converts every exception to an InputError, because libraries can raise any exception for a damaged file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}".rstrip(". ")
        raise InputError.of("folder", folder, "an export of flt, and the base that it was made of", why) from error
