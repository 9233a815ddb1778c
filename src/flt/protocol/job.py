"""The server's description of a job, the unit of local training."""

from __future__ import annotations

import dataclasses

from flt.protocol.messages import JobId


@dataclasses.dataclass(frozen=True)
class Job:
    """The server's description of a job, the unit of local training. It contains neither task nor data."""

    client: int
    index: int
    rank: int
    """Rank-1 components per layer that the client can train."""
    head: str = ""
    """Name of the job's head if jobs have different heads. The server can't be kept from seeing different shapes."""

    @property
    def id(self) -> JobId:
        """The key of the job in messages and states."""
        return (self.client, self.index)
