"""Types of the configuration's values. conf/train.yaml contains the default values and explains each key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flt.callbacks.checkpoint import CheckpointConfig
from flt.callbacks.evaluate import EvalConfig
from flt.callbacks.fault_injection import FaultsConfig
from flt.callbacks.stop import StopConfig
from flt.client.settings import LocalConfig
from flt.core.cache import CacheConfig
from flt.core.errors import InputError
from flt.data.config import PartitionConfig
from flt.export.write import ExportConfig
from flt.models.adapters.c2a_settings import is_tested_with_counts
from flt.run.conf_groups import choices
from flt.run.loggers import check_names
from flt.server.client_sampling import CohortConfig
from flt.server.fleet.config import NONE

JOBS = ("per_client", "per_task")
FLEET_RANKS = "fleet"
"""Value of ``ranks`` for which each client's rank is the largest one that its memory allows."""
MOST_WORKERS = 1024
"""Largest number of threads, and of processes on a machine. torch crashes with a million threads."""
HEADS = ("shape", "task", "shared")


@dataclasses.dataclass
class TrainConfig:
    """Configuration of a run.

    The default values come from conf/train.yaml. The settings of data, model, adapter, engine and of each part of the
    recipe are dicts here. Each dict is later converted to a dataclass. In most cases, the dict's key ``name`` selects
    the dataclass.

    Raises:
        InputError: A value isn't allowed.
    """

    name: str
    algo: str
    root: str
    seed: int
    rounds: int
    clients: int
    ranks: Any
    jobs: str
    heads: str
    task_rounds: dict[str, list[int | None]] | None
    task_changes: dict[str, list[Any]] | None
    batch_size: int
    precision: str
    prefix_cache: bool
    compile: bool
    length_window: int
    threads: int | None
    devices: int
    report: bool
    resume: str | None
    min_updates: int | None
    max_retries: int
    client_timeout: float | None
    logger: list[str]
    partition: PartitionConfig
    cohort: CohortConfig
    local: LocalConfig
    eval: EvalConfig
    stop: StopConfig
    checkpoint: CheckpointConfig
    faults: FaultsConfig
    cache: CacheConfig
    export: ExportConfig
    data: dict[str, Any]
    model: dict[str, Any]
    adapter: dict[str, Any]
    engine: dict[str, Any]
    plan: dict[str, Any]
    schedule: dict[str, Any]
    selection: dict[str, Any]
    importance: dict[str, Any]
    grouping: dict[str, Any]
    rule: dict[str, Any]
    compression: dict[str, Any]
    transfer: dict[str, Any]
    server_optimizer: dict[str, Any]
    buffers: dict[str, Any]
    fleet: dict[str, Any]

    def __post_init__(self) -> None:
        for key in ("rounds", "clients", "batch_size", "length_window", "devices"):
            if getattr(self, key) < 1:
                raise InputError.of(key, getattr(self, key), "an integer >= 1")
        if self.seed < 0:
            raise InputError.of("seed", self.seed, "an integer >= 0")
        if self.threads is not None and not 1 <= self.threads <= MOST_WORKERS:
            raise InputError.of("threads", self.threads, f"an integer from 1 to {MOST_WORKERS}, or null")
        if self.devices > MOST_WORKERS:
            raise InputError.of("devices", self.devices, f"an integer from 1 to {MOST_WORKERS}")
        self._check_fleet()
        self._check_client_labels()
        if self.jobs not in JOBS:
            raise InputError.of("jobs", self.jobs, JOBS)
        if self.heads not in HEADS:
            raise InputError.of("heads", self.heads, HEADS)
        if not 0 <= self.partition.held_out < 1:
            raise InputError.of("partition.held_out", self.partition.held_out, "a number in [0, 1)")
        minima = {
            "examples": 1,
            "train_examples": 0,
            "test_examples": 1,
            "client_examples": 0,
            "batch_size": 1,
            "every": 1,
        }
        for key, least in minima.items():
            value = getattr(self.eval, key)
            if value is not None and value < least:
                raise InputError.of(f"eval.{key}", value, f"an integer >= {least}")
        if self.eval.train_examples and self.eval.by_column:
            raise InputError.of("eval.train_examples", self.eval.train_examples, "0 with eval.by_column=true")
        if self.checkpoint.keep < 1:
            raise InputError.of("checkpoint.keep", self.checkpoint.keep, "an integer >= 1")
        for group in ("adapter", "engine"):
            if getattr(self, group).get("name") not in choices(group):
                raise InputError.of(f"{group}.name", getattr(self, group).get("name"), choices(group))
        check_names(self.logger)
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise InputError.of("name", self.name, "a folder's name")

    def _check_client_labels(self) -> None:
        """Refuses tests with other label counts if C2A would not read them, so that all tests would be the same."""
        wanted = list(self.eval.client_labels)
        if wanted != ["own"] and self.adapter.get("name") == "c2a" and not is_tested_with_counts(self.adapter):
            allowed = "[own], or adapter.histogram=own with adapter.use_label=true"
            why = "the adapter is not evaluated with its client's label counts"
            raise InputError.of("eval.client_labels", f"[{','.join(wanted)}]", allowed, why)

    def _check_fleet(self) -> None:
        """Checks the ranks, and that what needs simulated devices has some."""
        ranks, devices = self.ranks, self.fleet.get("name") != NONE
        whole = isinstance(ranks, list) and all(isinstance(rank, int) and rank is not True for rank in ranks)
        if ranks not in (None, FLEET_RANKS) and not (whole and ranks and min(ranks) >= 1):
            raise InputError.of("ranks", ranks, f"a list of integers >= 1, {FLEET_RANKS}, or null")
        if self.fleet.get("name") not in choices("fleet"):
            raise InputError.of("fleet", self.fleet.get("name"), choices("fleet"))
        if ranks == FLEET_RANKS and not devices:
            raise InputError.of("ranks", ranks, "a list or null with fleet=none", "there are no devices")
        if self.stop.simulated_hours is not None and not devices:
            allowed = "null with fleet=none"
            raise InputError.of("stop.simulated_hours", self.stop.simulated_hours, allowed, "no clock is simulated")
