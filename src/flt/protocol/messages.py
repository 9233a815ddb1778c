"""Messages between server and client.

    server --Payload--> job          job --Update--> server

Messages and states are encoded in the same way, see :mod:`flt.protocol.codec`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.codec import OMITTED_IF_EMPTY
from flt.protocol.codec import decode as decode
from flt.protocol.codec import encode as encode
from flt.protocol.codec import encoded_size as encoded_size
from flt.protocol.codec import message as message
from flt.protocol.field_types import Finite, Whole

JobId = tuple[int, int]
"""Id of a job: (number of the client, number of the job on this client). The id doesn't contain the job's task."""
Ids = tuple[Whole, ...]
"""Ids of rank-1 components, ascending. The id of a component is its position in its layer at the initial rank."""


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
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """Name of a buffer -> its value, for the buffers that the training of earlier rounds has changed."""


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
    buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict, metadata=OMITTED_IF_EMPTY)
    """Name of a buffer -> its new value, for the buffers that the fit has changed and that aren't private."""


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
