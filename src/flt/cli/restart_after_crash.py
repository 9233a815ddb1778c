"""Restarts a run after one of its processes has died, and recognises processes that a launcher has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from flt.core.errors import PeerDiedError

RESTARTS, MOST_RESTARTS = "FLT_RESTARTS", 3
"""Environment variable that counts the restarts of a run, and the largest number of restarts."""
LAUNCHED = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that Lightning's launcher sets."""
EXTERNAL = ("RANK", "SLURM_PROCID", *LAUNCHED)
"""Environment variables that launchers set. A user who starts one process on each machine sets them too."""
RANKS = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
"""Environment variables with the number of this process or of its machine in the run, counted from 0."""


def is_launched() -> bool:
    """Returns whether a launcher has started this process, judging by the environment variables."""
    return any(os.environ.get(name) for name in EXTERNAL)


def is_first() -> bool:
    """Returns whether this is the run's first process, which prints and writes. There, each of RANKS is 0 or unset."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def restart(error: PeerDiedError, command: str, overrides: Sequence[str]) -> None:
    """Replaces this process by a new one, which resumes the run and launches all processes again.

    Does nothing if the run can't be resumed or has been restarted too often.

    Args:
        error: Error that ended the run. It contains the run's folder.
        command: Name of the command that ran.
        overrides: Arguments of the command.
    """
    restarts = int(os.environ.get(RESTARTS, "0")) + 1
    if command != "train" or restarts > MOST_RESTARTS or not error.folder:
        return
    note = f"a process has died and is replaced ({restarts} of at most {MOST_RESTARTS} times)"
    print(note, file=sys.stderr, flush=True)
    for name in LAUNCHED:  # with these variables, the new process would count as launched
        os.environ.pop(name, None)
    os.environ[RESTARTS] = str(restarts)
    kept = [override for override in overrides if not override.startswith("resume=")]
    quoted = error.folder.replace("'", "\\'")
    os.execv(sys.executable, [sys.executable, "-m", "flt", command, *kept, f"resume='{quoted}'"])
