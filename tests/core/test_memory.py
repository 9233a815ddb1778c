"""The free memory, from what Linux tells about the machine and about containers, or without any of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flt.core import memory

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB of free memory. Its files are in this folder."""
    (tmp_path / "meminfo").write_text(f"MemTotal:       {16 << 20} kB\nMemAvailable:   {8 << 20} kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    return tmp_path


def put(folder: Path, limit: object, used: int, cached: int, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (limit_file, used_file, key) = memory.CGROUP_V2 if version == 2 else memory.CGROUP_V1
    (folder / limit_file).write_text(f"{limit}\n")
    (folder / used_file).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{key} {cached}\n")


def test_without_cgroups_the_free_memory_is_the_machines(system: Path) -> None:
    assert memory.available_memory(CPU) == 8 * GIB


@pytest.mark.parametrize("limit", ["max", 100 * GIB, 1 << 63])
def test_a_cgroup_without_a_limit_or_with_a_high_one_changes_nothing(system: Path, limit: object) -> None:
    (system / "cgroup").write_text("0::/\n")
    put(system / "groups", limit, 5 * GIB, 0)
    assert memory.available_memory(CPU) == 8 * GIB


def test_a_limit_of_cgroup_v2_counts_without_the_files_that_are_only_cached(system: Path) -> None:
    (system / "cgroup").write_text("0::/job\n")
    put(system / "groups" / "job", 4 * GIB, 3 * GIB, GIB)
    assert memory.available_memory(CPU) == 2 * GIB


def test_a_limit_of_cgroup_v1_counts(system: Path) -> None:
    (system / "cgroup").write_text("7:blkio:/\n4:cpu,memory:/job\n0::/\n")
    put(system / "groups" / "memory" / "job", 4 * GIB, 3 * GIB, GIB, version=1)
    assert memory.available_memory(CPU) == 2 * GIB


def test_a_limit_of_a_group_around_the_own_one_counts(system: Path) -> None:
    (system / "cgroup").write_text("0::/service/job\n")
    put(system / "groups" / "service" / "job", "max", 0, 0)
    put(system / "groups" / "service", 3 * GIB, GIB, 0)
    assert memory.available_memory(CPU) == 2 * GIB


def test_a_container_that_sees_only_its_own_group_at_the_root_has_its_limit(system: Path) -> None:
    (system / "cgroup").write_text("4:memory:/docker/0123\n")
    put(system / "groups" / "memory", GIB, 0, 0, version=1)
    assert memory.available_memory(CPU) == GIB


def test_more_use_than_the_limit_leaves_nothing(system: Path) -> None:
    (system / "cgroup").write_text("0::/\n")
    put(system / "groups", GIB, 2 * GIB, 0)
    assert memory.available_memory(CPU) == 0


@pytest.mark.parametrize("text", [None, "", "MemTotal: 1 kB\n", "no such lines\n"])
def test_without_meminfo_the_free_memory_is_all_memory(
    system: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system / "meminfo").unlink()
    if text is not None:
        (system / "meminfo").write_text(text)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available_memory(CPU) == 4_096_000


@pytest.mark.parametrize("told", [-1, ValueError("unrecognized configuration name"), OSError("not supported")])
def test_where_the_system_tells_nothing_there_is_no_bound(
    system: Path, told: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sysconf(name: str) -> object:
        if isinstance(told, Exception):
            raise told
        return told

    (system / "meminfo").unlink()
    monkeypatch.setattr(os, "sysconf", sysconf)
    assert memory.available_memory(CPU) == sys.maxsize


@pytest.mark.skipif(not memory.STATUS.exists(), reason="the system doesn't tell it")
def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    held = np.ones(2**26)  # 512 MiB, which the child would inherit
    code = "import torch; from flt.core.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) < held.nbytes < memory.peak_memory(CPU)
