"""What crosses between server and client, and its bytes.

    server --Payload--> job          job --Update--> server

One codec serves messages and states alike: the tensors of a dataclass go into safetensors, everything else into one
JSON text in the file's metadata. Only the dataclasses registered with :func:`message` can be written or read, so no
bytes from a file or a peer ever run code.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flt.core.errors import InputError

JobId = tuple[int, int]
"""(client, the client's own opaque index): the name of a job, all that the server knows of it besides its rank."""
Ids = tuple[int, ...]
"""Pair ids: positions of rank-1 matrices in a layer at its initial rank, ascending."""

_T = TypeVar("_T")
_MESSAGES: dict[str, type] = {}


def message(cls: type[_T]) -> type[_T]:
    """Registers a dataclass with the codec, under its own name."""
    _MESSAGES[cls.__name__] = cls
    return cls


@message
@dataclasses.dataclass(frozen=True)
class Plan:
    """What one round asks of local training.

    Up travels what trains and isn't private, down everything that isn't private.
    """

    train: tuple[str, ...] = ("A", "B", "adapter", "head")
    """Roles whose tensors train."""
    private: tuple[str, ...] = ()
    """Roles whose tensors stay on the client."""
    mu: float = 0.0
    """Weight of the proximal term (mu / 2) |w - w_t|^2."""
    steps: int | None = None
    """Optimiser steps; None leaves the length of the fit to the client's settings."""
    lr_factor: float = 1.0
    """Multiplies the learning rates that the module's ``configure_optimizers`` sets."""
    stage: str = "adapter"
    """Name of the stage, for the log."""


@message
@dataclasses.dataclass(frozen=True)
class BaseDelta:
    """One version of the base: what a round added to, or put in the place of, frozen weights."""

    version: int
    tensors: dict[str, tuple[Tensor, ...]]
    """Name of a base weight -> ``(value,)`` replaces it, ``(B, A)`` adds the product B A."""


@message
@dataclasses.dataclass(frozen=True)
class Payload:
    """Server -> one job."""

    job: JobId
    round: int
    """Rounds finished before this one."""
    plan: Plan
    tensors: dict[str, Tensor]
    """Everything that isn't private, gathered by ``held`` along the rank axis."""
    held: dict[str, Ids]
    """Layer -> the pairs that the job's model consists of."""
    kept: dict[str, Ids]
    """Layer -> the pairs among them that train."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """What the rule sends besides the weights, such as SCAFFOLD's ``c``; gathered as ``tensors`` are."""
    base_version: int = 0
    base: tuple[BaseDelta, ...] = ()
    """The versions that the job's client hasn't seen."""


@message
@dataclasses.dataclass(frozen=True)
class Update:
    """One job -> server."""

    job: JobId
    round: int
    tensors: dict[str, Tensor]
    """What trained and isn't private, gathered by ``kept`` along the rank axis."""
    kept: dict[str, Ids]
    base_version: int
    examples: int
    steps: int
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Layer -> (pair ids, their importance (n,))."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@message
@dataclasses.dataclass(frozen=True)
class Packed:
    """The pairs of one message, each vector quantised at its pair's precision; which pairs, the message says.

    Pairs are in the order of the layers and their ids, and of each pair a comes before b; see
    :mod:`flt.protocol.packing`.
    """

    bits: Tensor
    """Of each pair (pairs,), uint8."""
    scales: Tensor
    """Of each vector below 32 bits, float32."""
    codes: Tensor
    """All vectors' codes, one after the other, uint8."""

    def __post_init__(self) -> None:
        for name, dtype in (("bits", torch.uint8), ("scales", torch.float32), ("codes", torch.uint8)):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dim() != 1 or tensor.dtype != dtype:
                raise InputError.of(name, type(tensor).__name__, f"a tensor (n,) of {dtype}")


@message
@dataclasses.dataclass(frozen=True)
class PackedPayload(Payload):
    """A payload whose pairs are quantised; ``tensors`` has everything else."""

    packed: Packed = dataclasses.field(kw_only=True)


@message
@dataclasses.dataclass(frozen=True)
class PackedUpdate(Update):
    """An update whose pairs are quantised; ``tensors`` has everything else."""

    packed: Packed = dataclasses.field(kw_only=True)


def encode(value: Any) -> bytes:
    """Writes a registered dataclass as one safetensors file.

    Raises:
        TypeError: A value is of a type that the codec doesn't know.

    Example:
        >>> decode(encode(Plan(mu=0.01))) == Plan(mu=0.01)
        True
    """
    text, tensors = _text(value)
    # a tensor may be a view of another one, and safetensors refuses shared memory
    own = {key: its.detach().cpu().clone(memory_format=torch.contiguous_format) for key, its in tensors.items()}
    return safetensors.torch.save(own, metadata={"flt": text})


def encoded_size(value: Any) -> int:
    """How many bytes :func:`encode` writes, without writing them.

    Raises:
        TypeError: A value is of a type that the codec doesn't know.

    Example:
        >>> encoded_size(Plan(mu=0.01)) == len(encode(Plan(mu=0.01)))
        True
    """
    text, tensors = _text(value)
    header = _header(tuple((its.dtype, its.shape) for its in tensors.values())) + len(json.dumps(text))
    return 8 + -(-header // 8) * 8 + sum(its.numel() * its.element_size() for its in tensors.values())


@functools.cache
def _header(kinds: tuple[tuple[torch.dtype, torch.Size], ...]) -> int:
    """Length of a file's header for tensors of these kinds, without the text in it and without its padding."""
    data = safetensors.torch.save(
        {str(i): torch.zeros(shape, dtype=dtype) for i, (dtype, shape) in enumerate(kinds)}, metadata={"flt": ""}
    )
    return len(data[8 : 8 + int.from_bytes(data[:8], "little")].rstrip(b" ")) - len(json.dumps(""))


def decode(data: bytes) -> Any:
    """Reads what :func:`encode` wrote.

    Raises:
        InputError: The bytes aren't a message of flt.
    """
    try:
        size = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + size])["__metadata__"]["flt"]
        return _unpack(json.loads(text), safetensors.torch.load(data))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError.of("message", f"<{len(data)} bytes>", "a message written by flt", why) from error


def _text(value: Any) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_pack(value, tensors), separators=(",", ":"), allow_nan=False), tensors


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value
        return {"t": key}
    if dataclasses.is_dataclass(value) and _MESSAGES.get(type(value).__name__) is type(value):
        fields = {f.name: _pack(getattr(value, f.name), tensors) for f in dataclasses.fields(value)}
        return {"c": type(value).__name__, "f": fields}
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
    if isinstance(value, list):
        return tuple(_unpack(item, tensors) for item in value)
    if not isinstance(value, dict):
        return value
    if "t" in value:
        return tensors[value["t"]]
    if "d" in value:
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["d"]}
    if "n" in value:
        return float(value["n"])
    fields = {name: _unpack(field, tensors) for name, field in value["f"].items()}
    return _MESSAGES[value["c"]](**fields)
