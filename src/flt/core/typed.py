"""Construction of dataclasses from config settings, with checks of names and types."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flt.core.errors import InputError
from flt.core.plain_yaml import escaped

LARGEST = 1e30
"""Largest fraction in a setting. The weights are float32, and larger numbers times a factor don't fit into these."""

PLAIN: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false"}
"""Type of a setting -> the values that it has, in words."""
PLAIN |= {kind | None: f"{words}, or null" for kind, words in PLAIN.items()}


def typed(kind: type[Any], settings: Any, prefix: str) -> Any:
    """Builds an instance of a dataclass from settings, and checks the names and types of the settings.

    Args:
        kind: Dataclass to build.
        settings: Values of the fields. A missing field gets its default. Only a config of OmegaConf has interpolations.
        prefix: Config key of the settings, such as ``rule``, for the text of an error.

    Raises:
        InputError: A setting isn't a field of the dataclass, or a value has the wrong type or is rejected.
    """
    settings = settings if OmegaConf.is_config(settings) else escaped(settings)
    _check_numbers(OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings, prefix)
    try:
        schema: Any = kind  # mypy doesn't count type[Any] as hashable
        merged = OmegaConf.merge(_schema(schema), settings)
        _check_numbers(OmegaConf.to_container(merged), prefix)  # again, because texts have become integers
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, OverflowError) as error:  # OverflowError: an integer too large for a float
        full_key = getattr(error, "full_key", None) or ""
        key = ".".join(part for part in (prefix, full_key or str(getattr(error, "key", ""))) if part)
        names = _names_at(kind, full_key.split(".")[:-1])
        unknown = "not in" in str(error)
        value = OmegaConf.select(OmegaConf.create(settings), full_key, default="?", throw_on_resolution_failure=False)
        expected = _expected(kind, full_key)
        of_type = ("could not be converted", "not a valid", "Invalid type assigned", "Invalid value assigned",
                   "Cannot assign", "is incompatible with type hint")  # fmt: skip
        plain = not expected.startswith("a value of type") and any(words in str(error) for words in of_type)
        raise InputError.of(key, value, names if unknown else expected, "" if plain else first_line(error)) from None


def _check_numbers(value: Any, key: str) -> None:
    """Checks that torch and numpy can hold every number inside a value, and compute with it.

    Infinity and NaN are left to the settings, some of which allow infinity.

    Raises:
        InputError: An integer needs more than 64 bits, or a fraction is larger than ``LARGEST``.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            _check_numbers(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, key)
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InputError.of(key, value, "an integer below 2^63")
    elif isinstance(value, float) and LARGEST < abs(value) < math.inf:
        raise InputError.of(key, value, f"a number up to {LARGEST:g}")


@functools.cache
def _schema(kind: Any) -> Any:
    """Returns the fields, types and defaults of a dataclass. The result is cached, since reading takes milliseconds."""
    return OmegaConf.structured(kind)


def _names_at(kind: Any, path: list[str]) -> list[str]:
    """Returns the names of the settings of a dataclass, or of the one that is found inside it."""
    found: Any = kind
    for part in path:
        hints = get_type_hints(found) if dataclasses.is_dataclass(found) else {}
        found = hints[part] if part in hints else (get_args(found) or (kind,))[-1]
    return [f.name for f in dataclasses.fields(found if dataclasses.is_dataclass(found) else kind) if f.init]


def _type(kind: type[Any], key: str) -> Any:
    """Returns the type of a field, such as ``int``, given its key, such as ``tiers.phone.compute``."""
    found: Any = kind
    for part in key.partition("[")[0].split("."):
        if get_origin(found) is dict:
            found = get_args(found)[1]
        else:
            found = get_type_hints(found).get(part, Any) if dataclasses.is_dataclass(found) else found
    return found


def _mapping(kind: Any) -> str:
    """Describes the settings of a dataclass; empty for another type."""
    return f"the keys {', '.join(f.name for f in dataclasses.fields(kind))}" if dataclasses.is_dataclass(kind) else ""


def _expected(kind: type[Any], key: str) -> str:
    """Describes the type of a field, such as ``an integer`` or ``a list of integers, or null``."""
    return _words(_type(kind, key))


def _words(kind: Any) -> str:
    """Describes a type in plain words."""
    arguments = [argument for argument in get_args(kind) if argument not in (type(None), Any, Ellipsis)]
    if kind in PLAIN:
        return PLAIN[kind]
    if type(None) in get_args(kind):
        return f"{' or '.join(map(_words, arguments))}, or null"
    if get_origin(kind) is dict:
        return "a mapping, such as {name: value}" if len(arguments) < 2 else f"{{name: {_words(arguments[1])}}}"
    if get_origin(kind) in (list, tuple):
        (item,) = arguments[:1] or (None,)
        inner: Any = next((one for one in get_args(item) if one is not type(None)), item)
        several = {int: "integers", float: "numbers", str: "texts"}.get(inner, "values")
        return f"a list of {several}" + (" or null" if type(None) in get_args(item) else "")
    named = kind.__name__ if isinstance(kind, type) and not get_args(kind) else kind
    return _mapping(kind) or f"a value of type {named}"


def first_line(error: BaseException) -> str:
    """Returns the first non-empty line of an error's text. If there is none, returns the name of the error's class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
