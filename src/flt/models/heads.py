"""Heads of tasks whose numbers of classes differ: who shares one, and what each begins with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transformers
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.layer_names import head_name, inside, output_layer


def variants(kind: str, classes: Mapping[str, int]) -> dict[str, str]:
    """Task -> its head; empty where all tasks have the same one.

    Args:
        kind: ``shape``: tasks with as many classes share one; ``task``: each has its own, which tells the server the
            jobs that share a task; ``shared``: one for all, as wide as the widest needs.
        classes: Task -> its number of classes.

    Raises:
        InputError: The name of a task can't be that of its head.

    Example:
        >>> variants("shape", {"sst2": 2, "mrpc": 2, "news": 20})
        {'sst2': '2', 'mrpc': '2', 'news': '20'}
        >>> variants("shape", {"sst2": 2, "mrpc": 2})
        {'sst2': '', 'mrpc': ''}
    """
    for task in classes if kind == "task" else ():
        if not task or set(task) & set("/\\#"):
            raise InputError.of("heads", kind, "names of tasks that are names of folders", f"a task is called {task}")
    named = {task: {"shape": str(width), "task": task, "shared": ""}[kind] for task, width in classes.items()}
    return named if len(set(named.values())) > 1 else dict.fromkeys(classes, "")


def draw(model: nn.Module, seed: int, classes: int | None = None) -> dict[str, Tensor]:
    """Initial values of a head: they depend on the seed alone, not on the global generators.

    Linear layers are drawn as transformers draws them, with biases of zero; the last one is (classes, d), where None
    stands for as many as it has.

    Returns:
        Name of each tensor of the head in the model -> its value.
    """
    head, generator = head_name(model), torch.Generator().manual_seed(seed)
    std = getattr(model.config, "initializer_range", None) or 0.02
    values = {name: value.detach().clone() for name, value in model.named_parameters() if inside(name, head)}
    linear = {name: sub for name, sub in model.named_modules() if isinstance(sub, nn.Linear) and inside(name, head)}
    for name, layer in linear.items():
        outputs = classes if classes and name == output_layer(model) else layer.out_features
        values[f"{name}.weight"] = torch.empty(outputs, layer.in_features).normal_(0.0, std, generator=generator)
        if layer.bias is not None:
            values[f"{name}.bias"] = torch.zeros(outputs)
    return values


@torch.no_grad()
def renew(model: transformers.PreTrainedModel, seed: int) -> None:
    """Draws the head anew even where the checkpoint has one of the right size: its classes are others."""
    parameters = dict(model.named_parameters())
    for name, value in draw(model, seed).items():
        parameters[name].copy_(value)
