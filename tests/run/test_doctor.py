"""``flt.doctor``: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import flt
from flt.run import doctor as module
from flt.run.check import MISSING, NOTE, OK, Check

REQUIRES = [
    "torch<2.14,>=2.13", "rich>=99", "nowhere-to-be-found>=1", "windows-only; sys_platform == 'win32'",
    "numpy>=1; extra == 'wandb'", "nothing-like-it>=3; extra == 'mlflow'", "pytest; extra == 'test'",
]  # fmt: skip


@pytest.fixture
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(name: str, **arguments: object) -> Check:
    (check,) = [check for check in flt.doctor(**arguments) if check.name == name and check.part != "flt"]  # type: ignore[arg-type]  # root
    return check


def test_this_environment_can_run_flt(healthy: Path) -> None:
    checks = flt.doctor()
    assert {check.state for check in checks} <= {OK, NOTE}
    assert checks[0] == Check("flt", "flt", OK, flt.__version__)
    versions = {check.name: check.found for check in checks if check.part == "package"}
    assert versions["torch"] == torch.__version__
    assert versions["lightning"] == importlib.metadata.version("lightning")
    assert checks[-1].name == "import"
    assert list(healthy.iterdir()) == []


def test_versions_are_compared_with_what_flt_needs(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.metadata.requires
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES if name == "flt" else own(name))
    checks = {check.name: check for check in flt.doctor()}
    assert checks["torch"].state == OK
    assert (checks["rich"].state, checks["rich"].advice) == (NOTE, "flt is tested with rich >=99")
    assert checks["nowhere-to-be-found"] == Check(
        "package", "nowhere-to-be-found", MISSING, "not installed", "pip install 'nowhere-to-be-found>=1'"
    )
    assert not {"windows-only", "pytest", "nothing-like-it"} & set(checks)
    assert checks["wandb"].state == OK
    assert checks["mlflow"].state == NOTE
    assert checks["mlflow"].advice == "for logs for MLflow (logger=mlflow): pip install 'flt[mlflow]'"


def test_a_checkout_that_is_not_installed_still_shows_versions(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    checks = {check.name: check for check in flt.doctor()}
    assert checks["installation"].state == NOTE
    assert checks["torch"].found == torch.__version__


def test_a_package_that_can_not_be_imported_is_missing(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libcudart.so.12: cannot open shared object file\nand more")

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=broken, metadata=importlib.metadata))
    last = flt.doctor()[-1]
    assert (last.name, last.state) == ("import", MISSING)
    assert last.found == "OSError: libcudart.so.12: cannot open shared object file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_can_not_be_written_is_missing(healthy: Path) -> None:
    (healthy / "runs").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    assert found("runs", root=healthy / "runs" / "mine").state == MISSING


def test_a_file_in_the_place_of_a_folder_is_missing(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (healthy / "file").touch()
    check = found("runs", root=healthy / "file" / "runs")
    assert (check.state, check.advice) == (MISSING, "root=<folder> writes the runs elsewhere")
    assert "it can't be written (Not a directory)" in check.found
    monkeypatch.setenv("FLT_CACHE", str(healthy / "file"))
    assert found("cache").state == MISSING


def test_a_full_disk_is_worth_a_note(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    assert found("runs").state == NOTE
    assert "3.0 MB free" in found("runs").found


def test_the_user_s_home_folder_is_not_named(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(healthy))
    monkeypatch.setenv("FLT_DATA", str(healthy))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2; secret")
    text = " ".join(f"{check.found} {check.advice}" for check in flt.doctor())
    assert "~/cache" in text
    assert str(healthy) not in text
    assert "secret" not in text


def test_data_files_are_named(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (healthy / "dolly15k.parquet").touch()
    (healthy / "cifar10.npz").touch()
    monkeypatch.setenv("FLT_DATA", str(healthy))
    assert found("FLT_DATA").found.endswith(", with cifar10, dolly")
    monkeypatch.setenv("FLT_DATA", str(healthy / "nowhere"))
    assert found("FLT_DATA").state == NOTE
    monkeypatch.delenv("FLT_DATA")
    assert found("FLT_DATA").found == "not set"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_is_said(value: str, offline: bool, healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", value)
    assert ("offline (HF_DATASETS_OFFLINE)" in module._hub().found) == offline


def test_each_gpu_is_named_with_its_memory(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    about = SimpleNamespace(name="Some GPU", total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: about)
    assert found("cuda:1") == Check("device", "cuda:1", OK, "Some GPU, 80.0 GB, bf16")
    assert "GPU" not in {check.name for check in flt.doctor()}


def test_threads_are_those_that_a_run_would_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module.openmp, "IS_GIVEN", False)
    assert module._threads(torch) == "1 to 8; a short trial at the start of each run decides (threads=)"
    monkeypatch.setattr(module.openmp, "IS_GIVEN", True)
    assert module._threads(torch) == "8 (OMP_NUM_THREADS)"
