"""Checkpoints that something has happened to: passed over in a line, and the run goes on from the one before."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs import HUGE, MARK, OVERLAP, VAST, Evil
from commands import in_empty_folder, train

from flt.callbacks.checkpoint import sealed

ADAPTER = "adapter/adapter_model.safetensors"
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


def gone_on(folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any]) -> str:
    """Goes on with a run of two rounds after its newest checkpoint was damaged; returns what was said."""
    assert train("algo=fedit", "rounds=3", "name=straight") == 0
    assert train("algo=fedit", "rounds=2", "name=before") == 0
    damage(folder / "lightning_logs" / "before" / "version_0" / "checkpoints")
    caplog.clear()
    assert train("algo=fedit", "rounds=3", "name=before", "resume=last") == 0
    straight, before = (folder / "lightning_logs" / name / "version_0" / ADAPTER for name in ("straight", "before"))
    assert straight.read_bytes() == before.read_bytes()
    assert not (folder / MARK).exists()
    (said,) = [line for record in caplog.records if "can't be used" in (line := record.getMessage())]
    return said


@pytest.mark.parametrize("case", CASES)
def test_the_one_before_a_damaged_checkpoint_is_used_and_the_bits_are_the_same(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    change, claimed = CASES[case]

    def damage(checkpoints: Path) -> None:
        path = checkpoints / "round_0002.json"
        manifest = json.loads(path.read_text())
        state = checkpoints / manifest["state"]
        state.write_bytes(change(state.read_bytes()))
        if claimed:
            manifest["files"][manifest["state"]] = hashlib.sha256(state.read_bytes()).hexdigest()
            path.write_text(json.dumps(sealed(manifest)))

    assert "checkpoint round_0002.json can't be used, trying the one before" in gone_on(tmp_path, caplog, damage)


@pytest.mark.parametrize("file", ["../../../before", "/etc/hostname", "clients/../../x.safetensors", "clients"])
def test_a_manifest_that_leads_out_of_the_folder_is_passed_over(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_empty_folder(tmp_path, monkeypatch)

    def damage(checkpoints: Path) -> None:
        path = checkpoints / "round_0002.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(sealed({**manifest, "files": {**manifest["files"], file: "0" * 64}})))

    assert "allowed is names of files that flt writes" in gone_on(tmp_path, caplog, damage)
