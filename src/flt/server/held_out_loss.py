"""Loss of a group's weights on the examples that the clients of the group hold out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from flt.core import formatting
from flt.core.errors import InputError
from flt.data.clients import ClientSpec
from flt.protocol.messages import Update
from flt.protocol.state import GroupState, ServerState

if TYPE_CHECKING:
    from flt.server.engine import Engine


class HeldOutLoss:
    """Measures the loss of weights on the examples that the clients of a group hold out.

    In a deployment, the server would send each candidate to the clients of the group, and each client would send back
    one number. These bytes aren't counted. All processes get the result of the first one.

    Args:
        engine: Engine whose resident module evaluates the weights.
        clients: Client id -> the client, with its held-out examples.
    """

    def __init__(self, engine: Engine, clients: Mapping[int, ClientSpec]) -> None:
        self.engine, self.clients = engine, clients
        self.shares: dict[int, Mapping[int, float]] = {}
        """Group of the round -> other group -> share of its change that was chosen."""
        self.gains: dict[int, float] = {}
        """Group of the round -> by how much the choice lowers the loss."""
        self._state: ServerState | None = None
        self._members: Mapping[int, Sequence[Update]] = {}

    def begin(self, state: ServerState, members: Mapping[int, Sequence[Update]]) -> None:
        """Begins a round.

        Args:
            state: State of the server before the aggregation.
            members: Updates of each group, by group id.
        """
        self._state, self._members, self.shares, self.gains = state, members, {}, {}

    def loss(self, gid: int, weights: Mapping[str, Tensor], examples: int) -> float | None:
        """Returns the mean loss over at most ``examples`` held-out examples of the group's jobs.

        Each job of the group adds equally many examples, or all that it has. None if the jobs hold out no examples.

        Raises:
            InputError: The module logs no loss.
        """
        if self.engine.local_trainer.placement.needs_all_processes:
            return self._loss(gid, weights, examples)
        text = self.engine.processes.broadcast_from_first(lambda: json.dumps(self._loss(gid, weights, examples)))
        loss: float | None = json.loads(text)
        return loss

    def record(self, gid: int, shares: Mapping[int, float], gain: float) -> None:
        """Notes what was chosen for a group."""
        self.shares[gid], self.gains[gid] = shares, gain

    def _loss(self, gid: int, weights: Mapping[str, Tensor], examples: int) -> float | None:
        state, total, seen = self._state, 0.0, 0
        assert state is not None, "begin is called first"
        jobs = [update.job for update in self._members[gid]]
        buffers = state.groups[gid].buffers if gid in state.groups else {}
        tried = dataclasses.replace(state, groups={**state.groups, gid: GroupState(dict(weights), {}, {}, buffers)})
        for client, index in jobs:
            data = self.clients[client].data[index]
            sample = data.validation_set(math.ceil(examples / len(jobs)))
            if not len(sample):
                continue
            metrics = self.engine.local_trainer.evaluate_group(tried, gid, sample, head=data.head)
            name = formatting.loss(metrics)
            if name is None:
                why = "the recipe compares losses"
                allowed = "a metric with loss in its name"
                raise InputError.of("validation_step", sorted(metrics) or "no metric", allowed, why)
            total, seen = total + len(sample) * metrics[name], seen + len(sample)
        return total / seen if seen else None
