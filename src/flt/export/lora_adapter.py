"""Writing of a LoRA adapter in peft's format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
import safetensors.torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from flt.export.lora_card import PREFIX, lora_config
from flt.export.weights import state_of
from flt.models.causal import CausalModule
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import inside
from flt.models.module import MODEL_PREFIX, ClientModule, backbone_of
from flt.models.peft_modules import plain_names
from flt.models.provenance import drawn_tensor_names, origin_of
from flt.protocol.layout import Layout


def write_lora(
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
    kept = _alike(module, plain, heads) | drawn_tensors(module) | _rest_of_head(module, layout)
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


def drawn_tensors(module: nn.Module) -> dict[str, Tensor]:
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


def _plain(module: nn.Module) -> dict[str, str]:
    """Returns the name of each submodule -> its name before flt or peft wrapped the model."""
    prefix = shell_of(module)
    return {name: f"{plain}.".removeprefix(prefix).removesuffix(".") for name, plain in plain_names(module).items()}


def shell_of(module: nn.Module) -> str:
    """Returns the prefix that flt's own module adds to the tensor names of a model. Empty for a user's module."""
    if isinstance(module, ClientModule) and isinstance(module.model, LabelNameClassifier):
        return f"{MODEL_PREFIX}encoder."
    return backbone_of(module)[1]
