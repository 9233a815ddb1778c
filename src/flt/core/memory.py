"""Free memory, peak memory use and release of memory, on a CPU or GPU."""

from __future__ import annotations

import gc
import os
import resource

import torch

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""Texts in the errors that torch and the operating system raise if an allocation fails."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether an error means that memory ran out. On a CPU, only the error's text shows this."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in NO_MEMORY)


def release_memory() -> None:
    """Releases the memory that finished or failed fits no longer need. Resets the peak memory use of a GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory use in bytes.

    On a GPU, this is the peak since the last call of :func:`release_memory`. On a CPU, it is the peak since the process
    started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory(device: torch.device) -> int:
    """Returns the free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
