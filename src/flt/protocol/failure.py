"""Record of a job that sends no update."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path

from flt.core.errors import InputError
from flt.protocol.messages import JobId, message


@message
@dataclasses.dataclass(frozen=True)
class Failure:
    """Record of a job that sends no update, with the reason. The round may continue without this job.

    Attributes:
        job: Id of the job.
        why: Reason in one line. If the job was stopped by an error other than an InputError, the reason contains only
            the error's class and the place in the code, because the error's text may quote a user's examples.
    """

    job: JobId
    why: str

    @staticmethod
    def of(job: JobId, error: BaseException) -> Failure:
        """Builds the failure of a job from the error that stopped it."""
        if isinstance(error, InputError):
            return Failure(job, " ".join(str(error).split()))
        frames = traceback.extract_tb(error.__traceback__)
        at = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        return Failure(job, f"{type(error).__name__}{at}")

    def __str__(self) -> str:
        return f"client {self.job[0]}, job {self.job[1]}: {self.why}"


@message
@dataclasses.dataclass(frozen=True)
class Late(Failure):
    """Record of a job whose update came after the server had gone on. It is expected, and no failure of the job."""
