"""The frozen prefix of a model: the blocks below the lowest adapted block.

For a given example, the output of these blocks never changes. It is therefore computed only once.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.blocks import blocks
from flt.protocol.entries import FIXED
from flt.protocol.layout import BUFFER, Layout

log = logging.getLogger(__name__)

KEY = "prefix"
"""Key under which a batch contains the activations of the prefix (batch, tokens, d)."""

IRRELEVANT_KEYS = ("id2label", "label2id", "num_labels", "problem_type", "architectures", "_name_or_path")
"""Keys of a model's config that don't affect the blocks."""


class _PrefixComputed(Exception):
    """Exception that ends a forward pass as soon as the activations of the prefix are computed."""


class Prefix:
    """Lower blocks of a model (the prefix), which are skipped for a batch that contains their activations.

    If a batch has a tensor ``prefix`` (batch, tokens, d), every lower block returns this tensor and computes nothing.
    Otherwise all blocks compute as usual. Nothing else in the model changes.

    Args:
        model: The model. It takes a batch's tensors by name.
        lower: Names of the lower blocks, in order, beginning with the model's first block.
    """

    def __init__(self, model: nn.Module, lower: list[str]) -> None:
        self.model, self.lower = model, lower
        self.current: Tensor | None = None
        self.as_tuple = False
        """True for a model whose blocks return a tuple with the activations as its first element."""
        self._bypasses = [_Bypass(self, model.get_submodule(name)) for name in lower]
        model.register_forward_pre_hook(self._take_activations, with_kwargs=True)
        model.register_forward_hook(self._drop_activations, always_call=True)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Raises an InputError if the upper blocks need more from the lower blocks than their activations.

        Args:
            batch: Any batch without the key ``prefix``.

        Raises:
            InputError: The logits computed from the activations differ from the model's logits, or can't be computed.
        """
        expected = self._logits(batch)
        activations = self.activations(batch)
        try:
            same = activations.dim() == 3 and torch.allclose(
                self._logits({**batch, KEY: activations}), expected, atol=1e-3
            )
        except Exception as error:  # a model that needs more than activations can raise any error
            log.debug("%s with the prefix: %s", type(self.model).__name__, error)
            same = False
        if not same:
            name = type(getattr(self.model, "base_model", self.model)).__name__
            why = f"the blocks of {name} hand on more than activations"
            raise InputError.of("prefix_cache", "on", "off", why)

    @torch.no_grad()
    def _logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.model(**batch).logits

    @torch.no_grad()
    def activations(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the output (batch, tokens, d) of the uppermost lower block. The upper blocks aren't computed."""
        outputs: list[Tensor] = []

        def capture_and_stop(block: nn.Module, inputs: Any, output: Any) -> None:
            self.as_tuple = isinstance(output, tuple)
            outputs.append(output[0] if self.as_tuple else output)
            raise _PrefixComputed

        handle = self.model.get_submodule(self.lower[-1]).register_forward_hook(capture_and_stop)
        with contextlib.suppress(_PrefixComputed):
            self.model(**batch)
        handle.remove()
        return outputs[0]

    def digest(self) -> str:
        """Returns a hash of the architecture and of all weights except those of the upper blocks and the head.

        Runs that differ only in the weights of the upper blocks and the head share their cached activations.
        """
        inner = getattr(self.model, "base_model", self.model)
        name_prefix = next(f"{name}." if name else "" for name, sub in self.model.named_modules() if sub is inner)
        lower = [f"{name.removeprefix(name_prefix)}." for name in self.lower]
        stack = lower[0].rstrip(".").rpartition(".")[0] + "."
        digest = hashlib.sha256(repr((type(inner).__name__, lower, _architecture(inner))).encode())
        for name, value in sorted(inner.state_dict().items()):
            if not name.startswith(stack) or name.startswith(tuple(lower)):
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _take_activations(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.current = kwargs.pop(KEY, None)
        return args, kwargs

    def _drop_activations(self, model: nn.Module, args: Any, output: Any) -> None:
        self.current = None


class _Bypass:
    """Replacement for a block's ``forward``. Returns the batch's activations or, if it has none, runs the block."""

    def __init__(self, prefix: Prefix, block: nn.Module) -> None:
        self.prefix = prefix
        self.forward: Callable[..., Any] = block.forward
        block.forward = self.__call__  # only the method is replaced, so the module keeps its class and parameter names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = self.prefix.current
        if current is None:
            return self.forward(*args, **kwargs)
        return (current,) if self.prefix.as_tuple else current


def _architecture(model: nn.Module) -> str:
    """Returns the model's config as text, without the keys that don't affect the blocks."""
    config = getattr(model, "config", None)
    settings = config.to_dict() if config is not None else {}
    attention = getattr(config, "_attn_implementation", None)
    return repr((attention, sorted((key, value) for key, value in settings.items() if key not in IRRELEVANT_KEYS)))


def lower_blocks(model: nn.Module, layout: Layout, name_prefix: str) -> list[str]:
    """Returns the names of all blocks below the lowest block that has a tensor of the adapter or the head.

    Args:
        model: The model with its adapters attached.
        layout: Layout of the whole module. Its tensor names begin with ``name_prefix``.
        name_prefix: Prefix of the model's tensor names inside the module, such as ``model.``.

    Raises:
        InputError: There is no lower block, or the adapter or the head has a tensor before the blocks.
    """
    names = blocks(model)
    stack = names[0].rpartition(".")[0]
    changing = [
        name.removeprefix(name_prefix)
        for name, entry in layout.entries.items()
        if entry.role not in ("base", BUFFER, FIXED)
    ]
    changing_blocks = [i for i, block in enumerate(names) if any(name.startswith(f"{block}.") for name in changing)]
    lowest = min(changing_blocks, default=len(names))
    if lowest == 0:
        allowed = f"off, or model.adapt_layers=top1 to top{len(names) - 1}" if len(names) > 1 else "off"
        raise InputError.of("prefix_cache", "on", allowed, "the adapter begins in the first block: nothing lies below")
    if outside := [
        name for name in changing if not name.startswith(f"{stack}.") and _precedes_blocks(model, name, stack)
    ]:
        raise InputError.of("prefix_cache", "on", "off", f"{outside[0]} trains, and the blocks get what it yields")
    return names[:lowest]


def _precedes_blocks(model: nn.Module, name: str, stack: str) -> bool:
    """Returns whether a tensor's module is registered before the blocks, as embeddings are in transformers models."""
    order = [module for module, _ in model.named_modules()]
    owner = name.rpartition(".")[0]
    return owner in order and order.index(owner) < order.index(stack)
