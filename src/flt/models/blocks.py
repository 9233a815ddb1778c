"""The blocks of a backbone: modules of the same class that the activations pass through one after another."""

from __future__ import annotations

import re

from torch import nn

from flt.core.errors import InputError


def blocks(model: nn.Module) -> list[str]:
    """Returns the names of the blocks, from the lowest (next to the embeddings) to the uppermost.

    The blocks are the longest ``ModuleList`` whose modules all have the same class. A list inside another such list is
    ignored.

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
    outermost = [name for name in stacks if not any(name.startswith(f"{other}.") for other in stacks)]
    if not outermost:
        raise InputError.of("model", type(model).__name__, "a model with a torch.nn.ModuleList of like blocks")
    longest = max(outermost, key=lambda name: len(stacks[name]))
    return [f"{longest}.{i}" for i in range(len(stacks[longest]))]


def top_blocks(model: nn.Module, layers: str) -> list[str]:
    """Returns the names of the k uppermost blocks, where ``layers`` is ``top<k>``.

    Raises:
        InputError: layers isn't ``top<k>`` with 1 <= k <= the number of blocks.

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
