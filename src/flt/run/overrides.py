"""A configuration as the words of a command line that make it again. Nothing here imports torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.core.plain_yaml import escaped
from flt.run.compose import MAPPINGS, compose_config
from flt.run.conf_groups import choices, groups

_PLAIN = re.compile(r"(?:[A-Za-z_/]|\.\.?/)[A-Za-z0-9_./@%+*-]*")
"""Texts that Hydra reads without quotes, as no number."""
_MARKS = re.compile(r"[\\()\[\]{}:=,]")
"""Pattern of what a key of a mapping can hold only after a backslash. Hydra reads no quotes there."""
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
    differing = {key: value for key, value in difference(settings).items() if key not in groups()}
    found = [*_choices(settings), *(f"{key}={hydra_value(value)}" for key, value in differing.items())]
    given, made = dict(_flat(settings)), dict(_flat(_composed(found)))
    names = {key: None for key in made if key.startswith(tuple(f"{mapping}." for mapping in MAPPINGS))}
    for key, value in {**names, **given}.items():
        if key != "resume" and (key not in given or not _same(value, made.get(key, _MISSING))):
            why = "it comes from flt.fit, from another version of flt, or has names that Hydra doesn't read"
            raise InputError.of(key, value, "a setting that a command line can make", why)
    return found


def difference(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns dotted key -> value of the settings that differ from what the recipe, data, model and parts have.

    Data, model or a part that isn't the recipe's own is named by its group, such as ``rule``. Keys that the settings
    lack, since an older version of flt wrote them, are left out.

    Args:
        settings: Configuration of a run, as nested dictionaries.
    """
    recipe = dict(_flat(_composed([text for text in _choices(settings) if text.startswith("algo=")])))
    usual, found = _composed(_choices(settings)), {}
    for key, value in _changed(settings, usual, ""):
        group, _, name = key.rpartition(".")
        if not (name == "name" and group in groups()) and key not in ("algo", "resume"):
            found[key] = value
    own = {group: settings[group].get("name") for group in groups() if isinstance(settings.get(group), Mapping)}
    chosen = {group: name for group, name in own.items() if name != recipe.get(f"{group}.name")}
    return {**chosen, **found}


def _changed(value: Mapping[str, Any], usual: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """Yields dotted key -> value where a configuration differs from the usual one."""
    for name, item in value.items():
        path, other = f"{key}.{name}" if key else str(name), usual.get(name, _MISSING)
        if isinstance(item, Mapping) and isinstance(other, Mapping) and item and other:
            yield from _changed(item, other, path)
        elif not _same(item, other):
            yield path, item


def hydra_value(value: Any) -> str:
    """Returns a value as it is written on a command line, where OmegaConf finds no interpolation in it.

    Example:
        >>> hydra_value([1, "a b"]), hydra_value(None), hydra_value({"sci": ["sci.*"]})
        ("[1,'a b']", 'null', '{sci:[sci.*]}')
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_mapping_key(key)}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if not isinstance(value, str):
        return str(value) if isinstance(value, float) else json.dumps(value)  # JSON has no inf and nan
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    # A backslash before a quote, or at the end, would escape the quote.
    quoted = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), str(escaped(value)))
    return f"'{quoted}'"


def _mapping_key(key: Any) -> str:
    return _MARKS.sub(lambda found: f"\\{found[0]}", str(key))


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


def _composed(overrides: list[str]) -> dict[str, Any]:
    """Returns the configuration of a command line. Its texts are as they were given, and not escaped."""
    found: Any = OmegaConf.to_container(compose_config(overrides), resolve=True)
    return found


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted key -> value. A list and an empty mapping are values."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _same(left: Any, right: Any) -> bool:
    """Returns whether two values are the same setting. A whole number may be written as a fraction."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)
