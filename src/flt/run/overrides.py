"""A configuration as the words of a command line that make it again. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.core.plain_yaml import escaped
from flt.run.compose import compose_config
from flt.run.conf_groups import choices, groups

_PLAIN = re.compile(r"[A-Za-z_./-][\w./*-]*")
"""Texts that Hydra reads without quotes, as no number."""
_WORDS = ("true", "false", "null", "nan", "inf", "-inf")
_MISSING = object()


def overrides_of(settings: Mapping[str, Any]) -> list[str]:
    """Returns the overrides with which a command line has these settings: recipe, choices, then keys that differ.

    Args:
        settings: Configuration of a run, as nested dictionaries.

    Raises:
        InputError: No command line has these settings, such as those of a run that ``flt.fit`` started.

    Example:
        >>> made = OmegaConf.to_container(compose_config(["algo=hafl", "data=dolly", "rounds=3"]))
        >>> overrides_of(made)
        ['algo=hafl', 'data=dolly', 'rounds=3']
    """
    chosen = _choices(settings)
    differing = {key: value for key, value in difference(settings).items() if key not in groups()}
    found = [*chosen, *(f"{key}={hydra_value(value)}" for key, value in differing.items())]
    if lacking := difference(settings, found):
        key, value = next(iter(lacking.items()))
        why = "it comes from flt.fit, from another version of flt, or has names that Hydra doesn't read"
        raise InputError.of(key, value, "a setting that a command line can make", why)
    return found


def difference(settings: Mapping[str, Any], overrides: list[str] | None = None) -> dict[str, Any]:
    """Returns dotted key -> value of the settings that differ from what the recipe, data, model and parts have.

    A part that isn't the recipe's own is named by its group, such as ``rule``. A key that the settings lack, or whose
    place another version of flt gave to something else, is left out.

    Args:
        settings: Configuration of a run, as nested dictionaries.
        overrides: Overrides to compare with. None: the recipe, and the choices of which the settings consist.
    """
    algo = settings.get("algo")
    named = [f"algo={algo}"] if algo in choices("algo") else []
    usual = _flat(compose_config(_choices(settings) if overrides is None else overrides))
    recipe = _flat(compose_config(named))
    found = {}
    for key, value in _flat(settings).items():
        group, _, name = key.rpartition(".")
        if name == "name" and group in groups():
            if value != recipe.get(key) and overrides is None:
                found[group] = value
        elif key not in ("algo", "resume") and not _same(value, usual.get(key, _MISSING)):
            found[key] = value
    return found


def hydra_value(value: Any) -> str:
    """Returns a value as it is written on a command line, where OmegaConf finds no interpolation in it.

    Example:
        >>> hydra_value([1, "a b"]), hydra_value(None), hydra_value({"sci": ["sci.*"]})
        ("[1,'a b']", 'null', '{sci:[sci.*]}')
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # A backslash before a quote, or at the end, would escape the quote.
    quoted = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(escaped(value)))
    return f"'{quoted}'"


def _choices(settings: Mapping[str, Any]) -> list[str]:
    """Returns the overrides that choose the recipe, and the parts, data, model and so on that it doesn't choose."""
    algo = settings.get("algo")
    found = [f"algo={algo}"] if algo in choices("algo") else []
    usual = compose_config(found)
    for group in groups():
        part = settings.get(group)
        name = part.get("name") if isinstance(part, Mapping) else None
        if name in choices(group) and OmegaConf.select(usual, f"{group}.name") != name:
            found.append(f"{group}={name}")
    return found


def _flat(settings: Any) -> dict[str, Any]:
    """Returns dotted key -> value. A list and an empty mapping are values."""

    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    return dict(walk(OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings, ""))


def _same(left: Any, right: Any) -> bool:
    """Returns whether two values are the same setting. A whole number may be written as a fraction."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)
