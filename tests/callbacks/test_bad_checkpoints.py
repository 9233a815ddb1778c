"""Checkpoints that something has happened to: passed over in a line, and the run goes on from the one before."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import HUGE, MARK, OVERLAP, VAST, Evil
from commands import in_empty_folder, train

from flt.callbacks.checkpoint import newest, sealed

pytestmark = pytest.mark.slow  # whole runs and fits


ADAPTER, NEWEST = "adapter/adapter_model.safetensors", "round_0002.json"
CASES: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "cut off": (lambda data: data[: len(data) // 2], False),
    "empty": (lambda data: b"", False),
    "with a bit that has flipped": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), False),
    "a pickle": (lambda data: pickle.dumps(Evil()), False),
    "a pickle with a checksum": (lambda data: pickle.dumps(Evil()), True),
    "cut off, with a checksum": (lambda data: data[:-8], True),
    "a huge header, with a checksum": (lambda data: HUGE, True),
    "a tensor of a huge size, with a checksum": (lambda data: VAST, True),
    "overlapping tensors, with a checksum": (lambda data: OVERLAP, True),
}
"""What becomes of the state's file, and whether the manifest says that it is right."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of three rounds, and with the first two rounds of it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        in_empty_folder(folder, patch)
        assert train("algo=fedit", "rounds=3", "name=straight") == 0
        assert train("algo=fedit", "rounds=2", "name=before") == 0
    return folder


@pytest.fixture
def folder(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs, in which the test works."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path / "lightning_logs" / "before" / "version_0" / "checkpoints"


def put(manifest: dict[str, Any], folder: Path) -> None:
    (folder / NEWEST).write_text(json.dumps(sealed(manifest)))


def damaged(change: Callable[[bytes], bytes], claimed: bool, folder: Path) -> None:
    """Changes the newest state; where it is claimed, the manifest says that this is right."""
    manifest = json.loads((folder / NEWEST).read_text())
    state = folder / manifest["state"]
    state.write_bytes(change(state.read_bytes()))
    if claimed:
        manifest["files"][manifest["state"]] = hashlib.sha256(state.read_bytes()).hexdigest()
        put(manifest, folder)


@pytest.mark.parametrize("case", CASES)
def test_the_one_before_a_damaged_checkpoint_is_used(
    case: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(*CASES[case], folder)
    found = newest(folder)
    assert found is not None
    assert found[0].server.rounds == 1
    assert f"checkpoint {NEWEST} can't be used, trying the one before" in caplog.text
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("file", ["../../../before", "/etc/hostname", "clients/../../x.safetensors", "clients"])
def test_a_manifest_that_leads_out_of_the_folder_is_passed_over(
    file: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = json.loads((folder / NEWEST).read_text())
    put({**manifest, "files": {**manifest["files"], file: "0" * 64}}, folder)
    found = newest(folder)
    assert found is not None
    assert found[0].server.rounds == 1
    assert "allowed is names of files that flt writes" in caplog.text


@pytest.mark.parametrize(
    "name",
    ["zz.safetensors", "round_0009.json", "round_0009.safetensors", "clients/zz.safetensors", "x_end.safetensors"],
)
def test_a_folder_in_the_place_of_a_file_stays_and_the_run_goes_on(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "mine.txt").write_text("mine")
    assert train("algo=fedit", "rounds=3", "name=before", "resume=last") == 0
    assert (folder / name / "mine.txt").read_text() == "mine"
    straight, before = (tmp_path / "lightning_logs" / each / "version_0" / ADAPTER for each in ("straight", "before"))
    assert straight.read_bytes() == before.read_bytes()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.csv", "metrics.csv=a folder: allowed is a file that flt wrote, or nothing"),
        ("checkpoints/round_0003.json", "round_0003.json=a folder"),
        ("checkpoints/round_0003.safetensors", "round_0003.safetensors=a folder"),
        ("checkpoints", "resume=version_0: Not a directory; allowed is a run whose checkpoints can be read"),
        ("adapter", "resume=version_0/adapter: allowed is a folder that flt wrote, or nothing"),
        ("model", "resume=version_0/model: allowed is a folder that flt wrote, or nothing"),
    ],
)
def test_a_folder_for_a_file_or_a_file_for_a_folder_is_one_line(
    name: str, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = folder.parent / name
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.mkdir() if "." in name else place.write_text("mine")
    capsys.readouterr()
    assert train("algo=fedit", "rounds=3", "name=before", "resume=last") == 2
    (said,) = [said for said in capsys.readouterr().err.splitlines() if said]
    assert said.startswith(f"error: {line}")


@pytest.mark.parametrize("private", ["x", 3, [3], [["a", 0, "b"]], [[0, 0]], [[0, 0, {}]], {"a": 1}], ids=repr)
def test_a_manifest_with_other_types_is_passed_over(private: Any, folder: Path) -> None:
    put({**json.loads((folder / NEWEST).read_text()), "private": private}, folder)
    found = newest(folder)
    assert found is not None
    assert found[0].server.rounds == 1


def test_a_run_goes_on_from_the_one_before_to_the_same_bits(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged(*CASES["a pickle with a checksum"], folder)
    assert train("algo=fedit", "rounds=3", "name=before", "resume=last") == 0
    (said,) = [line for record in caplog.records if "can't be used" in (line := record.getMessage())]
    assert f"checkpoint {NEWEST} can't be used, trying the one before" in said
    straight, before = (tmp_path / "lightning_logs" / name / "version_0" / ADAPTER for name in ("straight", "before"))
    assert straight.read_bytes() == before.read_bytes()
    assert not (tmp_path / MARK).exists()
