"""Heads for one or several tasks: the assignment of heads to tasks, and the initial values of a head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transformers
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.layer_names import head_name, inside, output_layer
from flt.protocol.layout import JOIN


def head_names(kind: str, classes: Mapping[str, int], joint: bool = False) -> dict[str, str]:
    """Returns the name of each task's head. All names are empty if all tasks have the same head.

    Args:
        kind: With ``shape``, tasks with the same number of classes share a head. With ``task``, each task has its own
            head, and the server can see which jobs have the same task. With ``shared``, all tasks share one head. The
            task with the most classes determines its number of outputs.
        classes: Task -> its number of classes.
        joint: Whether a job may have several tasks.

    Returns:
        Task -> the name of its head.

    Raises:
        InputError: The name of a task can't be the name of a head.

    Example:
        >>> head_names("shape", {"sst2": 2, "mrpc": 2, "news": 20})
        {'sst2': '2', 'mrpc': '2', 'news': '20'}
        >>> head_names("shape", {"sst2": 2, "mrpc": 2})
        {'sst2': '', 'mrpc': ''}
    """
    for task in classes if kind == "task" else ():
        if not task or set(task) & set("/\\#"):
            raise InputError.of("heads", kind, "names of tasks that are names of folders", f"a task is called {task}")
        if joint and JOIN in task:
            raise InputError.of("heads", kind, f"names of tasks without {JOIN}", f"a task is called {task}")
    heads = {task: {"shape": str(width), "task": task, "shared": ""}[kind] for task, width in classes.items()}
    return heads if len(set(heads.values())) > 1 else dict.fromkeys(classes, "")


def draw_head(model: nn.Module, seed: int, classes: int | None = None) -> dict[str, Tensor]:
    """Returns initial values of a model's head. They depend only on the seed, not on the global random generators.

    Weights of linear layers are drawn from the normal distribution that transformers uses, and biases are zero. Other
    tensors keep their values.

    Args:
        model: The model that has the head.
        seed: Seed of the values.
        classes: Number of outputs of the last layer. Its weight then has the shape (classes, d). If None, the number of
            outputs stays the same.

    Returns:
        Name, in the model, of each tensor of the head -> value of the tensor.
    """
    head, generator = head_name(model), torch.Generator().manual_seed(seed)
    std = getattr(model.config, "initializer_range", None) or 0.02
    values = {name: value.detach().clone() for name, value in model.named_parameters() if inside(name, head)}
    linear_layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and inside(name, head)
    }
    for name, layer in linear_layers.items():
        outputs = classes if classes and name == output_layer(model) else layer.out_features
        values[f"{name}.weight"] = torch.empty(outputs, layer.in_features).normal_(0.0, std, generator=generator)
        if layer.bias is not None:
            values[f"{name}.bias"] = torch.zeros(outputs)
    return values


@torch.no_grad()
def redraw_head(model: transformers.PreTrainedModel, seed: int) -> None:
    """Draws new values for the head. The pre-trained head is never used, because it was trained on other classes."""
    parameters = dict(model.named_parameters())
    for name, value in draw_head(model, seed).items():
        parameters[name].copy_(value)
