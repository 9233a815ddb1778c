"""Choice of the number of torch's threads for a run, by a short trial."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flt.core import openmp
from flt.data.examples import Collate
from flt.engines.batched.engine import BatchedSettings
from flt.models.module import ClientModule
from flt.run.federation import Federation

BUDGET = 0.15
"""Seconds after which a trial begins no further repetition."""
LONG = 0.02
"""If a forward pass over a batch takes more seconds than this, all threads are used without a trial."""
CLEARLY = 0.95
"""More threads are chosen only if they need less than this fraction of the time.

This leaves cores to other processes.
"""
JOBS = 10
"""Assumed number of jobs that engine=batched trains at once, if the configuration leaves the number open."""


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Context manager that restores the number of torch's threads at its end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(federation: Federation, settings: Any, batch_size: int, device: torch.device) -> int:
    """Returns the number of threads for a run whose configuration leaves the number open.

    A short trial decides. In these cases, there is no trial, and torch's own number is returned:

    - The user has set OMP_NUM_THREADS, or torch's own number is 1.
    - The run trains on a GPU.
    - The module is the user's own, which flt calls only in a Trainer.
    - A forward pass over a batch takes more than LONG seconds.

    Args:
        federation: Clients, and the module before the adapter is attached.
        settings: Settings of the engine.
        batch_size: Examples per batch.
        device: Device on which the run trains.
    """
    most, module = torch.get_num_threads(), federation.module
    if openmp.IS_GIVEN or most == 1 or device.type != "cpu" or not isinstance(module, ClientModule):
        return most
    dataset: Any = federation.clients[0].data[0].dataset
    items = [dataset[index] for index in range(min(batch_size, len(dataset)))]
    collate = federation.collate or Collate()
    one, batch = _inputs(collate(items[:1])), _inputs(collate(items * _jobs_at_once(settings, federation)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), restored_threads():
        module(**one)  # not timed, because the first forward pass also allocates memory
        if _seconds(lambda: module(**one)) * len(items) > LONG:
            return most
        return fastest(lambda: module(**batch), most)


def _jobs_at_once(settings: Any, federation: Federation) -> int:
    """Returns the number of jobs whose batches pass through the module together."""
    inside = getattr(settings, "inside", settings.name)
    if inside != BatchedSettings.name:
        return 1
    return settings.jobs or min(JOBS, len(federation.clients))


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in batch.items() if name != "labels"}


def fastest(work: Callable[[], object], most: int) -> int:
    """Returns the smallest number of threads with which the work takes about the shortest time.

    The numbers 1, 2, 4, ... and ``most`` are tried in turn, so that a disturbance affects all of them. The shortest
    time of each number counts.

    Args:
        work: Function that is called many times.
        most: Largest number of threads to try.
    """
    candidates = [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]
    found, began = dict.fromkeys(candidates, float("inf")), time.perf_counter()
    while time.perf_counter() - began < BUDGET:
        for threads in candidates:
            torch.set_num_threads(threads)
            work()  # not timed, because this call may start threads
            found[threads] = min(found[threads], _seconds(work))
    return _fewest(found)


def _fewest(found: dict[int, float]) -> int:
    """Returns the smallest number of threads such that no larger number is clearly faster.

    Args:
        found: Number of threads -> shortest time in seconds, in ascending order of the numbers.
    """
    best, at_best = 1, float("inf")
    for threads, seconds in found.items():
        if seconds < CLEARLY * at_best:
            best, at_best = threads, seconds
    return best


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
