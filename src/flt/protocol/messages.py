"""Messages between server and client.

    server --Payload--> job          job --Update--> server

Messages and states are encoded in the same way: the tensors of a dataclass in the safetensors format, and everything
else as one JSON text in the metadata of that format. Only dataclasses that are registered with :func:`message` can be
written or read. Bytes from a file or another process can therefore never run code.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.field_types import Finite, Whole, check_fields

_T = TypeVar("_T")
_MESSAGES: dict[str, type] = {}
INT64 = range(-(2**63), 2**63)
"""Integers that a message may contain. torch and numpy can't hold larger ones."""
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64,
)  # fmt: skip
"""Types of tensors that a message may contain. torch can compute with these on every device."""
JobId = tuple[int, int]
"""Id of a job: (number of the client, number of the job on this client). The id doesn't contain the job's task."""
Ids = tuple[Whole, ...]
"""Ids of rank-1 components, ascending. The id of a component is its position in its layer at the initial rank."""
DAMAGES = (
    KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, MemoryError,
    safetensors.SafetensorError,
)  # fmt: skip
"""Errors that damaged bytes cause."""
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


@message
@dataclasses.dataclass(frozen=True)
class Plan:
    """Settings of the local training in one round.

    A client sends the tensors that were trained and are not private. The server sends all tensors of the adapter and
    the head that are not private. It sends changes of base weights separately, as ``BaseDelta``.
    """

    train: tuple[str, ...] = ("A", "B", "adapter", "head")
    """Roles of the tensors that are trained."""
    private: tuple[str, ...] = ()
    """Roles of the tensors that stay on the client."""
    mu: Finite = 0.0
    """Weight of the proximal term (mu / 2) |w - w_t|^2, where w_t are the weights before the first step."""
    steps: Whole | None = None
    """Number of optimiser steps of a fit; None: the client's settings decide the length of the fit."""
    lr_factor: Finite = 1.0
    """Factor by which the learning rates from the module's ``configure_optimizers`` are multiplied."""
    stage: str = "adapter"
    """Name of the stage, such as ``initiating``. A stage consists of consecutive rounds with the same kind of plan."""


@message
@dataclasses.dataclass(frozen=True)
class BaseDelta:
    """Changes that one round made to the base weights. The weights after these changes are a new version."""

    version: Whole
    """Number of the new version. The initial weights are version 0."""
    tensors: dict[str, tuple[Tensor, ...]]
    """Name of a base weight -> its change: ``(value,)`` replaces the weight, ``(B, A)`` adds the product B A to it."""


@message
@dataclasses.dataclass(frozen=True)
class Payload:
    """Message from the server to one job."""

    job: JobId
    round: Whole
    """Number of rounds that were finished before this round."""
    plan: Plan
    tensors: dict[str, Tensor]
    """Tensors of the adapter and the head that are not private. A and B contain only the components in ``held``."""
    held: dict[str, Ids]
    """Layer -> ids of the components that the job's model consists of."""
    kept: dict[str, Ids]
    """Layer -> ids of the components that the job trains, a subset of ``held``."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Slot -> name of a tensor -> extra tensor of the aggregation rule, such as SCAFFOLD's ``c``.

    As in ``tensors``, A and B contain only the components in ``held``.
    """
    base_version: Whole = 0
    """Version of the base weights with which the job is trained."""
    base: tuple[BaseDelta, ...] = ()
    """Changes of the base weights that the job's client hasn't received yet.

    If a client has several jobs in a round, only the first job's payload contains the changes.
    """


@message
@dataclasses.dataclass(frozen=True)
class Update:
    """Message from one job to the server."""

    job: JobId
    round: Whole
    tensors: dict[str, Tensor]
    """New values of the tensors that were trained and are not private.

    A and B contain only the components in ``kept``.
    """
    kept: dict[str, Ids]
    """Layer -> ids of the components in this update."""
    base_version: Whole
    """Version of the base weights with which the job was trained."""
    examples: Whole
    """Number of the job's training examples."""
    steps: Whole
    """Number of optimiser steps of the fit."""
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Layer -> (ids of n components, importance of each component as measured in the fit, shape (n,))."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    """Name -> number that a part of the recipe has added, such as the learning rate for SCAFFOLD."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Key -> metric of the fit, or of the job's model before or after the fit."""


@message
@dataclasses.dataclass(frozen=True)
class Packed:
    """Quantised rank-1 components of one message.

    A component consists of a vector a (its row of A) and a vector b (its column of B). Both vectors have the same
    number of bits per value. The ids of the components are in ``kept`` of an update, or in ``held`` of a payload.
    Components are ordered by layer, then by id. The vector a of a component comes before its vector b. See
    :mod:`flt.protocol.quantised_components`.
    """

    bits: Tensor
    """Number of bits per value of each component, uint8. Shape: (components,)."""
    scales: Tensor
    """Scale of each vector that has fewer than 32 bits per value, float32. Shape: (vectors,)."""
    codes: Tensor
    """Bytes of the quantised vectors, one vector after the other, uint8. Shape: (bytes,)."""

    def __post_init__(self) -> None:
        for name, dtype in (("bits", torch.uint8), ("scales", torch.float32), ("codes", torch.uint8)):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dim() != 1 or tensor.dtype != dtype:
                raise InputError.of(name, type(tensor).__name__, f"a tensor (n,) of {dtype}")


@message
@dataclasses.dataclass(frozen=True)
class PackedPayload(Payload):
    """Payload whose LoRA components are quantised and stored in ``packed``. ``tensors`` contains all other tensors."""

    packed: Packed = dataclasses.field(kw_only=True)


@message
@dataclasses.dataclass(frozen=True)
class PackedUpdate(Update):
    """Update whose LoRA components are quantised and stored in ``packed``. ``tensors`` contains all other tensors."""

    packed: Packed = dataclasses.field(kw_only=True)


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


def _text(value: Any) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_pack(value, tensors), separators=(",", ":"), allow_nan=False), tensors


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"t": key}
    if dataclasses.is_dataclass(value) and _MESSAGES.get(_name(type(value))) is type(value):
        fields = {f.name: _pack(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
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
