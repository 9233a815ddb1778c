"""A job that sends no update, and why."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path

from flt.core.errors import InputError
from flt.protocol.codec import message
from flt.protocol.messages import JobId


@message
@dataclasses.dataclass(frozen=True)
class Failure:
    """A job without an update, and why: the round may go on without it.

    Attributes:
        job: Which.
        why: One line; of an error that isn't flt's own its kind and place, since its text may quote a user's examples.
    """

    job: JobId
    why: str

    @staticmethod
    def of(job: JobId, error: BaseException) -> Failure:
        """The failure that an error is."""
        if isinstance(error, InputError):
            return Failure(job, " ".join(str(error).split()))
        frames = traceback.extract_tb(error.__traceback__)
        at = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        return Failure(job, f"{type(error).__name__}{at}")

    def __str__(self) -> str:
        return f"client {self.job[0]}, job {self.job[1]}: {self.why}"
