"""Checkpoints: atomic, checked, tidy, and a crash at any moment changes no bit of what comes after it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import toy_clients, toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks import checkpoint_files
from flt.callbacks.checkpoint import FORMAT, Checkpoint, newest, sealed
from flt.core.errors import InputError
from flt.protocol.messages import Plan, decode, encode
from flt.server.callback import FedCallback
from flt.server.federator import Federator

ROUNDS = 4
CLIENTS = {
    number: dataclasses.replace(client, data=(dataclasses.replace(client.data[0], held_out=np.arange(0)),))
    for number, client in toy_clients().items()
}
"""Without evaluation, which no state depends on."""


def federation(folder: Path, rounds: int = ROUNDS, keep: int = 2) -> Federator:
    """Control variates are private states, of which a cohort of two leaves one where it was."""
    checkpoint, recipe = Checkpoint(folder, keep), Recipe(Scaffold())
    federator = toy_federator(
        recipe, CLIENTS, rounds=rounds, cohort=2, steps=1, callbacks=[checkpoint], optimizer="sgd", weight_decay=0.0
    )
    checkpoint.restore(federator)
    return federator


def bits(federator: Federator) -> list[bytes]:
    return [encode(federator.state), *(encode(state) for _, state in sorted(federator.client_states.items()))]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    federator = federation(tmp_path_factory.mktemp("undisturbed"))
    federator.fit()
    return bits(federator)


@pytest.mark.parametrize("write", [1, 2, 3], ids=["private", "snapshot", "manifest"])
@pytest.mark.parametrize("renamed", [False, True], ids=["before the rename", "after the rename"])
def test_a_crash_inside_a_checkpoint_changes_no_bit(
    write: int, renamed: bool, tmp_path: Path, undisturbed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation(tmp_path, rounds=2).fit()
    before, replace, calls = bits(federation(tmp_path)), Path.replace, []

    def crashing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) <= write:
            return replace(self, target)
        if renamed:
            replace(self, target)
        raise MemoryError("the machine stops here")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", crashing)
        with pytest.raises(MemoryError):
            federation(tmp_path).fit()
    assert len(calls) == write + 1
    again = federation(tmp_path)
    counted = write == 3 and renamed
    assert again.state.rounds == 2 + counted
    assert (bits(again) == before) != counted
    again.fit()
    assert bits(again) == undisturbed
    assert not any(name.endswith(".tmp") for name in names(tmp_path))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink], ids=["flipped", "cut", "gone"])
@pytest.mark.parametrize("file", ["round_0003*.safetensors", "clients/*_0003.safetensors"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    damage: Callable[[Path], None],
    file: str,
    tmp_path: Path,
    undisturbed: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation(tmp_path, rounds=3).fit()
    damage(min(tmp_path.glob(file)))
    again = federation(tmp_path)
    assert again.state.rounds == 2
    assert "round_0003.json can't be used" in caplog.text
    again.fit()
    assert bits(again) == undisturbed


@pytest.mark.parametrize("manifest", [{"format": 1}, sealed({"format": 1}), sealed({"format": FORMAT + 1})])
def test_a_checkpoint_of_another_version_is_refused_by_name(manifest: dict[str, Any], tmp_path: Path) -> None:
    federation(tmp_path, rounds=2).fit()
    (tmp_path / "round_0002.json").write_text(json.dumps(manifest))
    line = rf"checkpoint format={manifest['format']}: round_0002.json .*allowed is {FORMAT}"
    with pytest.raises(InputError, match=line):
        federation(tmp_path)


def test_an_older_manifest_that_is_damaged_is_in_nobodys_way(tmp_path: Path, undisturbed: list[bytes]) -> None:
    federation(tmp_path, rounds=3, keep=3).fit()
    halve(tmp_path / "round_0002.json")
    again = federation(tmp_path, keep=3)
    assert again.state.rounds == 3
    again.fit()
    assert bits(again) == undisturbed


def test_a_state_that_is_another_message_is_passed_over(tmp_path: Path) -> None:
    federation(tmp_path, rounds=2).fit()
    manifest, data = json.loads((tmp_path / "round_0002.json").read_text()), encode(Plan())
    (tmp_path / manifest["state"]).write_bytes(data)
    manifest["files"][manifest["state"]] = hashlib.sha256(data).hexdigest()
    (tmp_path / "round_0002.json").write_text(json.dumps(sealed(manifest)))
    assert federation(tmp_path).state.rounds == 1


NOTHING = {"format": FORMAT, "files": {}, "state": "", "private": []}
DAMAGED = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "no checksum": json.dumps(NOTHING),
    "another version in a damaged one": json.dumps({**sealed(NOTHING), "format": FORMAT + 1}),
    "no files": json.dumps(sealed({"format": FORMAT})),
    "a list of files": json.dumps(sealed({**NOTHING, "files": []})),
    "a state without a checksum": json.dumps(sealed({**NOTHING, "state": "round_0002.safetensors"})),
    "a path out of the folder": json.dumps(sealed({**NOTHING, "files": {"../x.safetensors": ""}})),
    "a private state without a checksum": json.dumps(sealed({**NOTHING, "private": [[0, 0, "clients/a"]]})),
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_passed_over(text: str, tmp_path: Path, undisturbed: list[bytes]) -> None:
    federation(tmp_path, rounds=3).fit()
    (tmp_path / "round_0003.json").write_text(text)
    again = federation(tmp_path)
    assert again.state.rounds == 2
    again.fit()
    assert bits(again) == undisturbed


@pytest.mark.parametrize("keep", [1, 2])
def test_where_all_are_damaged_the_run_is_refused_and_all_files_stay(
    keep: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "version_7" / "checkpoints"
    federation(folder, rounds=3, keep=keep).fit()
    for path in folder.glob("round_*.json"):
        halve(path)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    said = f"none of its {keep} checkpoints can be used, and nothing was changed"
    with pytest.raises(InputError, match=f"^resume=version_7: {said}; allowed is a new run"):
        federation(folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before
    lines = [record.getMessage() for record in caplog.records]
    assert [("trying the one before" in line) for line in lines] == [True] * (keep - 1) + [False]


def test_checkpoints_that_can_not_be_listed_are_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint_files.os, "listdir", denied)
    with pytest.raises(InputError, match="^resume=version_7: Permission denied; allowed is a run whose"):
        newest(tmp_path / "version_7" / "checkpoints")


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_last_few_are_kept_with_all_that_they_name_and_nothing_else(keep: int, tmp_path: Path) -> None:
    federation(tmp_path, keep=keep).fit()
    manifests = sorted(tmp_path.glob("round_*.json"))
    assert [path.stem for path in manifests] == [f"round_{n:04d}" for n in range(1, ROUNDS + 1)][-keep:]
    named = {file for path in manifests for file in json.loads(path.read_text())["files"]}
    assert names(tmp_path) == named | {path.name for path in manifests}


def test_a_run_that_goes_on_after_its_end_keeps_what_its_older_checkpoints_name(tmp_path: Path) -> None:
    federation(tmp_path, rounds=2, keep=3).fit()
    federation(tmp_path, rounds=4, keep=3).fit()
    manifests = sorted(tmp_path.glob("round_*.json"))
    assert [path.stem for path in manifests] == ["round_0002", "round_0003", "round_0004"]
    assert {file for path in manifests for file in json.loads(path.read_text())["files"]} <= names(tmp_path)


def test_every_kept_checkpoint_can_be_gone_on_from(tmp_path: Path, undisturbed: list[bytes]) -> None:
    federation(tmp_path, keep=9).fit()
    for rounds in (3, 2, 1):
        (tmp_path / f"round_{rounds + 1:04d}.json").unlink()
        again = federation(tmp_path, keep=9)
        assert again.state.rounds == rounds
        again.fit()
        assert bits(again) == undisturbed
        for late in range(rounds + 1, ROUNDS + 1):
            (tmp_path / f"round_{late:04d}.json").unlink()


def test_private_states_are_those_of_the_manifest_though_later_ones_lie_beside(tmp_path: Path) -> None:
    federation(tmp_path, rounds=2, keep=9).fit()
    then = bits(federation(tmp_path))
    federation(tmp_path, rounds=3, keep=9).fit()
    (tmp_path / "round_0003.json").unlink()
    assert list(tmp_path.glob("clients/*_0003.safetensors"))
    assert bits(federation(tmp_path)) == then


def test_files_are_safetensors_and_json_without_pickle(tmp_path: Path) -> None:
    federation(tmp_path).fit()
    for name in names(tmp_path):
        data = (tmp_path / name).read_bytes()
        if name.endswith(".json"):
            json.loads(data)
        else:
            assert name.endswith(".safetensors")
            decode(data)


def test_round_10000_is_newer_than_round_9999(tmp_path: Path) -> None:
    federation(tmp_path, rounds=1).fit()
    (manifest,) = tmp_path.glob("*.json")
    for number in (9999, 10000):
        content = json.loads(manifest.read_text())
        old, new = content["state"], f"round_{number}.safetensors"
        content |= {"round": number, "state": new, "files": {**content["files"], new: content["files"][old]}}
        (tmp_path / f"round_{number}.json").write_text(json.dumps(sealed(content)))
        (tmp_path / new).write_bytes((tmp_path / old).read_bytes())
    found = newest(tmp_path)
    assert found is not None
    assert found[1]["round"] == 10000


class Counter(FedCallback):
    rounds = 0

    def on_round_end(self, federator: Federator) -> None:
        self.rounds += 1

    def state_dict(self) -> dict[str, int]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.rounds = state["rounds"]


def test_history_and_the_states_of_callbacks_come_back(tmp_path: Path) -> None:
    first = toy_federator(rounds=2, callbacks=[Counter(), Checkpoint(tmp_path)])
    first.fit()
    counter, checkpoint = Counter(), Checkpoint(tmp_path)
    again = toy_federator(rounds=3, callbacks=[counter, checkpoint])
    checkpoint.restore(again)
    assert again.history == first.history
    again.fit()
    assert counter.rounds == 3
    assert [metrics["round"] for metrics in again.history] == [1, 2, 3]


def test_without_a_checkpoint_nothing_is_made_and_nothing_changes(tmp_path: Path) -> None:
    federator = federation(tmp_path / "none")
    assert federator.state.rounds == 0
    assert not (tmp_path / "none").exists()
