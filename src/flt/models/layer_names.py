"""Functions that find layers of a model by name: the layers of the head, and the layers that LoRA adapts."""

from __future__ import annotations

import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flt.core.errors import InputError
from flt.models.blocks import blocks
from flt.models.label_name_head import LabelNameClassifier
from flt.models.provenance import drawn_tensor_names

HEADS = ("classifier", "score", "classification_head")
ATTENTION = (
    ("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"), ("query_key_value",), ("c_attn",),
)  # fmt: skip
"""Usual names of the query layer and the value layer, or of one layer that computes both.

These names are used for model types that peft doesn't list.
"""


def head_name(model: nn.Module) -> str:
    """Returns the name of the head (the module that turns features into logits), or ``none`` if the head stays frozen.

    For a transformers model the head is the whole classifier, which may have several layers. For any other model the
    head is the last linear layer. Two kinds of head stay frozen: a label-name head, and the head of a causal model,
    which often shares its weights with the embedding.

    Raises:
        InputError: If the model has no linear layer.

    Example:
        >>> head_name(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    if isinstance(model, LabelNameClassifier) or is_causal(model):
        return "none"
    linear = _linear(model)
    if not linear:
        raise InputError.of("model", type(model).__name__, "a model that ends in a torch.nn.Linear", "it has no head")
    if isinstance(model, transformers.PreTrainedModel):
        return next((name for name in HEADS if any(inside(layer, name) for layer in linear)), linear[-1])
    return linear[-1]


def whole_modules(model: nn.Module, head: str | None) -> list[str]:
    """Returns the names of the modules whose weights are all trained, in addition to the adapter.

    Some layers before the classifier, such as a pooler or DistilBERT's ``pre_classifier``, may have no pre-trained
    weights. These layers are initialised at random, like the classifier. If they were frozen, they would stay random.

    Args:
        model: The model.
        head: Name of the configured head. The string ``"none"`` means no module. If None, the names of the classifier
            and of the randomly initialised layers before it are returned.

    Raises:
        InputError: If the model has no linear layer.

    Example:
        >>> whole_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), None)
        ['2']
    """
    chosen = head or head_name(model)
    if chosen == "none":
        return []
    if head is not None:
        return [chosen]
    new = _new_layers(model, chosen)
    before = [name for name in _linear(model) if name in new or name.rpartition(".")[2] == "pre_classifier"]
    return [*(name for name in before if not inside(name, chosen)), chosen]


def _new_layers(model: nn.Module, head: str) -> set[str]:
    """Returns the names of layers with randomly initialised tensors that lie above the blocks and outside the head."""
    owners = {name.rpartition(".")[0] for name in drawn_tensor_names(model) if not inside(name, head)}
    if not owners:
        return set()
    names = [name for name, _ in model.named_modules()]
    try:
        uppermost = blocks(model)[-1]
    except InputError:  # a model without blocks has no layers above blocks
        return set()
    last = max(i for i, name in enumerate(names) if inside(name, uppermost))
    return owners & set(names[last + 1 :])


def target_modules(model: nn.Module) -> list[str]:
    """Returns the names of the layers that LoRA adapts by default.

    Returns:
        The first of these lists that isn't empty:

        1. For a transformers model, the names that peft lists for the model's type, such as ``query`` and ``value``.
           These are the last parts of the layers' full names.
        2. For a transformers model, the usual last parts of the names of the query and value layers.
        3. The full names of all linear layers outside the head.

    Raises:
        InputError: The model has no linear layer outside the head.

    Example:
        >>> target_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0']
    """
    known = _known_targets(model)
    head = head_name(model)
    # torch's attention reads the weight of its output layer and never calls the layer. An adapter on this layer would
    # therefore have no effect.
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    excluded = [head, *attention, *_output_embeddings(model)]
    names = known or [name for name in _linear(model) if not any(inside(name, other) for other in excluded)]
    if not names:
        raise InputError.of("adapter.target_modules", None, "names of layers", "the head is the only linear layer")
    return names


def output_layer(model: nn.Module) -> str:
    """Returns the name of the linear layer in the head whose outputs are the logits.

    Example:
        >>> output_layer(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    head = head_name(model)
    return [name for name in _linear(model) if inside(name, head)][-1]


def submodule(module: nn.Module, name: str) -> nn.Module:
    """Returns the submodule of the given name. The error for an unknown name refers to the setting ``adapter.head``.

    Raises:
        InputError: There is no such module.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = _linear(module)[-4:]
        raise InputError.of("adapter.head", name, f"none, or a module's name such as {', '.join(names)}") from None


def is_causal(model: nn.Module) -> bool:
    """Returns whether a model is a causal language model of transformers."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def is_tied(model: nn.Module, head: str) -> bool:
    """Returns whether a layer of a transformers model shares its weights with the input embedding."""
    if head not in _output_embeddings(model):
        return False
    assert isinstance(model, transformers.PreTrainedModel), "only a transformers model has output embeddings"
    return model.get_submodule(head).weight is model.get_input_embeddings().weight


def _known_targets(model: nn.Module) -> list[str]:
    """Returns the last parts of the names of the layers that are usually adapted in a transformers model.

    The list is empty for any other model, and for a transformers model without such layers.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        return []
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    known = [name for name in PEFT_TARGETS.get(kind, ()) if name in present]
    return known or next((list(names) for names in ATTENTION if present.issuperset(names)), [])


def _output_embeddings(model: nn.Module) -> list[str]:
    """Returns a list with the name of the layer that computes token logits. The list is empty if no layer does."""
    output = model.get_output_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
    return [name for name, module in model.named_modules() if module is output]


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def inside(name: str, module: str) -> bool:
    """Returns whether a tensor or module, given by name, lies inside a module or is the module itself.

    Example:
        >>> inside("head.out.weight", "head"), inside("header.weight", "head")
        (True, False)
    """
    return name == module or name.startswith(f"{module}.")
