"""Reading of an export's JSON files ("cards") by an allowlist of keys, types and values.

An export may come from a stranger. Nothing of a card reaches peft or transformers except values that these functions
have checked. No name in a card is imported, and no text of a card is compiled as a pattern.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flt.core.errors import InputError
from flt.models.peft_modules import HARMLESS_STARTS

LARGEST_CARD = 2**24
"""Largest size of a card in bytes."""

Rule = tuple[Callable[[Any], bool], str]
"""A function that returns whether a value is allowed, and a description of the allowed values."""


def integer(low: int, high: int = 2**31 - 1) -> Rule:
    """Allows integers from low to high. True and false are no integers."""
    return lambda value: type(value) is int and low <= value <= high, f"an integer from {low} to {high}"


def number(low: float, high: float) -> Rule:
    """Allows numbers that are larger than low and at most high. NaN isn't allowed."""
    return lambda value: type(value) in (int, float) and low < value <= high, f"a number > {low} and <= {high}"


def text(longest: int = 4096) -> Rule:
    """Allows strings of at most so many characters."""
    return lambda value: isinstance(value, str) and len(value) <= longest, f"a text of at most {longest} characters"


def one_of(*allowed: Any) -> Rule:
    """Allows these values, of these types."""
    return lambda value: any(type(value) is type(a) and value == a for a in allowed), ", ".join(
        map(json.dumps, allowed)
    )


def list_of(rule: Rule) -> Rule:
    """Allows lists whose elements the rule allows."""
    return lambda value: isinstance(value, list) and all(map(rule[0], value)), f"a list; each element is {rule[1]}"


def dict_of(rule: Rule) -> Rule:
    """Allows dictionaries whose values the rule allows."""
    return lambda value: isinstance(value, dict) and all(map(rule[0], value.values())), f"name: {rule[1]}"


def either(*rules: Rule) -> Rule:
    """Allows what at least one of the rules allows."""
    return lambda value: any(allows(value) for allows, _ in rules), "; or ".join(words for _, words in rules)


def with_words(rule: Rule, words: str) -> Rule:
    """Adds words to the description of a rule."""
    return rule[0], rule[1] + words


def optional(rule: Rule) -> Rule:
    """Allows null, and what the rule allows."""
    return either(one_of(None), rule)


OBJECT: Rule = (lambda value: isinstance(value, dict), "an object with keys and values")
BOOL = one_of(False, True)
NAME = text(1000)
FACTOR = number(0, 2**40)


def _off(value: Any) -> bool:
    return value is None or value is False or value == {} or value == []


PEFT_ONLY = "; load an adapter with another value by peft itself"
"""End of the description of a rule that refuses settings with which peft could load the adapter."""
UNUSED: Rule = (_off, f"null or false{PEFT_ONLY}")
"""Rule of settings of peft that flt doesn't support."""


def _is_inner_folder(value: Any) -> bool:
    """Returns whether a text is a relative path that stays inside the folder that it starts from."""
    if not isinstance(value, str) or len(value) > 1000 or "\\" in value:
        return False
    return not set(value.split("/")) & {"", ".", ".."}


def _is_plain(value: Any) -> bool:
    """Returns whether a text is short and has no meaning for OmegaConf, such as ``${oc.env:HOME}`` or ``???``."""
    return isinstance(value, str) and len(value) <= 1000 and not set(value) & set("${}?")


PLAIN: Rule = (_is_plain, "a text without $, {, } and ?")
FOLDER: Rule = (lambda value: _is_inner_folder(value) and "/" not in value, "the name of a folder")

TASKS = ("SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
"""peft's types of tasks."""

LORA: dict[str, Rule] = {
    "peft_type": one_of("LORA"),
    "task_type": one_of(None, *TASKS),
    "base_model_name_or_path": optional(text()),
    "r": integer(1, 2**16),
    "lora_alpha": FACTOR,
    "lora_dropout": (lambda value: type(value) in (int, float) and 0 <= value < 1, "a number in [0, 1)"),
    "rank_pattern": dict_of(integer(1)),
    "alpha_pattern": dict_of(FACTOR),
    "target_modules": either((lambda value: isinstance(value, str), "names joined by |"), list_of(NAME)),
    "modules_to_save": optional(list_of(NAME)),
    "fan_in_fan_out": BOOL,
    "inference_mode": BOOL,
    "bias": with_words(one_of("none", "lora_only"), PEFT_ONLY),
    "use_rslora": BOOL,
    "layers_to_transform": optional(either(integer(0), list_of(integer(0)))),
    "init_lora_weights": with_words(one_of(False, True, *HARMLESS_STARTS), PEFT_ONLY),
    "eva_config": either(UNUSED, dict_of(either(BOOL, number(-(2**31), 2**31)))),
    "auto_mapping": optional(dict_of(NAME)),
    "revision": optional(NAME),
    "peft_version": optional(NAME),
    "megatron_core": one_of(None, "megatron.core"),  # peft's default; it isn't passed on
    "qalora_group_size": integer(1),
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying", "exclude_modules",
            "kasa_config", "layer_replication", "layers_pattern", "loftq_config", "lora_bias", "lora_ga_config",
            "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora",
            "use_dora", "use_qalora", "velora_config",
        ),
        UNUSED,
    ),
}  # fmt: skip
"""Keys of adapter_config.json: all settings of peft's LoraConfig.

Some settings are allowed only because peft writes them, and are never passed on: ``auto_mapping``, ``revision``,
``peft_version``, ``init_lora_weights`` and ``eva_config``.
"""

OWN: dict[str, Rule] = {
    "source": text(),
    "adapter": dict_of(either(one_of(None, False, True), integer(-1), PLAIN)),
    "adapt_layers": text(20),
    "classes": optional(integer(1)),
    "label_counts": list_of(integer(0, 2**53)),
    "folder": either(one_of(""), FOLDER),
    "several_tasks": one_of(True),
}
"""Keys of flt_adapter.json."""
OWN_NEEDED = tuple(key for key in OWN if key != "several_tasks")
"""Keys that each flt_adapter.json has. The other one is left out unless jobs had several tasks."""

BASE_CARD: dict[str, Rule] = {
    "architecture": NAME,
    "config": OBJECT,
    "drawn": list_of(NAME),
    "package": optional((_is_inner_folder, "a folder inside a package, such as name/folder")),
    "random": OBJECT,
    "folder": FOLDER,
}
RANDOM: dict[str, Rule] = {"seed": integer(0, 2**64 - 1), "classes": optional(integer(1)), "source": text()}
CONFIG: dict[str, Rule] = {"num_labels": optional(integer(0)), "pad_token_id": optional(integer(-1))}
"""Keys of flt_base.json, and of its entries ``random`` and ``config``."""

CLASS_NAMES = dict_of(list_of(NAME))
"""Content of classes.json."""
LABELS: dict[str, Rule] = {"texts": list_of(text(2**16)), "scale": FACTOR}
"""Keys of label_names.json."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. NaN and infinity, which aren't JSON, are refused.

    Raises:
        InputError: The file is too large, or doesn't contain an object.
        ValueError: The file isn't JSON.
    """
    if (size := path.stat().st_size) > LARGEST_CARD:
        raise InputError.of(path.name, f"{size} bytes", f"at most {LARGEST_CARD} bytes")
    card = json.loads(path.read_text("utf-8"), parse_constant=_no_number, parse_float=_finite)
    if not isinstance(card, dict):
        raise InputError.of(path.name, type(card).__name__, "an object with keys and values")
    return card


def _no_number(value: str) -> float:
    raise ValueError(f"{value} is no number")


def _finite(value: str) -> float:
    return found if math.isfinite(found := float(value)) else _no_number(value)


def check(name: str, card: Mapping[str, Any], rules: Mapping[str, Rule], needed: tuple[str, ...] = ()) -> None:
    """Checks the keys and values of a card.

    Args:
        name: Name of the card, for the message.
        card: The card.
        rules: Key -> allowed values.
        needed: Keys that must be there.

    Raises:
        InputError: A key isn't allowed or missing, or a value isn't allowed.
    """
    for key, value in card.items():
        if key not in rules:
            raise InputError.of(name, key, rules, "there is no such key")
        allows, allowed = rules[key]
        if not allows(value):
            raise InputError.of(f"{name}: {key}", value, allowed)
    for key in needed:
        if key not in card:
            raise InputError.of(name, "an object", f"one with the key {key}", f"{key} is missing")


def read(path: Path, rules: Mapping[str, Rule], *needed: str) -> dict[str, Any]:
    """Reads a card, and checks it, see :func:`check`."""
    card = read_json(path)
    check(path.name, card, rules, needed)
    return card
