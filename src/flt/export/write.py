"""Export of a federation's final models: as adapters in the format of peft or of flt, or as merged models."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.core.quiet import quiet_transformers
from flt.export.base_delta import with_change
from flt.export.card_code import Form
from flt.export.final_models import Model, of_groups
from flt.export.folder import finish, unfinished
from flt.export.inputs import ModelInputs
from flt.export.lora_adapter import drawn_tensors, shell_of, write_lora
from flt.export.metadata import Card, write_base, write_beside, write_label_names, write_own
from flt.export.model_card import RunFacts, write_cards
from flt.export.weights import state_of
from flt.models.causal import CausalModule
from flt.models.class_names import SINGLE_LABEL, name_outputs, output_names
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import output_layer
from flt.models.module import ClientModule, backbone_of
from flt.models.peft_modules import plain_names, plain_tensor_name
from flt.models.provenance import origin_of
from flt.protocol.layout import Layout
from flt.protocol.state import ServerState

BASES = ("merged", "delta")


@dataclasses.dataclass
class ExportConfig:
    """Settings of the export.

    Attributes:
        base: ``merged`` or ``delta``, see :func:`kind`.
    """

    base: str

    def __post_init__(self) -> None:
        if self.base not in BASES:
            raise InputError.of("export.base", self.base, BASES)


def export(
    module: pl.LightningModule,
    layout: Layout,
    state: ServerState,
    folder: Path,
    card: Card,
    models: Sequence[Model] | None = None,
    base: str = "merged",
    preprocessor: Any = None,
    inputs: ModelInputs | None = None,
    facts: RunFacts | None = None,
) -> Path:
    """Writes the final models to the folder ``adapter`` or ``model`` of a run, see :func:`kind`.

    If there are several models, each has its own subfolder. The subfolders are named by group, and also by head if jobs
    have different heads. If jobs trained private tensors, the subfolders are named by client instead, and also by job
    if the client has several jobs.

    Args:
        module: Module of the run. Its base weights must be those of the state's base version.
        layout: Names and roles of the server's tensors.
        state: Last state of the server.
        folder: Folder of the run.
        card: Metadata of the base and the adapter.
        models: Models to write. If None, one model for each group is written.
        base: ``merged`` or ``delta``, see :func:`kind`.
        preprocessor: Tokenizer or image processor that is saved beside each model. None: there is none.
        inputs: What the models know of their inputs. None: the module is a user's own.
        facts: What the model cards say about the run. None: no cards are written.

    Returns:
        The folder that was written.

    Raises:
        InputError: Others have put something in the place of this folder, or of a file or folder in it.
        OSError: The folder can't be written.
    """
    name, models = kind(layout, state, base), of_groups(layout, state) if models is None else models
    with unfinished(folder) as temporary:
        for model in models:
            target, own = temporary / model.folder, layout.for_head(model.head)
            tensors = {**model.tensors, **model.buffers}
            target.mkdir(parents=True, exist_ok=True)
            names = {} if isinstance(module, CausalModule) else model.names
            write_beside(target, names, preprocessor, inputs and inputs.of_model(model))
            if name == "model":
                _export_model(module, own, tensors, target, output_names(names.values()))
                continue
            write_base(module, tensors, target, card)
            if layout.layers:
                wider, replaced = with_change(own, state.base, tensors)
                write_lora(module, own, wider, _values(module, replaced), target, card.source)
            else:
                changed = _values(module, state.base.changed())
                write_own(
                    {**drawn_tensors(module), **changed, **tensors},
                    backbone_of(module)[1],
                    target,
                    card.of_client(model.data),
                )
        if isinstance(module, ClientModule) and isinstance(module.model, LabelNameClassifier):
            write_label_names(module.model, temporary)
        if facts is not None:
            form: Form = "merged" if name == "model" else "lora" if layout.layers else "own"
            write_cards(temporary, facts, form, {model.folder: model.title for model in models})
        return finish(temporary, folder / name)


def kind(layout: Layout, state: ServerState, base: str) -> str:
    """Returns ``adapter`` if an adapter is exported, or ``model`` if a whole model with everything merged is exported.

    If no base weight has changed, the adapter is exported. Otherwise there are three cases:

    - LoRA: the argument ``base`` decides.
    - Another adapter: the adapter is exported with the changed base weights, because it can't be merged into a weight.
    - No adapter: the whole model is exported.

    Args:
        layout: Names and roles of the server's tensors.
        state: Last state of the server.
        base: With ``merged``, the base's changes and LoRA are merged into a whole model. With ``delta``, LoRA is
            exported as an adapter that includes the base's changes.
    """
    if not state.base.version:
        return "adapter"
    if layout.layers:
        return "model" if base == "merged" else "adapter"
    return "adapter" if layout.names(["adapter"]) else "model"


def _values(module: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: module.get_parameter(name).detach().cpu().contiguous() for name in names}


def _export_model(
    module: pl.LightningModule, layout: Layout, tensors: Mapping[str, Tensor], target: Path, names: Sequence[str]
) -> None:
    """Writes a whole model: the changed base with the adapter merged into it, and the head with its outputs' names."""
    merged = merge(module, layout, tensors)
    if isinstance(module, ClientModule):
        model = module.model.encoder if isinstance(module.model, LabelNameClassifier) else module.model
        kind: Any = type(model)
        prefix = shell_of(module)
        config: Any = copy.deepcopy(model.config)
        if model is module.model and not isinstance(module, CausalModule):
            config.problem_type = SINGLE_LABEL
            config.num_labels = merged[f"{prefix}{output_layer(model)}.weight"].shape[0]
        if names:
            name_outputs(config, names)
        if origin_of(model).use_cache is not None:
            config.use_cache = origin_of(model).use_cache
        with isolate_rng():  # because kind(config) draws random weights, which are replaced at once
            fresh = kind(config)
        fresh.load_state_dict(
            {name.removeprefix(prefix): value for name, value in merged.items() if name.startswith(prefix)}
        )
        with quiet_transformers():
            fresh.save_pretrained(str(target))
    else:
        safetensors.torch.save_file(merged, target / "model.safetensors", metadata={"format": "pt"})
        (target / "config.json").write_text(json.dumps({"module": type(module).__name__}))


def merge(module: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state dict without adapters. W0 + scale B A replaces W0, and the head is taken from ``tensors``.

    The names are those before peft wrapped the module or parts of it.
    """
    merged, names = {}, plain_names(module)
    bases = {layer.base: layer for layer in layout.layers.values()}
    for name, value in state_of(module).items():
        plain = plain_tensor_name(names, name)
        if plain is None:
            continue
        value = tensors.get(name, value).detach().cpu()
        if name in bases:
            layer = bases[name]
            product = layer.scale * (tensors[layer.b].double().flatten(1) @ tensors[layer.a].double().flatten(1))
            change = product.T if layer.transposed else product.view(value.shape)  # a convolution's kernel is flat here
            value = (value.double() + change).to(value.dtype)
        merged[plain] = value.clone(memory_format=torch.contiguous_format)
    return merged
