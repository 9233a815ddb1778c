"""The settings of peft for an exported LoRA adapter: written to, and checked and read from, adapter_config.json.

peft reads ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` as regular expressions. A stranger's expression
could take for ever. This file therefore compares the card's texts with the names of the model's modules, and peft gets
expressions that are made of these names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.export.weights import Header
from flt.models.layer_names import inside

PREFIX = "base_model.model."
"""Prefix of all names in peft's file."""


def lora_config(
    ranks: Mapping[str, int], alphas: Mapping[str, Any], heads: Iterable[str], transposed: bool, source: str
) -> LoraConfig:
    """Returns peft's configuration for an adapter whose layers may have different ranks.

    Layers are given by patterns for the whole name, because peft's lists of names would also match other layers whose
    names end in the same way.

    Args:
        ranks: Full name of a layer -> its rank. Layers of rank 0 are left out.
        alphas: Full name of a layer -> its alpha, which may be a fraction.
        heads: Names of the modules that are exported whole.
        transposed: Whether the weights have the shape (in, out).
        source: Name of the base. Empty if it has none.
    """
    names = {re.escape(name): name for name, rank in ranks.items() if rank}
    first = next(iter(names.values()), None)
    return LoraConfig(
        r=ranks[first] if first else 1,
        lora_alpha=alphas[first] if first else 1,
        rank_pattern={f"^{pattern}": ranks[name] for pattern, name in names.items()},
        alpha_pattern={f"^{pattern}": alphas[name] for pattern, name in names.items()},
        target_modules="|".join(names),
        modules_to_save=list(heads) or None,
        fan_in_fan_out=transposed,
        base_model_name_or_path=source or None,
        inference_mode=True,
    )


def checked_config(card: Mapping[str, Any], header: Header, folder: Any, base: nn.Module) -> LoraConfig:
    """Returns peft's configuration for a card, after a comparison of the card, the weights' header and the base.

    Args:
        card: The card, whose keys and types were checked.
        header: Header of the adapter's weights.
        folder: Folder of the export, for messages.
        base: The base without adapters.

    Raises:
        InputError: A text of the card isn't the name of a module, or the header has other tensors than the base and
            the card say.
    """
    modules = dict(base.named_modules())
    names = _Names(modules)
    heads = list(dict.fromkeys(card.get("modules_to_save") or []))
    for name in heads:
        if not name or name not in modules:
            raise InputError.of("modules_to_save", name, "names of the base's modules")
    layers = [name for name in names.targets(card["target_modules"]) if not any(inside(name, h) for h in heads)]
    ranks = dict.fromkeys(layers, card["r"]) | names.matched("rank_pattern", card.get("rank_pattern", {}), layers)
    alphas = dict.fromkeys(layers, card["lora_alpha"])
    alphas |= names.matched("alpha_pattern", card.get("alpha_pattern", {}), layers)
    factors: dict[str, Tensor] = {}
    for name in layers:
        width, out = _sizes(name, modules[name])
        factors[f"{PREFIX}{name}.lora_A.weight"] = torch.empty(ranks[name], width, device="meta")
        factors[f"{PREFIX}{name}.lora_B.weight"] = torch.empty(out, ranks[name], device="meta")
    state = base.state_dict()
    wanted = {PREFIX + _file_name(name, set(layers)): value for name, value in state.items()} | factors
    saved = [key for key in modules if key.endswith(tuple(heads))] if heads else []  # as peft chooses them
    needed = {PREFIX + name for key in saved for name in state if inside(name, key)}
    header.check(folder, wanted, [*factors, *needed])
    if card["r"] > max(ranks.values(), default=1):
        raise InputError.of("r", card["r"], f"at most {max(ranks.values(), default=1)}, the largest rank of a layer")
    config = lora_config(
        ranks, alphas, heads, card.get("fan_in_fan_out", False), card.get("base_model_name_or_path") or ""
    )
    config.lora_dropout, config.task_type = card.get("lora_dropout", 0.0), card.get("task_type")
    return config


def _file_name(name: str, layers: set[str]) -> str:
    """Returns the name of a base's tensor inside peft's model: the tensors of an adapted layer move to base_layer."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.base_layer.{part}" if layer in layers else name


def _sizes(name: str, layer: nn.Module) -> tuple[int, int]:
    """Returns the numbers of inputs and outputs of a linear layer."""
    if isinstance(layer, Conv1D):
        width, out = layer.weight.shape
        return width, out
    if not isinstance(layer, nn.Linear):
        raise InputError.of("target_modules", name, "linear layers", f"it is {type(layer).__name__}")
    return layer.in_features, layer.out_features


class _Names:
    """The names of a model's modules, by each text that an export may write for them.

    Exports write a full name as re.escape does, in the patterns with ``^`` before it. Older exports and peft's own
    lists have plain names, which also stand for each longer name that ends with them after a dot.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        names = [name for name in modules if name]
        self.size = len(names)
        self.full = {re.escape(name): [name] for name in names}
        self.ends: dict[str, list[str]] = defaultdict(list)
        for name in names:
            parts = name.split(".")
            for start in range(len(parts)):
                self.ends[".".join(parts[start:])].append(name)

    def targets(self, texts: str | list[str]) -> list[str]:
        """Returns the names of the layers that ``target_modules`` names, in the card's order."""
        if isinstance(texts, list):
            return self._all("target_modules", texts, self._by_end)
        parts = re.split(r"(?<!\\)\|", texts) if texts else []
        return self._all("target_modules", parts, lambda part: self.full.get(part, []))

    def matched(self, key: str, values: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
        """Returns the values of ``rank_pattern`` or ``alpha_pattern`` by the full names of layers."""
        found: dict[str, Any] = {}
        for text in values:
            for name in self._all(key, [text], self._by_pattern, len(values)):
                found.setdefault(name, values[text])
        return {name: found[name] for name in layers if name in found}

    def _by_pattern(self, text: str) -> list[str]:
        return self.full.get(text[1:], []) if text.startswith("^") else self._by_end(text)

    def _by_end(self, text: str) -> list[str]:
        return self.ends.get(text, [])

    def _all(self, key: str, texts: list[str], names: Callable[[str], list[str]], size: int | None = None) -> list[str]:
        if (size or len(texts)) > self.size:
            raise InputError.of(key, f"{size or len(texts)} names", f"at most {self.size}, the modules of the base")
        found: dict[str, None] = {}
        for text in texts:
            if not (matched := names(text)):
                raise InputError.of(key, text, "names of the base's modules")
            found |= dict.fromkeys(matched)
        return list(found)
