"""Number of torch's threads in a run, found by a short trial."""

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
"""Seconds that the timed passes of a trial may take together."""
LONG = 0.02
"""Seconds of a pass with all threads above which no trial is made: such a pass has work for all of them."""
CLEARLY = 0.95
"""More threads have to be faster by this factor, since other processes may need the cores."""
JOBS = 10
"""Jobs that engine=batched is assumed to train at once, where their number isn't known yet."""


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Sets the number of torch's threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_threads(federation: Federation, settings: Any, batch_size: int, device: torch.device) -> int:
    """Returns the number of threads for a run whose configuration leaves it open.

    The number is torch's own if the user has set OMP_NUM_THREADS, on a GPU, and for a user's own module, which flt
    calls nowhere but in a Trainer. Otherwise a trial decides.

    Args:
        federation: Module, without its adapters, and clients.
        settings: Settings of the engine.
        batch_size: Examples per batch.
        device: Device of the module.
    """
    most, module = torch.get_num_threads(), federation.module
    if openmp.IS_GIVEN or most == 1 or device.type != "cpu" or not isinstance(module, ClientModule):
        return most
    dataset: Any = federation.clients[0].data[0].dataset
    items = [dataset[index] for index in range(min(batch_size, len(dataset)))]
    collate = federation.collate or Collate()
    one, batch = _inputs(collate(items[:1])), _inputs(collate(items * _jobs_at_once(settings, federation)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]), restored_threads():
        module(**one)  # the first pass also allocates
        if _seconds(lambda: module(**one)) * len(items) > LONG:
            return most
        return fastest(lambda: module(**batch), most)


def _jobs_at_once(settings: Any, federation: Federation) -> int:
    """Number of jobs whose batches pass through the module together."""
    inside = getattr(settings, "inside", settings.name)
    if inside != BatchedSettings.name:
        return 1
    return settings.jobs or min(JOBS, len(federation.clients))


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in batch.items() if name != "labels"}


def fastest(work: Callable[[], object], most: int) -> int:
    """Returns the fewest threads with which the work takes about the least time.

    The candidates take turns, so that a disturbance hits all of them, and the quickest time of each counts.

    Args:
        work: Is called many times.
        most: Largest number of threads.
    """
    candidates = [*(1 << power for power in range(most.bit_length()) if 1 << power < most), most]
    found, began = dict.fromkeys(candidates, float("inf")), time.perf_counter()
    while time.perf_counter() - began < BUDGET:
        for threads in candidates:
            torch.set_num_threads(threads)
            work()  # untimed, since it may start threads
            found[threads] = min(found[threads], _seconds(work))
    return _fewest(found)


def _fewest(found: dict[int, float]) -> int:
    """Returns the fewest threads than which no more are clearly faster."""
    best, at_best = 1, float("inf")
    for threads, seconds in found.items():
        if seconds < CLEARLY * at_best:
            best, at_best = threads, seconds
    return best


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
