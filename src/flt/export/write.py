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
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.core.quiet import quiet_transformers
from flt.export.base_delta import with_change
from flt.export.final_models import Model, of_groups
from flt.export.folder import finish, unfinished
from flt.export.inputs import ModelInputs
from flt.export.lora_card import PREFIX, lora_config
from flt.export.metadata import Card, write_base, write_beside, write_label_names, write_own
from flt.export.weights import state_of
from flt.models.causal import CausalModule
from flt.models.class_names import name_outputs, output_names
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import inside, output_layer
from flt.models.module import MODEL_PREFIX, ClientModule, backbone_of
from flt.models.peft_modules import plain_names, plain_tensor_name
from flt.models.provenance import drawn_tensor_names, origin_of
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

    Returns:
        The folder that was written.

    Raises:
        InputError: Others have put something in the place of this folder, or of a file or folder in it.
        OSError: The folder can't be written.
    """
    name = kind(layout, state, base)
    with unfinished(folder) as temporary:
        for model in of_groups(layout, state) if models is None else models:
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
                _export_lora(module, own, wider, _values(module, replaced), target, card.source)
            else:
                changed = _values(module, state.base.changed())
                write_own(
                    {**_drawn(module), **changed, **tensors}, backbone_of(module)[1], target, card.of_client(model.data)
                )
        if isinstance(module, ClientModule) and isinstance(module.model, LabelNameClassifier):
            write_label_names(module.model, temporary)
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


def _export_lora(
    module: pl.LightningModule,
    layout: Layout,
    tensors: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    target: Path,
    source: str,
) -> None:
    """Writes a LoRA adapter in peft's format.

    The file also contains tensors of the base, such as those in ``changed``. peft loads these tensors too, because peft
    loads every tensor in a file by name.
    """
    plain = _plain(module)
    ranks = {name: len(tensors[layer.a]) for name, layer in layout.layers.items()}
    heads = _saved_heads(module, plain, {plain[name.rpartition(".")[0]] for name in layout.names(["head"])})
    named = {}
    kept = _alike(module, plain, heads) | _drawn(module) | _rest_of_head(module, layout)
    for name, tensor in {**kept, **tensors, **changed}.items():
        if (file_name := _peft_name(name, layout, plain, ranks)) is not None:
            named[f"{PREFIX}{file_name}"] = tensor.contiguous()
    named_base = "" if _is_random(module) else source  # with a name, peft would load pre-trained weights
    config = lora_config(
        {plain[name]: rank for name, rank in ranks.items()},
        {plain[name]: layout.layers[name].scale * rank for name, rank in ranks.items()},  # alpha / r is the scale
        heads,
        any(layer.transposed for layer in layout.layers.values()),
        named_base,
    )
    config.task_type = "CAUSAL_LM" if isinstance(module, CausalModule) else None  # for text generation
    config.save_pretrained(str(target))
    safetensors.torch.save_file(named, target / "adapter_model.safetensors", metadata={"format": "pt"})


def _peft_name(name: str, layout: Layout, plain: Mapping[str, str], ranks: Mapping[str, int]) -> str | None:
    """Returns a tensor's name in peft's file, without the adapter's name. None if the file doesn't contain the tensor.

    Args:
        name: Name of the tensor in the module.
        layout: Names and roles of the module's tensors.
        plain: Name of each module -> its name before flt or peft wrapped the model.
        ranks: Layer with LoRA -> its rank.
    """
    owner, _, key = name.rpartition(".")
    entry = layout.entries.get(name)
    if entry is not None and entry.axis is not None:
        factor = f"lora_{entry.role}.weight"
        return f"{plain[entry.layer]}.{factor}" if ranks[entry.layer] else None
    if owner not in plain:
        return None
    layer = owner.removesuffix(".base_layer")
    if layer != owner and ranks.get(layer):  # peft won't wrap a layer without components
        key = f"base_layer.{key}"
    return f"{plain[owner]}.{key}".removeprefix(".")


def _saved_heads(module: nn.Module, plain: Mapping[str, str], heads: set[str]) -> list[str]:
    """Returns those heads that peft can treat as heads. It loads the tensors of the others by their names alone.

    peft also takes each other module whose name ends like a head's, and fails if this is a container, a layer with
    LoRA or a part of one: ``lora_dropout`` ends like a head called ``out``.
    """
    kinds = (BaseTunerLayer, nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)
    unfit = [name for name, sub in module.named_modules() if isinstance(sub, kinds)]
    unfit += [f"{name}.base_layer" for name, sub in module.named_modules() if isinstance(sub, BaseTunerLayer)]
    return sorted(head for head in heads if not any(name.endswith(head) for name in unfit if plain.get(name) != head))


def _alike(module: nn.Module, plain: Mapping[str, str], heads: Sequence[str]) -> dict[str, Tensor]:
    """Returns the tensors of frozen modules that peft treats as heads because their names end like a head's name."""
    alike = {name for name, other in plain.items() if other not in heads and other.endswith(tuple(heads))}
    return {
        name: value.detach().cpu().contiguous()
        for name, value in state_of(module).items()
        if any(inside(name, other) for other in alike)
    }


def _is_random(module: nn.Module) -> bool:
    return any(origin_of(sub).seed is not None for sub in module.modules())


def _drawn(module: nn.Module) -> dict[str, Tensor]:
    """Returns the randomly initialised tensors, by name. The pre-trained base lacks them, so they are exported."""
    drawn = drawn_tensor_names(module)
    return {
        name: value.detach().cpu().contiguous()
        for name, value in state_of(module).items()
        if name.replace(".base_layer.", ".") in drawn
    }


def _rest_of_head(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Returns the head's tensors that aren't trained, which peft saves with it. No client may have changed them."""
    trained = set(layout.names(["head"]))
    rest = {name: value for name, value in state_of(module).items() if layout.in_head(name) and name not in trained}
    return {name: value.detach().cpu().contiguous() for name, value in rest.items()}


def _export_model(
    module: pl.LightningModule, layout: Layout, tensors: Mapping[str, Tensor], target: Path, names: Sequence[str]
) -> None:
    """Writes a whole model: the changed base with the adapter merged into it, and the head with its outputs' names."""
    merged = merge(module, layout, tensors)
    if isinstance(module, ClientModule):
        model = module.model.encoder if isinstance(module.model, LabelNameClassifier) else module.model
        kind: Any = type(model)
        prefix = _prefix(module)
        config: Any = copy.deepcopy(model.config)
        if model is module.model and not isinstance(module, CausalModule):
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


def _plain(module: nn.Module) -> dict[str, str]:
    """Returns the name of each submodule -> its name before flt or peft wrapped the model."""
    prefix = _prefix(module)
    return {name: f"{plain}.".removeprefix(prefix).removesuffix(".") for name, plain in plain_names(module).items()}


def _prefix(module: nn.Module) -> str:
    """Returns the prefix that flt's own module adds to the tensor names of a model. Empty for a user's module."""
    if isinstance(module, ClientModule) and isinstance(module.model, LabelNameClassifier):
        return f"{MODEL_PREFIX}encoder."
    return backbone_of(module)[1]
