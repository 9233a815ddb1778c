"""First line of a run's record: its jobs, its layers, how it was started, and how often the rounds' parts are due."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import flt
from flt.callbacks.figures.pictures import class_counts
from flt.callbacks.record_format import BY_JOB, FORMAT
from flt.protocol.messages import JobId

if TYPE_CHECKING:
    from flt.server.federator import Federator

LISTED, COUNTS, SHOWN = 200, 200_000, 60
"""Largest number of jobs that are listed, of their class counts, and of jobs whose components are recorded."""
PART = 500_000
"""Approximate size in bytes of each part of the record, over all rounds."""
MAPS = 20
"""Approximate number of rounds whose updates are projected, which takes time if there are many updates."""
PACKAGES = ("torch", "lightning", "transformers", "peft", "numpy")


@dataclasses.dataclass(frozen=True)
class Header:
    """First line of a record.

    Attributes:
        line: Content of the line.
        jobs: Listed jobs. Other lines name a job by its place in this list.
        layers: Layer with LoRA -> its rank.
        shown: Places of the jobs whose components are recorded.
        each_job: Whether the metrics of each job are recorded. If not, their quantiles are.
    """

    line: dict[str, Any]
    jobs: list[JobId]
    layers: dict[str, int]
    shown: list[int]
    each_job: bool

    @classmethod
    def of(cls, line: Any) -> Header:
        """Reads the content of a first line.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: The line isn't one that :func:`begin` has made.
        """
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']}")
        jobs = [(int(client), int(index)) for client, index in line["jobs"]]
        layers = {str(name): int(rank) for name, rank in line["layers"]}
        if not all(type(every) is int and every > 0 for every in line["every"].values()):
            raise ValueError("a part that is due every 0 rounds")
        return cls(line, jobs, layers, [int(place) for place in line["shown"]], bool(line["each_job"]))

    @functools.cached_property
    def place(self) -> dict[JobId, int]:
        """Job -> its place in the list of jobs."""
        return {job: place for place, job in enumerate(self.jobs)}

    def is_of(self, other: Header) -> bool:
        """Returns whether the lines after another header may follow this one: they name the same jobs and layers."""
        parts = self.line["every"].keys() == other.line["every"].keys()
        return parts and (self.jobs, self.layers) == (other.jobs, other.layers)

    def is_due(self, part: str, round: int) -> bool:
        """Returns whether a part of a round's line is written in this round."""
        return round % int(self.line["every"][part]) == 0


def begin(federator: Federator, tasks: Mapping[JobId, str], command: str, device: str) -> Header:
    """Returns the first line of a new record.

    Args:
        federator: Federator with clients, layers and rounds.
        tasks: Job -> its task.
        command: Command or line of Python that makes such a run.
        device: Device on which the run trains.
    """
    every_job = sorted(tasks)
    data = {(client.id, i): job for client in federator.clients.values() for i, job in enumerate(client.data)}
    jobs = evenly(every_job, LISTED)
    classes = len(data[jobs[0]].label_counts)
    jobs = evenly(jobs, max(SHOWN, COUNTS // max(1, classes)))
    counts, names = class_counts([data[job] for job in jobs])
    layers = {name: layer.rank for name, layer in federator.server.layout.layers.items()}
    named = sorted(set(tasks.values()))
    line = {
        "format": FORMAT,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "since": federator.state.rounds + 1,
        "command": command,
        "versions": {"flt": flt.__version__, "python": platform.python_version(), **_versions()},
        "hardware": hardware(device),
        "clients": len(federator.clients),
        "of": len(every_job),
        "jobs": [list(job) for job in jobs],
        "tasks": named,
        "task": [named.index(tasks[job]) for job in jobs],
        "ranks": [federator.clients[job[0]].rank for job in jobs],
        "examples": [data[job].examples for job in jobs],
        "classes": names,
        "counts": [[None if np.isnan(count) else int(count) for count in row] for row in counts],
        "layers": [[name, rank] for name, rank in layers.items()],
    }
    return Header.of({**line, **_limits(federator.rounds, len(every_job), len(jobs), list(layers.values()))})


def _limits(rounds: int, jobs: int, listed: int, ranks: Sequence[int]) -> dict[str, Any]:
    """Returns what keeps the record small, given approximate numbers of bytes for a round of each part."""
    components, shown = sum(ranks), evenly(range(listed), SHOWN)
    each_job = jobs == listed and jobs * rounds <= PART // 12  # up to four metrics of some six characters
    sizes = {
        "clients": 28 * jobs if each_job else 1100,
        "trained": 3 * components,
        BY_JOB: len(shown) * (components // 4 + 8),
        "importance": 25 * components,
        "active": 3 * len(ranks),
        "groups": 3 * listed,
        "points": 26 * listed,
    }
    every = {part: max(1, math.ceil(size * rounds / PART)) for part, size in sizes.items()}
    every["clients"] = 1 if each_job else every["clients"]
    every["points"] = max(every["points"], math.ceil(rounds / MAPS))
    every[BY_JOB] = math.ceil(every[BY_JOB] / every["trained"]) * every["trained"]
    return {"each_job": each_job, "shown": shown, "every": every}


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """Returns at most so many items, evenly spaced, with the first and the last of them.

    Example:
        >>> evenly(range(10), 4)
        [0, 3, 6, 9]
    """
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def hardware(device: str) -> str:
    """Returns the kind of hardware, such as ``CPU (x86_64, 2 cores)``, without a name of the machine."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return f"{device.partition(':')[0].upper()} ({platform.machine()}, {os.cpu_count()} cores)"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
