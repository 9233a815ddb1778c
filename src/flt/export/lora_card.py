"""The settings of peft for an exported LoRA adapter: written to, and checked and read from, adapter_config.json.

peft reads ``target_modules``, ``rank_pattern`` and ``alpha_pattern`` as regular expressions. A stranger's expression
could take for ever. This file therefore compares the card's texts with the names of the model's modules, and peft gets
expressions that are made of these names. If ``target_modules`` is an expression, nothing evaluates it: the names of the
tensors in the weights' header say which layers have LoRA.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.export.weights import Header, state_of
from flt.models.layer_names import inside
from flt.models.peft_modules import unfit

PREFIX = "base_model.model."
"""Prefix of all names in peft's file."""
FACTORS = (".lora_A.weight", ".lora_B.weight")
"""Ends of the names of a layer's factors in peft's file."""
BY_PEFT = "such an adapter can be loaded by peft itself"
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,1000}")
"""Names that a module could have. peft ignores those that the base lacks; any other text may be a pattern."""


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
        InputError: A text of the card is a pattern where names are needed, or the header has other tensors than the
            base and the card say, or the adapter has a part that only peft can load.
    """
    _check_combinations(card)
    modules, state = dict(base.named_modules()), state_of(base)
    names = _Names(modules)
    heads = names.saved(card.get("modules_to_save") or [])
    saved = [key for key in modules if key.endswith(tuple(heads))] if heads else []  # as peft chooses them
    layers = [name for name in _adapted(card, header, names) if not any(inside(name, head) for head in saved)]
    ranks = dict.fromkeys(layers, card["r"]) | names.matched("rank_pattern", card.get("rank_pattern", {}), layers)
    alphas = dict.fromkeys(layers, card["lora_alpha"])
    alphas |= names.matched("alpha_pattern", card.get("alpha_pattern", {}), layers)
    factors = _factors(ranks, modules)
    wanted = {PREFIX + _file_name(name, set(layers)): value for name, value in state.items()} | factors
    needed = {PREFIX + name for key in saved for name in state if inside(name, key)}
    if card.get("bias") == "lora_only":
        needed |= {f"{PREFIX}{name}.base_layer.bias" for name in layers if f"{name}.bias" in state}
    for name in header.shapes:
        if ".lora_" in name and name not in wanted and not name.endswith(FACTORS):
            raise InputError.of("folder", folder, "lora_A and lora_B of linear layers", f"{name} is none; {BY_PEFT}")
    header.check(folder, wanted, [*factors, *needed])
    config = lora_config(
        ranks, alphas, heads, card.get("fan_in_fan_out", False), card.get("base_model_name_or_path") or ""
    )
    config.lora_dropout, config.bias = card.get("lora_dropout", 0.0), card.get("bias", "none")
    config.use_rslora = card.get("use_rslora", False)
    config.task_type = "CAUSAL_LM" if card.get("task_type") == "CAUSAL_LM" else None  # the others change no output
    return config


def _check_combinations(card: Mapping[str, Any]) -> None:
    """Raises an InputError for settings that peft doesn't use together."""
    layers, start = card.get("layers_to_transform"), card.get("init_lora_weights")
    if isinstance(card["target_modules"], str) and layers is not None:
        raise InputError.of("layers_to_transform", layers, "null, because target_modules is a text")
    if card.get("eva_config") and start != "eva":
        raise InputError.of("eva_config", "an object", "null, because init_lora_weights isn't eva")


def _adapted(card: Mapping[str, Any], header: Header, names: _Names) -> list[str]:
    """Returns the names of the layers that have LoRA.

    If ``target_modules`` holds names, it says which layers these are. If it is a pattern, or if
    ``layers_to_transform`` leaves some of them out, the tensors in the weights' header say it.
    """
    named = names.targets(card["target_modules"])
    if named is not None and card.get("layers_to_transform") in (None, []):
        return named
    held = {name.removeprefix(PREFIX).removesuffix(FACTORS[0]) for name in header.shapes if name.endswith(FACTORS[0])}
    return [name for name in (names.names if named is None else named) if name in held]


def _factors(ranks: Mapping[str, int], modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Returns the factors of layers by their names in peft's file. The factors have a shape, but no memory."""
    factors: dict[str, Tensor] = {}
    for name, rank in ranks.items():
        width, out, kernel = _sizes(name, modules[name])
        factors[f"{PREFIX}{name}{FACTORS[0]}"] = torch.empty(rank, width, *kernel, device="meta")
        factors[f"{PREFIX}{name}{FACTORS[1]}"] = torch.empty(out, rank, *(1 for _ in kernel), device="meta")
    return factors


def _file_name(name: str, layers: set[str]) -> str:
    """Returns the name of a base's tensor inside peft's model: the tensors of an adapted layer move to base_layer."""
    layer, _, part = name.rpartition(".")
    return f"{layer}.base_layer.{part}" if layer in layers else name


def _sizes(name: str, layer: nn.Module) -> tuple[int, int, tuple[int, ...]]:
    """Returns the numbers of inputs and outputs of a layer, and the kernel of a convolution."""
    if problem := unfit(nn.Module(), layer):
        raise InputError.of("target_modules", name, "linear and convolutional layers", f"it is {problem}; {BY_PEFT}")
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features, ()
    first, second, *kernel = layer.get_parameter("weight").shape
    return (first, second, ()) if isinstance(layer, Conv1D) else (second, first, tuple(kernel))


class _Names:
    """The names of a model's modules, by each text that an export may write for them.

    Exports of flt write a full name as re.escape does, in the patterns with ``^`` before it. peft's own lists have
    plain names, which also stand for each longer name that ends with them after a dot.
    """

    def __init__(self, modules: Iterable[str]) -> None:
        self.names = [name for name in modules if name]
        self.most = max(1000, len(self.names))
        self.full = {re.escape(name): name for name in self.names}
        self.ends: dict[str, list[str]] = defaultdict(list)
        for name in self.names:
            parts = name.split(".")
            for start in range(len(parts)):
                self.ends[".".join(parts[start:])].append(name)

    def targets(self, texts: str | list[str]) -> list[str] | None:
        """Returns the names of the layers that ``target_modules`` names. None if it is a pattern of another kind."""
        if isinstance(texts, list):
            self._check("target_modules", texts, self.ends)
            return list(dict.fromkeys(name for text in texts for name in self.ends.get(text, [])))
        parts = re.split(r"(?<!\\)\|", texts) if texts else []
        if any(part not in self.full for part in parts):
            return None
        return list(dict.fromkeys(self.full[part] for part in parts))

    def matched(self, key: str, values: Mapping[str, Any], layers: Iterable[str]) -> dict[str, Any]:
        """Returns the values of ``rank_pattern`` or ``alpha_pattern`` by the full names of layers."""
        anchored = {f"^{text}": [name] for pattern, name in self.full.items() for text in (pattern, name)}
        known = self.ends | anchored
        self._check(key, values, known)
        found: dict[str, Any] = {}
        for text in values:
            for name in known.get(text, []):
                found.setdefault(name, values[text])  # peft takes the first one that matches
        return {name: found[name] for name in layers if name in found}

    def saved(self, texts: list[str]) -> list[str]:
        """Returns the texts of ``modules_to_save`` with which at least one module's name ends."""
        self._check("modules_to_save", texts, self.ends)
        return [text for text in dict.fromkeys(texts) if any(name.endswith(text) for name in self.names)]

    def _check(self, key: str, texts: Collection[str], known: Container[str]) -> None:
        """Checks that texts are names, and not too many. A name may be unknown."""
        if len(texts) > self.most:
            raise InputError.of(key, f"{len(texts)} names", f"at most {self.most}")
        for text in texts:
            if text not in known and not _NAME.fullmatch(text):
                raise InputError.of(key, text, f"names of the base's modules; {BY_PEFT}")
