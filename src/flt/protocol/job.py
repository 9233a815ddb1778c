"""The unit of local training, as the server knows it."""

from __future__ import annotations

import dataclasses

from flt.protocol.messages import JobId


@dataclasses.dataclass(frozen=True)
class Job:
    """The unit of local training, as the server knows it: no task, no data."""

    client: int
    index: int
    rank: int
    """Pairs per layer that the client can train."""
    head: str = ""
    """Which head it has, where jobs have different ones: heads of different shapes can't be kept from the server."""

    @property
    def id(self) -> JobId:
        """The key of the job in messages and states."""
        return (self.client, self.index)
