"""Check of decoded values against the annotations of the dataclass that they are to become."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from torch import Tensor


def is_whole(value: int) -> bool:
    """Returns whether an integer is at least 0."""
    return value >= 0


Whole = Annotated[int, is_whole]
"""Integer that is at least 0, such as an id or a number of rounds."""
Finite = Annotated[float, math.isfinite]
"""Number that is neither infinite nor nan."""


def check_fields(cls: type, fields: dict[str, Any]) -> None:
    """Checks the values of a dataclass's fields, with everything inside them, against the annotations.

    The annotations consist of numbers, text, tensors, dicts, tuples, dataclasses, ``None``, ``Any`` and
    ``Annotated[type, condition]``. An integer is accepted where a float is wanted.

    Args:
        cls: Dataclass that the fields belong to.
        fields: Name of a field -> value.

    Raises:
        TypeError: A value has another type than its annotation says, or doesn't meet its condition. The message
            contains the field, but not the value.
    """
    hints = _hints(cls)
    for name, value in fields.items():
        if name in hints and not fits(value, hints[name]):
            raise TypeError(f"{cls.__name__}.{name} has a wrong type or value")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def fits(value: Any, hint: Any) -> bool:
    """Returns whether a value, with everything inside it, has the annotated type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, args[0]) and all(condition(value) for condition in args[1:])
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else ()
        return isinstance(value, dict) and all(fits(key, args[0]) and fits(item, args[1]) for key, item in pairs)
    if origin is tuple:
        return isinstance(value, tuple) and _items_fit(value, args)
    return _is_a(value, hint)


def _items_fit(values: tuple[Any, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1:] == (...,):
        return all(fits(value, hints[0]) for value in values)
    return len(values) == len(hints) and all(map(fits, values, hints))


def _is_a(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (float, int)
    # isinstance isn't used for numbers, because a bool is an int
    return (
        isinstance(value, hint) if issubclass(hint, Tensor) or dataclasses.is_dataclass(hint) else type(value) is hint
    )
