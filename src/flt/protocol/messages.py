"""Messages between server and client.

    server --Payload--> job          job --Update--> server

Messages and states use the same codec: the tensors of a dataclass go into safetensors, everything else into one JSON
text in the file's metadata. Only dataclasses registered with :func:`message` can be written or read. Bytes from a file
or a peer can therefore never run code.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.wire_format import message

JobId = tuple[int, int]
"""Id of a job: (client, the client's own opaque index). It doesn't reveal the job's task to the server."""


Ids = tuple[int, ...]
"""Component ids: positions of rank-1 components in a layer at its initial rank, ascending."""


@message
@dataclasses.dataclass(frozen=True)
class Plan:
    """Instructions of one round for local training.

    A client sends the tensors that train and aren't private. The server sends all tensors that aren't private.
    """

    train: tuple[str, ...] = ("A", "B", "adapter", "head")
    """Roles whose tensors train."""
    private: tuple[str, ...] = ()
    """Roles whose tensors stay on the client."""
    mu: float = 0.0
    """Weight of the proximal term (mu / 2) |w - w_t|^2."""
    steps: int | None = None
    """Optimiser steps; None: the client's settings decide the length of the fit."""
    lr_factor: float = 1.0
    """Factor on the learning rates that the module's ``configure_optimizers`` sets."""
    stage: str = "adapter"
    """Name of the stage for the log."""


@message
@dataclasses.dataclass(frozen=True)
class BaseDelta:
    """One version of the base weights: the changes that one round made to frozen weights."""

    version: int
    tensors: dict[str, tuple[Tensor, ...]]
    """Change of each base weight by name: ``(value,)`` replaces the weight, ``(B, A)`` adds the product B A."""


@message
@dataclasses.dataclass(frozen=True)
class Payload:
    """Message from the server to one job."""

    job: JobId
    round: int
    """Number of rounds finished before this one."""
    plan: Plan
    tensors: dict[str, Tensor]
    """All tensors that aren't private, gathered by ``held`` along the rank axis."""
    held: dict[str, Ids]
    """Ids of the components in the job's model, by layer."""
    kept: dict[str, Ids]
    """Ids of the components in the job's model that train, by layer."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Tensors that the rule sends besides the weights, such as SCAFFOLD's ``c``; gathered like ``tensors``."""
    base_version: int = 0
    base: tuple[BaseDelta, ...] = ()
    """Versions of the base weights that the job's client hasn't received yet."""


@message
@dataclasses.dataclass(frozen=True)
class Update:
    """Message from one job to the server."""

    job: JobId
    round: int
    tensors: dict[str, Tensor]
    """Tensors that were trained and aren't private, gathered by ``kept`` along the rank axis."""
    kept: dict[str, Ids]
    base_version: int
    examples: int
    steps: int
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Component ids and their importance (n,), by layer."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@message
@dataclasses.dataclass(frozen=True)
class Packed:
    """Quantised rank-1 components of one message. Both vectors of a component have the component's precision.

    The message itself lists the component ids. Components are in the order of the layers and of their ids, and the
    vector a of a component comes before its vector b; see :mod:`flt.protocol.packing`.
    """

    bits: Tensor
    """Precision of each component in bits (components,), uint8."""
    scales: Tensor
    """Scale of each vector below 32 bits, float32."""
    codes: Tensor
    """Codes of all vectors, one vector after the other, uint8."""

    def __post_init__(self) -> None:
        for name, dtype in (("bits", torch.uint8), ("scales", torch.float32), ("codes", torch.uint8)):
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dim() != 1 or tensor.dtype != dtype:
                raise InputError.of(name, type(tensor).__name__, f"a tensor (n,) of {dtype}")


@message
@dataclasses.dataclass(frozen=True)
class PackedPayload(Payload):
    """Payload with quantised components; ``tensors`` has all other tensors."""

    packed: Packed = dataclasses.field(kw_only=True)


@message
@dataclasses.dataclass(frozen=True)
class PackedUpdate(Update):
    """Update with quantised components; ``tensors`` has all other tensors."""

    packed: Packed = dataclasses.field(kw_only=True)
