"""Where serial adapters go: on what attention and feed-forward yield, in each block, before the residual is added."""

from __future__ import annotations

import dataclasses
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from flt.core.errors import InputError
from flt.models.adapters.freeze import freeze_but_head
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
"""Model type -> modules of a block that yield Z (batch, time, H): after attention, and after feed-forward.

Most blocks normalise after the residual, X1 = LN(A(attention(X)) + X), as the papers have it. ViT normalises before, so
there it is X1 = A(attention(LN(X))) + X; its dropout, one module for both, comes after the adapter.
"""


@dataclasses.dataclass(frozen=True)
class Host:
    """A frozen module that serial adapters are put into.

    Attributes:
        root: The model that gets a batch's tensors by name.
        width: H, the size of its activations.
        classes: K; where jobs have heads of several widths, the widest one's.
        output: The layer that yields the logits, of the head that is in the module; None: no layer does.
        blocks: The adapted blocks, from the lowest to the uppermost.
        places: Of each of them, the modules that yield Z.
        head: Names of the modules that are trained whole.
    """

    root: nn.Module
    width: int
    classes: int
    output: nn.Linear | None
    blocks: list[nn.Module]
    places: list[tuple[nn.Module, nn.Module]]
    head: list[str]


def prepare(module: nn.Module, adapter: str, head: str | None, layers: str) -> Host:
    """Freezes a module but for its head, and finds the places for adapters.

    Args:
        module: Changed in place.
        adapter: What is to be attached, for messages.
        head: Name of the module that is trained whole; None: the classifier, and the layers before it that the
            checkpoint lacks (DistilBERT's, a pooler); ``none``: no head.
        layers: ``all``, or ``top<k>``: only the k uppermost blocks are adapted.

    Raises:
        InputError: The model is of another type, holds adapters already, or has no such head or blocks.
    """
    root = next((sub for sub in module.modules() if isinstance(sub, PreTrainedModel | LabelNameClassifier)), module)
    config: Any = getattr(root, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in PLACES:
        why = f"the model is {f'of type {kind}' if kind else 'no model of transformers'}"
        raise InputError.of("adapter", adapter, f"a model of type {', '.join(PLACES)}; or adapter=lora", why)
    if any(isinstance(sub, LoraLayer) for sub in module.modules()):
        raise InputError.of("adapter", adapter, "lora", "the module holds LoRA layers of its own")
    names = freeze_but_head(module, head)
    adapted = [root.get_submodule(name) for name in (blocks(root) if layers == "all" else top_blocks(root, layers))]
    attention, feed_forward = PLACES[kind]
    places = [(block.get_submodule(attention), block.get_submodule(feed_forward)) for block in adapted]
    output = _output(module, names)
    return Host(root, config.hidden_size, _classes(module, output), output, adapted, places, names)


def bottleneck(z: Tensor, u: Tensor, d: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """A(Z) = Z + GELU(Z U + b1) D + b2 (Houlsby et al., arXiv 1902.00751).

    Args:
        z: Z (batch, time, H).
        u: U (H, r).
        d: D (r, H).
        b1: (r,).
        b2: (H,).

    Returns:
        A(Z) (batch, time, H), of the type of Z.
    """
    return (z + F.gelu(z @ u + b1) @ d + b2).to(z.dtype)


def _output(module: nn.Module, head: list[str]) -> nn.Linear | None:
    """The last linear layer of the head, or of the classifier of flt's own module, whatever its head is."""
    inner = module.model if isinstance(module, ClientModule) else module
    if any(isinstance(sub, LabelNameClassifier) for sub in module.modules()):
        return None
    whole = inner.get_submodule(head_name(inner)) if inner is not module or not head else module.get_submodule(head[-1])
    return next((sub for sub in reversed(list(whole.modules())) if isinstance(sub, nn.Linear)), None)


def _classes(module: nn.Module, output: nn.Linear | None) -> int:
    if isinstance(module, ClientModule):
        assert module.accuracy.num_classes is not None, "which flt's module says"
        return module.accuracy.num_classes  # the most that one has, where jobs have different heads
    if output is not None:
        return output.out_features
    named = [sub for sub in module.modules() if isinstance(sub, LabelNameClassifier)]
    if not named:
        raise InputError.of("adapter.head", "no linear layer", "a module that ends in one, which tells the classes")
    return len(named[0].names)
