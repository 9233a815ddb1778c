"""The frozen prefix: the blocks below the lowest adapted one, whose activations never change and are computed once."""

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
from flt.protocol.layout import Layout

log = logging.getLogger(__name__)

KEY = "prefix"
"""Under this name a batch carries the activations (batch, tokens, d)."""

OUTSIDE = ("id2label", "label2id", "num_labels", "problem_type", "architectures", "_name_or_path")
"""Keys of a config that the blocks don't depend on."""


class _Reached(Exception):  # ends a forward pass that has yielded what it was run for
    pass


class Prefix:
    """The lower blocks of a model, which are skipped for a batch that brings their activations along.

    While a batch with ``prefix`` (batch, tokens, d) passes the model, every lower block returns these activations
    instead of computing; a batch without them takes the usual way. Nothing else of the model changes.

    Args:
        model: Called with a batch's tensors by name.
        lower: Names of the blocks that are skipped, from the first on.
    """

    def __init__(self, model: nn.Module, lower: list[str]) -> None:
        self.model, self.lower = model, lower
        self.current: Tensor | None = None
        self.as_tuple = False
        """Whether a block returns its activations as the first of a tuple, as some models' blocks do."""
        self._bypasses = [_Bypass(self, model.get_submodule(name)) for name in lower]
        model.register_forward_pre_hook(self._take, with_kwargs=True)
        model.register_forward_hook(self._drop, always_call=True)

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Refuses models that can't do without what their lower blocks return besides activations.

        Args:
            batch: Any batch, without ``prefix``.

        Raises:
            InputError: The logits with the activations brought along aren't those without.
        """
        expected = self._logits(batch)
        activations = self.activations(batch)
        try:
            same = activations.dim() == 3 and torch.allclose(
                self._logits({**batch, KEY: activations}), expected, atol=1e-3
            )
        except Exception as error:  # whatever a model raises whose blocks hand on more than activations
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
        """What the uppermost of the lower blocks yields (batch, tokens, d); the blocks above aren't computed."""
        found: list[Tensor] = []

        def catch(block: nn.Module, inputs: Any, output: Any) -> None:
            self.as_tuple = isinstance(output, tuple)
            found.append(output[0] if self.as_tuple else output)
            raise _Reached

        handle = self.model.get_submodule(self.lower[-1]).register_forward_hook(catch)
        with contextlib.suppress(_Reached):
            self.model(**batch)
        handle.remove()
        return found[0]

    def digest(self) -> str:
        """Of everything that the activations depend on: the architecture, and the weights but for the blocks above.

        The head isn't among them, so runs that differ in it alone share their activations.
        """
        inner = getattr(self.model, "base_model", self.model)
        shell = next(f"{name}." if name else "" for name, sub in self.model.named_modules() if sub is inner)
        lower = [f"{name.removeprefix(shell)}." for name in self.lower]
        stack = lower[0].rstrip(".").rpartition(".")[0] + "."
        found = hashlib.sha256(repr((type(inner).__name__, lower, _architecture(inner))).encode())
        for name, value in sorted(inner.state_dict().items()):
            if not name.startswith(stack) or name.startswith(tuple(lower)):
                found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                found.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _take(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.current = kwargs.pop(KEY, None)
        return args, kwargs

    def _drop(self, model: nn.Module, args: Any, output: Any) -> None:
        self.current = None


class _Bypass:
    """Takes the place of a block's ``forward``."""

    def __init__(self, prefix: Prefix, block: nn.Module) -> None:
        self.prefix = prefix
        self.forward: Callable[..., Any] = block.forward
        block.forward = self.__call__  # the module's class, and the names in it, stay what they are

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        current = self.prefix.current
        if current is None:
            return self.forward(*args, **kwargs)
        return (current,) if self.prefix.as_tuple else current


def _architecture(model: nn.Module) -> str:
    """The config without what only a head or a user needs to know."""
    config = getattr(model, "config", None)
    known = config.to_dict() if config is not None else {}
    attention = getattr(config, "_attn_implementation", None)
    return repr((attention, sorted((key, value) for key, value in known.items() if key not in OUTSIDE)))


def lower_blocks(model: nn.Module, layout: Layout, shell: str) -> list[str]:
    """Names of the blocks below the lowest one that holds anything but frozen weights.

    Args:
        model: The model with its adapters attached.
        layout: Roles of the tensors; their names begin with ``shell``.
        shell: Prefix of the model's names inside the module, such as ``model.``.

    Raises:
        InputError: There is no such block, or something below the blocks trains.
    """
    names = blocks(model)
    stack = names[0].rpartition(".")[0]
    moving = [name.removeprefix(shell) for name, entry in layout.entries.items() if entry.role != "base"]
    touched = [i for i, block in enumerate(names) if any(name.startswith(f"{block}.") for name in moving)]
    lowest = min(touched, default=len(names))
    if lowest == 0:
        allowed = f"off, or model.adapt_layers=top1 to top{len(names) - 1}" if len(names) > 1 else "off"
        raise InputError.of("prefix_cache", "on", allowed, "the adapter begins in the first block: nothing lies below")
    if outside := [name for name in moving if not name.startswith(f"{stack}.") and _feeds(model, name, stack)]:
        raise InputError.of("prefix_cache", "on", "off", f"{outside[0]} trains, and the blocks get what it yields")
    return names[:lowest]


def _feeds(model: nn.Module, name: str, stack: str) -> bool:
    """Whether a tensor lies before the blocks: transformers keeps embeddings in front of them and heads behind."""
    order = [module for module, _ in model.named_modules()]
    owner = name.rpartition(".")[0]
    return owner in order and order.index(owner) < order.index(stack)
