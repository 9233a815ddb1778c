"""What the round loop asks of an engine."""

from __future__ import annotations

import dataclasses

from flt.protocol.failure import Failure
from flt.protocol.messages import Payload, Update
from flt.protocol.state import ClientState


@dataclasses.dataclass(frozen=True)
class Task:
    """One job to train: what it was sent, what it kept, and its seed."""

    payload: Payload
    private: ClientState
    seed: int


Outcome = tuple[Update, ClientState] | Failure
"""What comes out of a task: an update and what stays on the client, or why there is none."""
