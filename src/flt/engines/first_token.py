"""What no head reads isn't computed: where it reads the first token, that one goes on alone behind the last attention.

The feed-forward network is two thirds of the last block; of its attention, the others' queries and outputs are as
useless, half of what is left. Nothing is skipped on a guess: `proof` asks the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flt.blocks import blocks
from flt.errors import InputError

BEHIND_ATTENTION = ("sa_layer_norm", "layernorm_after", "mlp_norm", "attention")
"""Children of a block that feed its feed-forward network: DistilBERT's, ViT's, ModernBERT's, BERT's."""
ATTENTION = ("attention", "attn")
OF_ONE_TOKEN = ("query", "q_lin", "q_proj", "dense", "out_lin", "out_proj", "o_proj", "Wo")
"""Linear layers of an attention, by the last part of their names, that make a token's query or its output."""


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Where only the first token is computed.

    Attributes:
        behind: The module behind which it goes on alone.
        narrow: Linear layers of the last attention that are computed for it alone.
    """

    behind: nn.Module
    narrow: tuple[nn.Module, ...] = ()


def shortcuts(model: nn.Module) -> list[Shortcut]:
    """What may be left out, the most first; nothing where none is known."""
    try:
        last = model.get_submodule(blocks(model)[-1])
    except InputError:
        return []
    behind = next((getattr(last, name) for name in BEHIND_ATTENTION if hasattr(last, name)), None)
    if behind is None:
        return []
    narrow = tuple(layer for name, layer in last.named_modules() if _of_one_token(name.split("."), layer))
    return [*([Shortcut(behind, narrow)] if narrow else []), Shortcut(behind)]


def _of_one_token(path: list[str], layer: nn.Module) -> bool:
    in_attention = any(word in part for part in path[:-1] for word in ATTENTION)
    return in_attention and path[-1] in OF_ONE_TOKEN and isinstance(layer, nn.Linear | LoraLayer)


@contextlib.contextmanager
def alone(shortcut: Shortcut | None) -> Iterator[None]:
    """Only the first token is computed there for as long as the context lasts.

    The narrow layers say for all tokens what they say for the first one, so that shapes stay. Where a residual of all
    tokens is added, the others are wrong, and nobody reads them.
    """

    def first(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (output[0][:, :1], *output[1:]) if isinstance(output, tuple) else output[:, :1]

    if shortcut is None:
        yield
        return
    before = {layer: vars(layer).get("forward") for layer in shortcut.narrow}
    handle = shortcut.behind.register_forward_hook(first)
    try:
        for layer in before:
            layer.forward = functools.partial(_of_first, layer.forward)
        yield
    finally:
        handle.remove()
        for layer, forward in before.items():
            del layer.forward  # back to the class's
            if forward is not None:
                layer.forward = forward


def _of_first(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a layer makes of the first token of (rows, tokens, in), for all of them, as (rows, tokens, out)."""
    # contiguous: attention takes a quarter longer where tokens share their memory
    return forward(x[:, :1]).expand(-1, x.shape[1], -1).contiguous()
