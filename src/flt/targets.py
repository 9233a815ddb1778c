"""Which layers of a model are its head, and which ones LoRA adapts."""

from __future__ import annotations

import transformers
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from flt.errors import InputError
from flt.label_names import LabelNameClassifier

HEADS = ("classifier", "score", "classification_head")
TARGETS = {"vit": ["q_proj", "v_proj"], "deit": ["q_proj", "v_proj"], "distilbert": ["q_lin", "v_lin"]}
TARGETS |= {"albert": ["query", "value"], "mpnet": ["q", "v"]}


def head_name(model: nn.Module) -> str:
    """Name of the module that turns features into logits; ``none`` where nothing of it can train.

    For a model of transformers it is the classifier whole, which may hold several layers; else the last linear layer.

    Raises:
        InputError: If the model has no linear layer.

    Example:
        >>> head_name(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    if isinstance(model, LabelNameClassifier):
        return "none"
    linear = _linear(model)
    if not linear:
        raise InputError.of("model", type(model).__name__, "a model that ends in a torch.nn.Linear", "it has no head")
    if isinstance(model, transformers.PreTrainedModel):
        return next((name for name in HEADS if inside(linear[-1], name)), linear[-1])
    return linear[-1]


def target_modules(model: nn.Module) -> list[str]:
    """Names of the layers that LoRA adapts by default.

    Returns:
        The usual names for the model's type, such as query and value, as far as they occur; for a type without, the
        full names of all linear layers outside the head.

    Raises:
        InputError: If no layer is left.

    Example:
        >>> target_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0']
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    usual = [name for name in PEFT_TARGETS.get(kind) or TARGETS.get(kind) or () if name in present]
    head = head_name(model)
    # torch's attention reads its output layer's weight and never calls it
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    unfit = [head, *attention]
    names = usual or [name for name in _linear(model) if not any(inside(name, other) for other in unfit)]
    if not names:
        raise InputError.of("adapter.target_modules", None, "names of layers", "the head is the only linear layer")
    return names


def output_layer(model: nn.Module) -> str:
    """Name of the linear layer whose outputs are the logits.

    Example:
        >>> output_layer(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    return _linear(model)[-1]


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def inside(name: str, module: str) -> bool:
    """Whether a tensor or module is a module, or lies in it.

    Example:
        >>> inside("head.out.weight", "head"), inside("header.weight", "head")
        (True, False)
    """
    return name == module or name.startswith(f"{module}.")
