"""What crosses between server and client, and its bytes.

    server --Payload--> job          job --Update--> server

One codec serves messages and states alike: the tensors of a dataclass go into safetensors, everything else into one
JSON text in the file's metadata. Only the dataclasses registered with :func:`message` can be written or read, so no
bytes from a file or a peer ever run code.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.codec import message

JobId = tuple[int, int]
"""(client, the client's own opaque index): the name of a job, all that the server knows of it besides its rank."""


Ids = tuple[int, ...]
"""Pair ids: positions of rank-1 matrices in a layer at its initial rank, ascending."""


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
