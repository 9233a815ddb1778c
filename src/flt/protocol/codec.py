"""Encoding of messages and states as bytes.

The tensors of a dataclass are encoded in the safetensors format, and everything else as one JSON text in the metadata
of that format. Only dataclasses that are registered with :func:`message` can be written or read. Bytes from a file or
another process can therefore never run code.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.field_types import check_fields

_T = TypeVar("_T")
_MESSAGES: dict[str, type] = {}
INT64 = range(-(2**63), 2**63)
"""Integers that a message may contain. torch and numpy can't hold larger ones."""
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64,
)  # fmt: skip
"""Types of tensors that a message may contain. torch can compute with these on every device."""
DAMAGES = (
    KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError,
    safetensors.SafetensorError,
)  # fmt: skip
"""Errors that damaged bytes cause."""
OMITTED_IF_EMPTY = {"omitted": True}
"""Metadata of a dataclass's field that isn't written if it is empty. Such a field needs an empty default value."""
LONGEST = 200
"""Largest number of characters of an error's text that a message about damaged bytes quotes."""


def message(cls: type[_T]) -> type[_T]:
    """Registers a dataclass with the codec, so that its instances can be encoded and decoded. Used as a decorator."""
    _MESSAGES[_name(cls)] = cls
    return cls


def _name(cls: type) -> str:
    """Returns the name of a dataclass in files and messages.

    This is the attribute ``codec_name`` if the class has one, else the name of the class. A class that was renamed has
    its old name as ``codec_name``, so that old files can still be read.
    """
    return str(cls.__dict__.get("codec_name", cls.__name__))


def encode(value: Any) -> bytes:
    """Encodes an instance of a registered dataclass as the bytes of one safetensors file.

    Raises:
        TypeError: A value has a type that the codec doesn't support.

    Example:
        >>> from flt.protocol.messages import Plan
        >>> decode(encode(Plan(mu=0.01))) == Plan(mu=0.01)
        True
    """
    text, tensors = _text(value)
    # The tensors are copied because safetensors rejects tensors that share memory, as views of one tensor do.
    copies = {key: t.detach().cpu().clone(memory_format=torch.contiguous_format) for key, t in tensors.items()}
    return safetensors.torch.save(copies, metadata={"flt": text})


def encoded_size(value: Any) -> int:
    """Returns the number of bytes that :func:`encode` would return, without encoding the tensors.

    Raises:
        TypeError: A value has a type that the codec doesn't support.

    Example:
        >>> from flt.protocol.messages import Plan
        >>> encoded_size(Plan(mu=0.01)) == len(encode(Plan(mu=0.01)))
        True
    """
    text, tensors = _text(value)
    header = _header(tuple((tensor.dtype, tensor.shape) for tensor in tensors.values())) + len(json.dumps(text))
    return 8 + -(-header // 8) * 8 + sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@functools.cache
def _header(kinds: tuple[tuple[torch.dtype, torch.Size], ...]) -> int:
    """Returns the number of bytes of the safetensors header, without the metadata text and the padding bytes.

    Args:
        kinds: (type, shape) of each tensor that the header describes.
    """
    data = safetensors.torch.save(
        {str(i): torch.zeros(shape, dtype=dtype) for i, (dtype, shape) in enumerate(kinds)}, metadata={"flt": ""}
    )
    return len(data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip(b" ")) - len(json.dumps(""))


def decode(data: bytes, kind: type[_T] | None = None) -> Any:
    """Returns the dataclass instance from the bytes that :func:`encode` returned.

    Every field, with everything inside it, has the type that the dataclass declares. Integers have at most 64 bits.

    Args:
        data: Bytes of the message.
        kind: Dataclass that the message has to be. None: any dataclass that is registered.

    Raises:
        InputError: The bytes weren't made by :func:`encode`, or contain something else than ``kind``.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["flt"]
        tensors = safetensors.torch.load(data)
        value = _unpack(json.loads(text), tensors)
        if not (isinstance(value, kind) if kind else dataclasses.is_dataclass(value)):
            raise TypeError(f"it contains a {type(value).__name__}")
        if tensors:
            raise ValueError(f"{len(tensors)} of its tensors belong to no field")
        return value
    except DAMAGES as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError.of("message", f"<{len(data)} bytes>", "a message written by flt", why[:LONGEST]) from error


def field_of(path: Path, name: str) -> Any:
    """Returns a field of the message in a file, without the message's tensors. Texts and numbers are as they are.

    Args:
        path: File with the bytes that :func:`encode` returned.
        name: Name of the field.

    Raises:
        InputError: The file contains no message with this field.
        OSError: The file can't be read.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, path.stat().st_size))
    try:
        return json.loads(json.loads(header)["__metadata__"]["flt"])["f"][name]
    except DAMAGES as error:
        raise InputError.of(path.name, "?", f"a message with the field {name}") from error


def _text(value: Any) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_pack(value, tensors), separators=(",", ":"), allow_nan=False), tensors


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"t": key}
    if dataclasses.is_dataclass(value) and _MESSAGES.get(_name(type(value))) is type(value):
        written = [f for f in dataclasses.fields(value) if "omitted" not in f.metadata or getattr(value, f.name)]
        fields = {f.name: _pack(getattr(value, f.name), tensors) for f in written}
        return {"c": _name(type(value)), "f": fields}
    if isinstance(value, dict):
        return {"d": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_pack(item, tensors) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"n": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} can't cross between server and client")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Builds a value from its JSON form. Removes the tensors that the value contains from ``tensors``."""
    if isinstance(value, list):
        return tuple(_unpack(item, tensors) for item in value)
    if not isinstance(value, dict):
        if type(value) is int and value not in INT64:
            raise ValueError("an integer has more than 64 bits")
        return value
    if "t" in value:
        tensor = tensors.pop(value["t"])
        if tensor.dtype not in DTYPES:
            raise TypeError(f"a tensor has the type {tensor.dtype}")
        return tensor
    if "d" in value:
        pairs = [(_unpack(key, tensors), _unpack(item, tensors)) for key, item in value["d"]]
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")
        return found
    if "n" in value:
        return float(value["n"])
    fields = {name: _unpack(field, tensors) for name, field in value["f"].items()}
    check_fields(_MESSAGES[value["c"]], fields)
    return _MESSAGES[value["c"]](**fields)
