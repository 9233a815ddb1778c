"""Serial adapters by hand: NumPy's formula, and what a model computes around the places where they sit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special
import tiny
import torch
import transformers
from torch import Tensor, nn

from flt.models.adapters import c2a

Array = Any
SMALL = c2a.C2ASettings(rank=3, embedding=2, factor=4)

_BERT = [("attention.output.dense", "attention.output.LayerNorm"), ("output.dense", "output.LayerNorm")]
SUBLAYERS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"), _BERT),
    "mpnet": [("attention.attn.o", "attention.LayerNorm"), ("output.dense", "output.LayerNorm")],
    "distilbert": [("attention.out_lin", "sa_layer_norm"), ("ffn.lin2", "output_layer_norm")],
    "vit": [("attention.o_proj", "layernorm_after"), ("mlp.fc2", "")],
}
"""Model type -> of both sub-layers the last linear layer, and the norm that reads the sum (none: the block)."""


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))


def by_hand(z: Array, u: Array, d: Array, b1: Array, b2: Array) -> Array:
    return z + gelu(z @ u + b1) @ d + b2


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def batch_of(kind: str, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 1, 2])
    if kind == "vit":
        return {"pixel_values": torch.rand(4, 1, 8, 8, generator=generator), "labels": labels}
    ids = torch.randint(5, len(tiny.WORDS), (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([[6], [3], [4], [2]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def moved(module: nn.Module, seed: int = 1) -> nn.Module:
    """With every trained tensor at random: no bias is zero, nothing is near the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return module


class Watch:
    """What goes into and comes out of a block's modules."""

    def __init__(self, block: nn.Module) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        for name, sub in block.named_modules():
            sub.register_forward_hook(lambda _, i, o, n=name: self._keep(n, i, o))

    def _keep(self, name: str, inputs: Any, output: Any) -> None:
        self.outputs[name] = output[0] if isinstance(output, tuple) else output
        if inputs:
            self.inputs[name] = inputs[0]


def adapted_sums(kind: str, attach: Callable[[nn.Module], Any], block: int) -> list[tuple[Array, Array, nn.Module]]:
    """Of both sub-layers of a block: (Z, A(Z), the block), read from what the model computes around the adapter."""
    model = tiny.classifier(kind)
    attach(model)
    moved(model)
    found = model.get_submodule(f"{model.base_model_prefix}.{stack(kind)}.{block}")
    watch = Watch(found)
    model(**batch_of(kind))
    residual, sums = watch.inputs[""], []
    for dense, norm in SUBLAYERS[kind]:
        linear: Any = found.get_submodule(dense)
        z = array(watch.inputs[dense]) @ array(linear.weight).T + array(linear.bias)
        total = watch.inputs[norm] if norm else watch.outputs[""]
        sums.append((z, array(total) - array(residual), found))
        residual = total if kind == "vit" else watch.outputs[norm]
    return sums


def stack(kind: str) -> str:
    return {"distilbert": "transformer.layer", "vit": "layers"}.get(kind, "encoder.layer")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapted(kind: str = "bert", layers: str = "all", **given: Any) -> transformers.PreTrainedModel:
    """A model with C2A on it."""
    model = tiny.classifier(kind)
    c2a.attach(model, dataclasses.replace(SMALL, **given), 0, layers)
    return moved(model)  # type: ignore[return-value]  # the same model


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits
