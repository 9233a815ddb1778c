"""Which layers of a model are its head, and which ones LoRA adapts."""

from __future__ import annotations

import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from flt.core.errors import InputError
from flt.models.blocks import blocks
from flt.models.label_name_head import LabelNameClassifier
from flt.models.provenance import drawn_in

HEADS = ("classifier", "score", "classification_head")
ATTENTION = (
    ("query", "value"), ("q_proj", "v_proj"), ("q_lin", "v_lin"), ("q", "v"), ("query_key_value",), ("c_attn",),
)  # fmt: skip
"""What models call query and value, or the layer that computes both, for types that peft doesn't know."""


def head_name(model: nn.Module) -> str:
    """Name of the module that turns features into logits; ``none`` where nothing of it is to train.

    For a model of transformers it is the classifier whole, which may hold several layers; else the last linear layer. A
    causal model keeps the one it has, which often is its embedding, too.

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
    """Names of the modules that are trained whole beside an adapter.

    A layer before the classifier that the checkpoint lacks, such as a pooler, is as new as the classifier itself, and
    so is DistilBERT's ``pre_classifier``: frozen, each would stay what the seed drew.

    Args:
        model: The model.
        head: What was chosen: a module's name; None: the classifier and the new layers before it; ``none``: nothing.

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
    """Names of the layers above the blocks, besides the head, with a tensor of which the checkpoint knows nothing."""
    owners = {name.rpartition(".")[0] for name in drawn_in(model) if not inside(name, head)}
    if not owners:
        return set()
    names = [name for name, _ in model.named_modules()]
    try:
        uppermost = blocks(model)[-1]
    except InputError:  # a model without blocks has nothing above them
        return set()
    last = max(i for i, name in enumerate(names) if inside(name, uppermost))
    return owners & set(names[last + 1 :])


def target_modules(model: nn.Module) -> list[str]:
    """Names of the layers that LoRA adapts by default.

    Returns:
        The names that peft has for the model's type, such as query and value, as far as they occur; for a type that it
        doesn't know, what the model calls them; else the full names of all linear layers outside the head.

    Raises:
        InputError: If no layer is left.

    Example:
        >>> target_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0']
    """
    usual = _usual(model)
    head = head_name(model)
    # torch's attention reads its output layer's weight and never calls it
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    unfit = [head, *attention, *_outputs(model)]
    names = usual or [name for name in _linear(model) if not any(inside(name, other) for other in unfit)]
    if not names:
        raise InputError.of("adapter.target_modules", None, "names of layers", "the head is the only linear layer")
    return names


def output_layer(model: nn.Module) -> str:
    """Name of the linear layer of the head whose outputs are the logits.

    Example:
        >>> output_layer(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    head = head_name(model)
    return [name for name in _linear(model) if inside(name, head)][-1]


def submodule(module: nn.Module, name: str) -> nn.Module:
    """The module that is trained whole, by its name.

    Raises:
        InputError: There is no such module.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = _linear(module)[-4:]
        raise InputError.of("adapter.head", name, f"none, or a module's name such as {', '.join(names)}") from None


def is_causal(model: nn.Module) -> bool:
    """Whether a model is one of transformers that predicts the next token."""
    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def is_tied(model: nn.Module, head: str) -> bool:
    """Whether a layer of a model of transformers shares its weights with the embedding of its inputs."""
    if head not in _outputs(model):
        return False
    assert isinstance(model, transformers.PreTrainedModel), "which alone has outputs"
    return model.get_submodule(head).weight is model.get_input_embeddings().weight


def _usual(model: nn.Module) -> list[str]:
    """Ends of the names of what is commonly adapted in a model of transformers; none of another."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        return []
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    known = [name for name in PEFT_TARGETS.get(kind, ()) if name in present]
    return known or next((list(names) for names in ATTENTION if present.issuperset(names)), [])


def _outputs(model: nn.Module) -> list[str]:
    """Names of the layer that turns hidden states into tokens, where the model has one."""
    output = model.get_output_embeddings() if isinstance(model, transformers.PreTrainedModel) else None
    return [name for name, module in model.named_modules() if module is output]


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def inside(name: str, module: str) -> bool:
    """Whether a tensor or module is a module, or lies in it.

    Example:
        >>> inside("head.out.weight", "head"), inside("header.weight", "head")
        (True, False)
    """
    return name == module or name.startswith(f"{module}.")
