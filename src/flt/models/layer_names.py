"""Functions that find layers of a model by name: the layers of the head, and the layers that LoRA adapts."""

from __future__ import annotations

from typing import Any

import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.models.blocks import blocks
from flt.models.label_name_head import LabelNameClassifier
from flt.models.peft_modules import innermost
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

    For a transformers model the head is the whole classifier, which may have several layers. Two kinds of head stay
    frozen: a label-name head, and a layer that computes the logits of tokens, which often shares its weights with the
    embedding.

    For any other model the head is the last linear layer. If this layer lies in a transformers model inside, the head
    is that model's head; a transformers model without a head, such as ``BertModel``, counts only if no linear layer
    lies outside of it.

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
    known = transformers_models(model)
    owner = next((name for name in known if inside(linear[-1], name)), None)
    if owner is None:
        return linear[-1]
    if _output_embeddings(known[owner]):
        return "none"
    heads = (_joined(owner, name) for name in HEADS)
    outside = [name for name in linear if not any(inside(name, other) for other in known)]
    return next((head for head in heads if any(inside(name, head) for name in linear)), [*linear, *outside][-1])


def transformers_models(model: nn.Module) -> dict[str, transformers.PreTrainedModel]:
    """Returns the transformers models in a module by name, without those inside another. The module may be one itself.

    Example:
        >>> transformers_models(nn.Sequential(nn.Linear(2, 2)))
        {}
    """
    found: dict[str, transformers.PreTrainedModel] = {}
    for name, sub in model.named_modules():
        if isinstance(sub, transformers.PreTrainedModel) and not any(inside(name, other) for other in found):
            found[name] = sub
    return found


def whole_modules(model: nn.Module, head: str | None) -> list[str]:
    """Returns the names of the modules whose weights are all trained, in addition to the adapter.

    Some layers before the classifier, such as a pooler or DistilBERT's ``pre_classifier``, may have no pre-trained
    weights. These layers are initialised at random, like the classifier. If they were frozen, they would stay random.

    Args:
        model: The model.
        head: Name of the configured head. The string ``"none"`` means no module. If None, the names of the classifier
            and of the randomly initialised layers before it are returned; there are none if the classifier's weights
            are those of another layer, too.

    Raises:
        InputError: If the model has no linear layer, or if the configured head has an adapter or shares weights with
            another layer.

    Example:
        >>> whole_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), None)
        ['2']
    """
    chosen = head or head_name(model)
    if chosen == "none":
        return []
    chosen = innermost(model, chosen)
    if other := _tied_to(model, chosen):
        if head is None:
            return []
        why = f"its weights are those of {other}, too; such a layer, often the embedding, stays frozen"
        raise InputError.of("adapter.head", head, "none", why)
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
        3. The full names of all linear layers outside the head. In a transformers model that lies inside the model,
           these are only the layers that the first two lists would name for it, and a classifier that isn't the head.

    Raises:
        InputError: The model has no linear layer outside the head.

    Example:
        >>> target_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0']
    """
    if known := _known_targets(model):
        return known
    # torch's attention reads the weight of its output layer and never calls the layer. An adapter on this layer would
    # therefore have no effect.
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    excluded, names = [head_name(model), *attention], _linear(model, nn.Linear | Conv1D)
    for owner, part in transformers_models(model).items():
        excluded += [_joined(owner, name) for name in _output_embeddings(part)]
        if known := _known_targets(part):
            # A classifier that isn't the head would otherwise stay as it was drawn.
            usual = [name for name in names if name.rpartition(".")[2] in known or set(name.split(".")) & set(HEADS)]
            names = [name for name in names if not inside(name, owner) or name in usual]
    names = [name for name in names if not any(inside(name, other) for other in excluded)]
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


def thaw(module: nn.Module) -> None:
    """Makes all weights of a module trainable, except for parameters that are integers or flags."""
    for parameter in module.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)


def is_causal(model: nn.Module) -> bool:
    """Returns whether a model is a causal language model of transformers."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def _tied_to(model: nn.Module, head: str) -> str:
    """Returns the name of a layer outside the head that has one of the head's weights, or an empty text."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    held = {id(parameter) for name, parameter in parameters if inside(name, head)}
    others = (name for name, parameter in parameters if id(parameter) in held and not inside(name, head))
    return next(others, "").rpartition(".")[0]


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


def _output_embeddings(model: transformers.PreTrainedModel) -> list[str]:
    """Returns a list with the name of the layer that computes token logits. The list is empty if no layer does."""
    output = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is output]


def _linear(model: nn.Module, kinds: Any = nn.Linear) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def _joined(name: str, inner: str) -> str:
    return f"{name}.{inner}" if name else inner


def inside(name: str, module: str) -> bool:
    """Returns whether a tensor or module, given by name, lies inside a module or is the module itself.

    The empty name is that of the whole model.

    Example:
        >>> inside("head.out.weight", "head"), inside("header.weight", "head")
        (True, False)
    """
    return not module or name == module or name.startswith(f"{module}.")
