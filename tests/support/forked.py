"""The processes of a run, forked from the test's own, which has the imports already."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist

from flt.engines.process_group import LaunchedProcessGroup, ProcessGroup

LIMIT = 120
"""Seconds after which a process that waits for another one is ended."""


def forked(work: Callable[[ProcessGroup], Any], size: int, folder: Path) -> list[Any]:
    """What each of so many processes makes of the work, by rank; what a process raises, as text."""
    context = get_context("fork")
    queue = context.SimpleQueue()
    meeting = folder / f"meeting_{size}_{os.getpid()}"
    made = [context.Process(target=_process, args=(work, rank, size, meeting, queue)) for rank in range(size)]
    for process in made:
        process.start()
    found = dict(queue.get() for _ in made)
    for process in made:
        process.join(LIMIT)
        process.kill()
    meeting.unlink(missing_ok=True)
    return [found[rank] for rank in range(size)]


def _process(work: Callable[[ProcessGroup], Any], rank: int, size: int, meeting: Path, queue: Any) -> None:
    try:
        # as a launcher leaves it: the Trainers of these processes start no others
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(size))
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
        fabric: Any = SimpleNamespace(global_rank=rank, world_size=size, device=torch.device("cpu"))
        queue.put((rank, work(LaunchedProcessGroup(fabric))))
    except BaseException as error:
        traceback.print_exc()
        queue.put((rank, f"{type(error).__name__}: {error}"))
    finally:
        os._exit(0)  # nothing of the test's own process is to be ended twice


def cost(work: Callable[[], Any]) -> tuple[Any, int]:
    """What some work returns, or raises, in a process of its own, and by how many bytes that process grew.

    In the test's own process, the peak could be that of an earlier test. Memory that this process keeps for later use
    is given back first, since the fork could grow into it unseen.
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    queue = get_context("fork").SimpleQueue()
    process = get_context("fork").Process(target=_measured, args=(work, queue))
    process.start()
    found = queue.get()
    process.join(LIMIT)
    return found


def _measured(work: Callable[[], Any], queue: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = work()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    queue.put((found, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
    os._exit(0)
