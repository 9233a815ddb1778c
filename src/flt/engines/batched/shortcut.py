"""What no head reads isn't computed: padding, and behind the last attention all tokens but the one that a head reads.

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

from flt.core.errors import InputError
from flt.engines.batched.token_packing import Tokens
from flt.models.blocks import blocks

BEHIND_ATTENTION = ("sa_layer_norm", "layernorm_after", "mlp_norm", "attention")
"""Children of a block that feed its feed-forward network: DistilBERT's, ViT's, ModernBERT's, BERT's."""
ATTENTION = ("attention", "attn")
OF_ONE_TOKEN = ("query", "q_lin", "q_proj", "dense", "out_lin", "out_proj", "o_proj", "Wo")
"""Linear layers of an attention, by the last part of their names, that make a token's query or its output."""
ROTATIONS = ("position_embeddings",)
"""Arguments of a block: cosines and sines of each place, (rows or 1, length, n), that turn queries and keys."""


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """What is left out.

    Attributes:
        behind: The module behind which the first token goes on alone; None: all go on.
        narrow: Linear layers of the last attention that are computed for it alone.
        packed: The blocks, in which there is no padding; empty: there is.
    """

    behind: nn.Module | None = None
    narrow: tuple[nn.Module, ...] = ()
    packed: tuple[nn.Module, ...] = ()


def shortcuts(model: nn.Module, first: bool, padded: bool) -> list[Shortcut]:
    """What may be left out, the most first; nothing where none is known.

    Args:
        model: The backbone with its head.
        first: Whether a head may read the first token alone.
        padded: Whether batches may have padding.
    """
    try:
        names = blocks(model)
    except InputError:
        return []
    stack = tuple(model.get_submodule(name) for name in names)
    found = list(_of_first_token(stack[-1])) if first else []
    packed = [dataclasses.replace(its, packed=stack) for its in [*found[:1], Shortcut()]] if padded else []
    return [*packed, *found]


def _of_first_token(last: nn.Module) -> Iterator[Shortcut]:
    behind = next((getattr(last, name) for name in BEHIND_ATTENTION if hasattr(last, name)), None)
    if behind is None:
        return
    narrow = tuple(layer for name, layer in last.named_modules() if _of_one_token(name.split("."), layer))
    if narrow:
        yield Shortcut(behind, narrow)
    yield Shortcut(behind)


def _of_one_token(path: list[str], layer: nn.Module) -> bool:
    in_attention = any(word in part for part in path[:-1] for word in ATTENTION)
    return in_attention and path[-1] in OF_ONE_TOKEN and isinstance(layer, nn.Linear | LoraLayer)


@contextlib.contextmanager
def alone(shortcut: Shortcut | None, tokens: Tokens) -> Iterator[None]:
    """Only that is computed for as long as the context lasts.

    The narrow layers say for all tokens what they say for the first one, so that shapes stay. Where a residual of all
    tokens is added, the others are wrong, and nobody reads them.

    Args:
        shortcut: What is left out.
        tokens: Told before each forward pass what the batch is; its mode has to be on in it.
    """
    if shortcut is None:
        yield
        return
    before = {layer: vars(layer).get("forward") for layer in shortcut.narrow}
    with contextlib.ExitStack() as hooks:
        for hook in _hooks(shortcut, tokens):
            hooks.callback(hook.remove)
        try:
            for layer in before:
                layer.forward = functools.partial(_of_first, layer.forward, tokens)
            yield
        finally:
            for layer, forward in before.items():
                del layer.forward  # back to the class's
                if forward is not None:
                    layer.forward = forward


def _hooks(shortcut: Shortcut, tokens: Tokens) -> Iterator[Any]:
    """Registers what leads into the blocks and out of them."""

    def enter(module: nn.Module, args: Any) -> Any:
        return (tokens.pack(args[0]), *args[1:]) if args else None

    def turn(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        angles = {name: tuple(map(tokens.pack_too, kwargs[name])) for name in ROTATIONS if kwargs.get(name)}
        return args, {**kwargs, **angles}

    def first(module: nn.Module, args: Any, output: Any) -> Any:
        return _changed(tokens.alone, output)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return _changed(tokens.unpack, output)

    if shortcut.packed:
        yield shortcut.packed[0].register_forward_pre_hook(enter)
        yield from (block.register_forward_pre_hook(turn, with_kwargs=True) for block in shortcut.packed)
        yield shortcut.packed[-1].register_forward_hook(leave)
    if shortcut.behind is not None:
        yield shortcut.behind.register_forward_hook(first)


def _changed(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    """A module's output with its activations changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _of_first(forward: Callable[[Tensor], Tensor], tokens: Tokens, x: Tensor) -> Tensor:
    """What a layer makes of each row's first token, for all of its tokens; of the queries so made one suffices."""
    tokens.one_query = True
    return tokens.spread(forward(tokens.firsts(x)), x)
