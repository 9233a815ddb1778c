"""What no head reads isn't computed: where it reads the first token, that one goes on alone behind the last attention.

The feed-forward network is two thirds of the last block. Nothing is skipped on a guess: `proof` asks the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from flt.blocks import blocks
from flt.errors import InputError

BEHIND_ATTENTION = ("sa_layer_norm", "layernorm_after", "mlp_norm", "attention")
"""Children of a block that feed its feed-forward network: DistilBERT's, ViT's, ModernBERT's, BERT's."""


def place(model: nn.Module) -> nn.Module | None:
    """The module of the last block behind which the first token may go on alone; None where none is known."""
    try:
        last = model.get_submodule(blocks(model)[-1])
    except InputError:
        return None
    return next((getattr(last, name) for name in BEHIND_ATTENTION if hasattr(last, name)), None)


@contextlib.contextmanager
def alone(behind: nn.Module | None) -> Iterator[None]:
    """Only the first token goes on from there for as long as the context lasts.

    Where a residual of all tokens is added later, the others are wrong, and nobody reads them.
    """

    def first(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (output[0][:, :1], *output[1:]) if isinstance(output, tuple) else output[:, :1]

    if behind is None:
        yield
        return
    handle = behind.register_forward_hook(first)
    try:
        yield
    finally:
        handle.remove()
