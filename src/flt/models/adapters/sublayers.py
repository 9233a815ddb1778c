"""Positions of serial adapters in a block: after attention and after feed-forward, before the residual is added.

A serial adapter replaces the output Z of a sub-layer by A(Z). C2A and Houlsby's bottlenecks are serial adapters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from flt.core.errors import InputError
from flt.models.adapters.freeze_backbone import freeze_but_head
from flt.models.blocks import blocks, top_blocks
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import head_name
from flt.models.module import ClientModule

_BERT = ("attention.output.dropout", "output.dropout")
PLACES = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"), _BERT),
    "mpnet": ("attention.dropout", "output.dropout"),
    "distilbert": ("attention.out_lin", "ffn"),
    "vit": ("attention.o_proj", "mlp"),
}
"""Model type -> names of two modules in a block, one for attention and one for feed-forward. An adapter follows each.

Each of these modules returns Z (batch, time, H), where H is the hidden size. With input X, adapter A and layer norm LN,
most blocks compute X1 = LN(A(attention(X)) + X), as in the papers. ViT normalises before attention:
X1 = A(attention(LN(X))) + X. In ViT, both sub-layers use the same dropout module, so the adapters are inserted before
dropout.
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A frozen module, and the positions of serial adapters in it.

    Attributes:
        root: The model whose forward takes a batch's tensors by name.
        width: H, the size of the activations.
        classes: K, the number of classes. If jobs have different heads, the largest number.
        output: The layer of the module's current head that returns the logits. None for the label-name head, which has
            no such layer.
        blocks: The adapted blocks, from the lowest to the uppermost.
        places: For each adapted block, the two modules after which an adapter is inserted.
        head: Names of the modules whose weights are all trained.
    """

    root: nn.Module
    width: int
    classes: int
    output: nn.Linear | None
    blocks: list[nn.Module]
    places: list[tuple[nn.Module, nn.Module]]
    head: list[str]


def prepare(module: nn.Module, adapter: str, head: str | None, layers: str) -> Host:
    """Freezes all weights of a module except for its head, and finds the positions for serial adapters.

    Args:
        module: The module, changed in place.
        adapter: Name of the adapter, for error messages.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier and all layers before it that have no pre-trained weights are trained. Such a layer may be a
            pooler or DistilBERT's ``pre_classifier``.
        layers: With ``all``, all blocks are adapted; with ``top<k>``, only the k uppermost blocks.

    Raises:
        InputError: The model's type isn't supported, the module already has LoRA layers, or there is no such head or
            block.
    """
    root = next((sub for sub in module.modules() if isinstance(sub, PreTrainedModel | LabelNameClassifier)), module)
    config: Any = getattr(root, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in PLACES:
        why = f"the model is {f'of type {model_type}' if model_type else 'no model of transformers'}"
        raise InputError.of("adapter", adapter, f"a model of type {', '.join(PLACES)}; or adapter=lora", why)
    if any(isinstance(sub, LoraLayer) for sub in module.modules()):
        raise InputError.of("adapter", adapter, "lora", "the module holds LoRA layers of its own")
    head_names = freeze_but_head(module, head)
    adapted = [root.get_submodule(name) for name in (blocks(root) if layers == "all" else top_blocks(root, layers))]
    attention, feed_forward = PLACES[model_type]
    places = [(block.get_submodule(attention), block.get_submodule(feed_forward)) for block in adapted]
    output = _logits_layer(module, head_names)
    return Host(root, config.hidden_size, _class_count(module, output), output, adapted, places, head_names)


def bottleneck(z: Tensor, u: Tensor, d: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """Computes A(Z) = Z + GELU(Z U + b1) D + b2 (Houlsby et al., arXiv 1902.00751).

    Args:
        z: Z (batch, time, H), the output of a sub-layer.
        u: U (H, r), the weight of the first projection.
        d: D (r, H), the weight of the second projection.
        b1: Bias of the first projection (r,).
        b2: Bias of the second projection (H,).

    Returns:
        A(Z) (batch, time, H), in the dtype of Z.
    """
    return (z + F.gelu(z @ u + b1) @ d + b2).to(z.dtype)


def _logits_layer(module: nn.Module, head: list[str]) -> nn.Linear | None:
    """Returns the linear layer that computes the logits, or None for a label-name head.

    In flt's own module, this is the last linear layer of the model's classifier, even if another module is configured
    as the head. In a user's module, it is the last linear layer of the trained head. If no head is trained there,
    the function returns the last linear layer of the head that ``head_name`` finds.
    """
    inner = module.model if isinstance(module, ClientModule) else module
    if any(isinstance(sub, LabelNameClassifier) for sub in module.modules()):
        return None
    head_module = (
        inner.get_submodule(head_name(inner)) if inner is not module or not head else module.get_submodule(head[-1])
    )
    return next((sub for sub in reversed(list(head_module.modules())) if isinstance(sub, nn.Linear)), None)


def _class_count(module: nn.Module, output: nn.Linear | None) -> int:
    if isinstance(module, ClientModule):
        assert module.accuracy.num_classes is not None, "flt's own module sets the number of classes"
        return module.accuracy.num_classes  # if jobs have different heads: the largest number
    if output is not None:
        return output.out_features
    label_name_heads = [sub for sub in module.modules() if isinstance(sub, LabelNameClassifier)]
    if not label_name_heads:
        raise InputError.of("adapter.head", "no linear layer", "a module that ends in one, which tells the classes")
    return len(label_name_heads[0].names)
