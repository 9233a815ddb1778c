"""Shortcuts: parts of the model that no head reads, and that therefore needn't be computed.

These are padding, and after the last attention all tokens except the one that the head reads. The feed-forward network
is two thirds of the last block, and the queries and outputs of the other tokens are half of its attention. No shortcut
is taken on a guess: ``verify`` compares the gradients of the model with and without it.
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
from flt.engines.batched.token_packing import TokenPacker
from flt.models.blocks import blocks

AFTER_ATTENTION = ("sa_layer_norm", "layernorm_after", "mlp_norm", "attention")
"""Children of a block whose output enters its feed-forward network: in DistilBERT, ViT, ModernBERT and BERT."""
ATTENTION = ("attention", "attn")
QUERY_OR_OUTPUT = ("query", "q_lin", "q_proj", "dense", "out_lin", "out_proj", "o_proj", "Wo")
"""Last part of the names of linear layers in an attention that compute a token's query or output."""
ROTATIONS = ("position_embeddings",)
"""Arguments of a block: cosines and sines of each position, (rows or 1, length, n), that rotate queries and keys."""


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Parts of the model that aren't computed.

    Attributes:
        cut_after: Module after which only the first token of each row is computed; None: all tokens are.
        narrow: Linear layers of the last attention that are computed for the first token only.
        packed: The blocks of the model, if they compute no padding; empty: they compute it.
    """

    cut_after: nn.Module | None = None
    narrow: tuple[nn.Module, ...] = ()
    packed: tuple[nn.Module, ...] = ()


def possible_shortcuts(model: nn.Module, first: bool, padded: bool) -> list[Shortcut]:
    """Returns the shortcuts that may be right for a model, the most useful first.

    Args:
        model: The backbone with its head.
        first: True if the head may read the first token only.
        padded: True if batches may have padding.
    """
    try:
        names = blocks(model)
    except InputError:
        return []
    stack = tuple(model.get_submodule(name) for name in names)
    found = list(_first_token_shortcuts(stack[-1])) if first else []
    packed = [dataclasses.replace(shortcut, packed=stack) for shortcut in [*found[:1], Shortcut()]] if padded else []
    return [*packed, *found]


def _first_token_shortcuts(last: nn.Module) -> Iterator[Shortcut]:
    cut_after = next((getattr(last, name) for name in AFTER_ATTENTION if hasattr(last, name)), None)
    if cut_after is None:
        return
    narrow = tuple(layer for name, layer in last.named_modules() if _is_query_or_output(name.split("."), layer))
    if narrow:
        yield Shortcut(cut_after, narrow)
    yield Shortcut(cut_after)


def _is_query_or_output(path: list[str], layer: nn.Module) -> bool:
    in_attention = any(word in part for part in path[:-1] for word in ATTENTION)
    return in_attention and path[-1] in QUERY_OR_OUTPUT and isinstance(layer, nn.Linear | LoraLayer)


@contextlib.contextmanager
def apply_shortcut(shortcut: Shortcut | None, tokens: TokenPacker) -> Iterator[None]:
    """Context in which the model computes with a shortcut.

    The narrow layers return the first token's output for all tokens, so that shapes stay the same. Where a residual of
    all tokens is added, the other tokens become wrong, but no head reads them.

    Args:
        shortcut: The shortcut; None: the model computes everything.
        tokens: Packs the tokens; its ``begin`` is called before each forward pass, which runs inside its context.
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
                layer.forward = functools.partial(_forward_first, layer.forward, tokens)
            yield
        finally:
            for layer, forward in before.items():
                del layer.forward  # restores the method of the class
                if forward is not None:
                    layer.forward = forward


def _hooks(shortcut: Shortcut, tokens: TokenPacker) -> Iterator[Any]:
    """Registers hooks that pack the tokens before the blocks, and unpack or cut them afterwards."""

    def enter(module: nn.Module, args: Any) -> Any:
        return (tokens.pack(args[0]), *args[1:]) if args else None

    def pack_angles(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        angles = {name: tuple(map(tokens.pack_positions, kwargs[name])) for name in ROTATIONS if kwargs.get(name)}
        return args, {**kwargs, **angles}

    def first(module: nn.Module, args: Any, output: Any) -> Any:
        return _changed(tokens.keep_first, output)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        return _changed(tokens.unpack, output)

    if shortcut.packed:
        yield shortcut.packed[0].register_forward_pre_hook(enter)
        yield from (block.register_forward_pre_hook(pack_angles, with_kwargs=True) for block in shortcut.packed)
        yield shortcut.packed[-1].register_forward_hook(leave)
    if shortcut.cut_after is not None:
        yield shortcut.cut_after.register_forward_hook(first)


def _changed(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Returns a module's output with changed activations."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _forward_first(forward: Callable[[Tensor], Tensor], tokens: TokenPacker, x: Tensor) -> Tensor:
    """Computes a layer for each row's first token, and copies the output to all tokens: one query suffices."""
    tokens.one_query = True
    return tokens.spread(forward(tokens.first_tokens(x)), x)
