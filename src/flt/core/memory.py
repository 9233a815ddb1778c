"""Free memory, peak memory use and release of memory, on a CPU or GPU."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")
"""Texts in the errors that torch and the operating system raise if an allocation fails."""
MEMINFO, OWN_CGROUPS, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
"""Files in which Linux reports the memory of the machine, the cgroups of the process, and the limits of cgroups."""
STATM, STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
"""Files in which Linux reports the memory of this process: in pages, and with its peak."""
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
"""Files of a cgroup that contain its limit and use, and the line of memory.stat about files that are kept in memory."""


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
    with contextlib.suppress(OSError, ValueError, IndexError):
        # not from getrusage, which counts in the memory of the process that has started this one
        return int(STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory() -> int:
    """Returns the bytes of memory that this process takes now. Where the system doesn't tell it, returns the peak."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory(torch.device("cpu"))


def available_memory(device: torch.device) -> int:
    """Returns the free memory of a device in bytes. If the system doesn't tell it, returns ``sys.maxsize``.

    On a CPU, this is the free memory of the machine, or less if the process belongs to a cgroup with a limit, such as
    that of a container.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((_free_memory(), *_cgroup_rooms()))


def _free_memory() -> int:
    """Returns the free memory of the machine. Where this isn't told, as on macOS, returns all memory."""
    with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # ValueError: the system has no such name
        pages = os.sysconf("SC_PHYS_PAGES")
        return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else sys.maxsize
    return sys.maxsize


def _cgroup_rooms() -> Iterator[int]:
    """Yields what the limits of the process's cgroup and of the groups around it leave."""
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, kinds, name = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root = CGROUPS / "memory" if kinds else CGROUPS
            folder = root / name.lstrip("/")  # in a container, this may be a name outside of it, and only root is there
            for group in (folder, *folder.parents):
                if group.is_relative_to(root):
                    with contextlib.suppress(OSError, KeyError, ValueError):  # no limit: no file, or the word max
                        yield _room(group, *(CGROUP_V1 if kinds else CGROUP_V2))


def _room(group: Path, limit: str, used: str, cache: str) -> int:
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    # The system drops files from memory before it lets a group run out of it.
    held = int((group / used).read_text()) - int(stat[cache])
    return max(0, int((group / limit).read_text()) - held)
