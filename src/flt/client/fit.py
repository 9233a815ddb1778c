"""One local fit as its callbacks see it, and the base of these callbacks."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.protocol.messages import Ids, Payload, Update
from flt.protocol.state import ClientState

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class LocalFit:
    """One fit as its local callbacks see it, and where they leave what it yields.

    Tensors are gathered by the payload's ``held`` pairs: position i along a rank axis is pair ``held[layer][i]``.
    """

    layout: Layout
    payload: Payload
    private: ClientState
    trained: dict[str, nn.Parameter]
    """The parameters that train."""
    start: dict[str, Tensor]
    """Their values before the first step."""
    scores: dict[str, tuple[Ids, Tensor]] = dataclasses.field(default_factory=dict)
    """Goes up: layer -> (pair ids, importance)."""
    scalars: dict[str, float] = dataclasses.field(default_factory=dict)
    """Goes up."""
    slots: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    """Stays on the client, at the initial rank."""
    steps: int = 0
    """Optimiser steps taken; set when the fit has ended."""
    kept: dict[str, Ids] = dataclasses.field(init=False)
    """Goes up: the pairs that the update has; the payload's, unless a callback gives some of them up."""

    def __post_init__(self) -> None:
        self.kept = self.payload.kept

    def private_slot(self, slot: str, name: str) -> Tensor:
        """A private tensor at the initial rank; zeros before it was first kept."""
        like = self.start[name]
        zeros = torch.zeros(self.layout.entries[name].shape, dtype=like.dtype, device=like.device)
        kept = self.private.slots.get(slot, {}).get(name)
        return zeros if kept is None else kept.to(like.device)

    def frozen(self, name: str) -> Tensor | None:
        """Positions along the rank axis that are held and not kept; None where every entry trains."""
        held, kept = (self.layout.ids(name, components) for components in (self.payload.held, self.kept))
        if held is None or kept is None or held == kept:
            return None
        keep = set(kept)
        return torch.tensor(
            [i for i, component in enumerate(held) if component not in keep], device=self.trained[name].device
        )

    def close(self, callbacks: Sequence[Callback]) -> None:
        """Called when the fit has ended and ``steps`` is set: the callbacks leave what goes up or stays.

        Raises:
            InputError: The fit took no step.
        """
        if self.steps < 1:
            raise InputError.of(f"client {self.payload.job[0]}", "0 steps", "a fit of at least one optimiser step")
        for callback in callbacks:
            if isinstance(callback, LocalCallback):
                callback.report()

    def update(self, examples: int, metrics: dict[str, float]) -> Update:
        """What goes up: the values that the trained parameters have now.

        Args:
            examples: The job's training examples.
            metrics: Its figures.
        """
        payload, plan = self.payload, self.payload.plan
        tensors = {}
        for name in self.layout.names(set(plan.train) - set(plan.private)):
            value, frozen = self.trained[name].detach(), self.frozen(name)
            if frozen is not None:
                axis = self.layout.axis(name)
                keep = torch.ones(value.shape[axis], dtype=torch.bool, device=value.device)
                keep[frozen] = False
                value = value.index_select(axis, keep.nonzero()[:, 0])
            tensors[name] = value.cpu().clone()
        return Update(
            payload.job, payload.round, tensors, self.kept, payload.base_version,
            examples, self.steps, self.scores, self.scalars, metrics,
        )  # fmt: skip

    def private_state(self, initial: Mapping[str, Tensor]) -> ClientState:
        """What stays on the client.

        Args:
            initial: The tensors' initial values, for pairs that it has never held.
        """
        tensors = {}
        plan = self.payload.plan
        for name in self.layout.names(set(plan.private) & set(plan.train)):
            full = self.private.tensors.get(name, initial[name])
            tensors[name] = self.layout.put(name, full, self.payload.held, self.trained[name].detach().cpu())
        return ClientState({**self.private.tensors, **tensors}, {**self.private.slots, **self.slots})


class LocalCallback(Callback):
    """A Lightning callback that belongs to one fit and can add to its update."""

    def __init__(self, fit: LocalFit) -> None:
        self.fit = fit

    def report(self) -> None:
        """Called when the fit has ended: leaves scores, scalars and slots in ``self.fit``."""
