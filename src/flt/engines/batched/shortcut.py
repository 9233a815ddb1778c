"""Shortcuts: ways to leave out computations whose results the head doesn't read.

The head reads no results at padding. If the head reads only the first token, it also doesn't read the results of the
other tokens after the last attention. In the last block, the feed-forward network takes two thirds of the computation,
and the queries and outputs of the attention take a sixth. A shortcut is used only after verify.py has checked that the
model's gradients are right with the shortcut.
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
"""Possible names of the submodule whose output enters the feed-forward network of a block.

These are the names in DistilBERT, ViT, ModernBERT and BERT, in this order.
"""
ATTENTION = ("attention", "attn")
"""Words that occur in the names of attention modules."""
QUERY_OR_OUTPUT = ("query", "q_lin", "q_proj", "dense", "out_lin", "out_proj", "o_proj", "Wo")
"""Last words in the names of the linear layers that compute queries or outputs in an attention module."""
ROTATIONS = ("position_embeddings",)
"""Names of arguments of a block that contain the cosines and sines of rotary position embeddings.

The cosines and the sines each have shape (rows, length, n) or (1, length, n).
"""


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Description of the parts of a model that aren't computed.

    Attributes:
        cut_after: Module after which only the first token of each row is computed; None if all tokens are computed.
        narrow: Linear layers of the last attention that are computed only for the first token of each row.
        packed: All blocks of the model, if padding isn't computed in them. Empty if padding is computed.
    """

    cut_after: nn.Module | None = None
    narrow: tuple[nn.Module, ...] = ()
    packed: tuple[nn.Module, ...] = ()


def possible_shortcuts(model: nn.Module, first: bool, padded: bool) -> list[Shortcut]:
    """Returns shortcuts that may leave a model's gradients unchanged. The shortcut that saves most comes first.

    Args:
        model: The backbone with its head.
        first: True if it is possible that the head reads only the first token.
        padded: True if batches may contain padding.
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
    """Returns a context in which the model computes with a shortcut.

    A layer in ``narrow`` returns the output of a row's first token for all tokens of the row, so that shapes stay the
    same. After the residual connection, the values of the other tokens are therefore wrong, but the head doesn't read
    them.

    Args:
        shortcut: The shortcut. If None, the model computes everything.
        tokens: Packer of the tokens. Before each forward pass, its ``begin`` has to be called. The forward pass has to
            run in the packer's context.
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
    """Registers the hooks of a shortcut, and yields their handles.

    The hooks pack the tokens before the first block, and unpack them after the last block. After the module
    ``cut_after``, the hooks keep only the first token of each row.
    """

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
    """Applies a function to a module's output. If the output is a tuple, only its first element is changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _forward_first(forward: Callable[[Tensor], Tensor], tokens: TokenPacker, x: Tensor) -> Tensor:
    """Computes a layer for each row's first token only, and copies the output to all tokens of the row."""
    tokens.one_query = True
    return tokens.spread(forward(tokens.first_tokens(x)), x)
