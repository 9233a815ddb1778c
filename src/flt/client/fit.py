"""Inputs and results of one local fit, and the base class of local callbacks.

The results are an update, which is sent to the server, and a client state, which stays on the client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, Payload, Update
from flt.protocol.state import ClientState

if TYPE_CHECKING:
    from flt.algorithm.buffers import BuffersPart
    from flt.client.leave_one_out import LossesWithout


@dataclasses.dataclass
class LocalFit:
    """One local fit: its inputs, the trained parameters, and the results that local callbacks add.

    ``trained`` and ``start`` contain only the components that the payload lists as ``held``. Position i along the rank
    axis of a LoRA factor is component ``held[layer][i]``.
    """

    layout: Layout
    payload: Payload
    private: ClientState
    """Client state that the job stored after its last fit."""
    trained: dict[str, nn.Parameter]
    """Name -> parameter that is trained."""
    start: dict[str, Tensor]
    """Name -> copy of the parameter's value before the first step."""
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Layer -> (component ids, importance of each of these components). Sent to the server."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    """Name -> number, such as a client's learning rate. Sent to the server."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Name of a slot -> name of a tensor -> the slot's tensor, which has the initial rank. Stays on the client."""
    sent_buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Name of a buffer that the fit has changed -> its new value. Sent to the server."""
    own_buffers: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """Name of a buffer that the fit has changed -> its new value. Stays on the client."""
    losses_without: LossesWithout | None = None
    """Function that measures losses of the trained model without single components, when the fit has ended.

    It loads the model into the resident module, and leaves it there.
    """
    steps: int = 0
    """Number of optimiser steps. Set when the fit has ended."""
    kept: dict[str, Ids] = dataclasses.field(init=False)
    """Layer -> ids of the components in the update: the payload's ``kept``, unless a callback removes some ids."""

    def __post_init__(self) -> None:
        self.kept = self.payload.kept

    def private_slot(self, slot: str, name: str) -> Tensor:
        """Returns a tensor of a slot in the client state. If it was never stored, returns zeros.

        The tensor of a LoRA factor has the initial rank, even if the job holds fewer components.
        """
        like = self.start[name]
        zeros = torch.zeros(self.layout.entries[name].shape, dtype=like.dtype, device=like.device)
        kept = self.private.slots.get(slot, {}).get(name)
        return zeros if kept is None else kept.to(like.device)

    def frozen(self, name: str) -> Tensor | None:
        """Returns the positions, along a tensor's rank axis, of the components that are held but not kept.

        Returns None if all held components are kept or if the tensor has no rank axis.
        """
        held, kept = (self.layout.ids(name, components) for components in (self.payload.held, self.kept))
        if held is None or kept is None or held == kept:
            return None
        keep = set(kept)
        return torch.tensor(
            [i for i, component in enumerate(held) if component not in keep], device=self.trained[name].device
        )

    def close(self, callbacks: Sequence[Callback]) -> None:
        """Lets the callbacks add their results. Called when the fit has ended and ``steps`` is set.

        Raises:
            InputError: The fit took no step.
        """
        if self.steps < 1:
            raise InputError.of(f"client {self.payload.job[0]}", "0 steps", "a fit of at least one optimiser step")
        for callback in callbacks:
            if isinstance(callback, LocalCallback):
                callback.report()

    def take_buffers(self, changed: Mapping[str, Tensor], policy: BuffersPart) -> None:
        """Divides the buffers that the fit has changed into those that are sent and those that stay on the client."""
        layout, plan = self.layout, self.payload.plan
        self.sent_buffers = {name: value for name, value in changed.items() if policy.is_sent(layout, plan, name)}
        self.own_buffers = {name: value for name, value in changed.items() if policy.is_private(layout, plan, name)}

    def update(self, examples: int, metrics: dict[str, float]) -> Update:
        """Returns the update. It contains the current values of the trained parameters that aren't private.

        Args:
            examples: Number of the job's training examples.
            metrics: Metrics of the fit and of its evaluations.
        """
        payload, tensors = self.payload, {}
        for name in self.layout.sent(payload.plan):
            value, frozen = self.trained[name].detach(), self.frozen(name)
            if frozen is not None:
                axis = self.layout.axis(name)
                keep = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
                keep[frozen] = False
                value = value.index_select(axis, keep.nonzero()[:, 0])
            tensors[name] = value.cpu().clone()
        return Update(
            payload.job, payload.round, tensors, self.kept, payload.base_version,
            examples, self.steps, self.scores, self.scalars, metrics, self.sent_buffers,
        )  # fmt: skip

    def private_state(self, initial: Mapping[str, Tensor]) -> ClientState:
        """Returns the job's new client state, which stays on the client.

        Args:
            initial: Initial values of the tensors. They are used for components that the client has never held.
        """
        tensors = {}
        for name in (name for name in self.layout.private(self.payload.plan) if name in self.trained):
            full = self.private.tensors.get(name, initial[name])
            tensors[name] = self.layout.put(name, full, self.payload.held, self.trained[name].detach().cpu())
        return ClientState(
            {**self.private.tensors, **tensors},
            {**self.private.slots, **self.slots},
            {**self.private.buffers, **self.own_buffers},
        )


class LocalCallback(Callback):
    """Lightning callback for a single fit. It can add results to the fit's update and to the client state."""

    def __init__(self, fit: LocalFit) -> None:
        self.fit = fit

    def report(self) -> None:
        """Writes scores, scalars and slots to ``self.fit``. Called when the fit has ended."""
