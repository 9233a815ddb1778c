"""The blocks of a backbone: the stack of like layers that its activations pass through one after the other."""

from __future__ import annotations

import re

from torch import nn

from flt.core.errors import InputError


def blocks(model: nn.Module) -> list[str]:
    """Names of the blocks, in the order in which activations pass them.

    They are the longest list of modules of one class that lies in no other such list.

    Raises:
        InputError: The model has no such list.

    Example:
        >>> model = nn.Sequential(nn.Embedding(5, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]))
        >>> blocks(model)
        ['1.0', '1.1']
    """
    stacks = {
        name: stack
        for name, stack in model.named_modules()
        if isinstance(stack, nn.ModuleList) and len({type(block) for block in stack}) == 1
    }
    outer = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if not outer:
        raise InputError.of("model", type(model).__name__, "a model with a torch.nn.ModuleList of like blocks")
    longest = max(outer, key=lambda name: len(stacks[name]))
    return [f"{longest}.{i}" for i in range(len(stacks[longest]))]


def top_blocks(model: nn.Module, layers: str) -> list[str]:
    """Names of the blocks that ``top<k>`` means.

    Raises:
        InputError: It isn't ``top<k>`` with 1 <= k <= the number of blocks.

    Example:
        >>> model = nn.Sequential(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)]))
        >>> top_blocks(model, "top2")
        ['0.1', '0.2']
    """
    names = blocks(model)
    match = re.fullmatch(r"top([1-9]\d*)", layers)
    if match is None or int(match[1]) > len(names):
        raise InputError.of("model.adapt_layers", layers, f"all, or top1 to top{len(names)}")
    return names[-int(match[1]) :]
