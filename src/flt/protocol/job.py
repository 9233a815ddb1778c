"""Description of a job for the server. A job is the unit of local training."""

from __future__ import annotations

import dataclasses

from flt.protocol.messages import JobId


@dataclasses.dataclass(frozen=True)
class Job:
    """Description of a job for the server. The description contains neither the job's task nor the job's data."""

    client: int
    """Number of the client that trains the job."""
    index: int
    """Number of the job on its client, from 0."""
    rank: int
    """Number of rank-1 components per layer that the client can train."""
    head: str = ""
    """Name of the job's head if jobs have different heads, else empty.

    The server holds the tensors of every head, and selects the job's tensors by this name. The server also sees the
    shapes of these tensors.
    """

    @property
    def id(self) -> JobId:
        """Id of the job in messages and states."""
        return (self.client, self.index)
