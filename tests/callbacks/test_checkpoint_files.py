"""Whose checkpoints are read, and what is removed: those of this run and of its jobs, and nothing that isn't flt's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import toy_clients, toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks.checkpoint import Checkpoint, sealed
from flt.core.errors import InputError, OtherRunError
from flt.protocol.messages import decode, encode
from flt.protocol.state import ClientState
from flt.server.callback import FedCallback
from flt.server.federator import Federator

SETTINGS = {"seed": 0, "rule.name": "scaffold", "ranks": None, "local.lr": 0.1}


def federation(folder: Path, rounds: int, settings: dict[str, Any] | None = None, scaffold: bool = True) -> Federator:
    checkpoint = Checkpoint(folder, 2, SETTINGS if settings is None else settings)
    recipe = Recipe(Scaffold() if scaffold else Mean())
    federator = toy_federator(
        recipe, toy_clients(3), rounds=rounds, steps=1, callbacks=[checkpoint], optimizer="sgd", weight_decay=0.0
    )
    checkpoint.restore(federator)
    return federator


def bits(federator: Federator) -> list[bytes]:
    return [encode(federator.state), *(encode(state) for _, state in sorted(federator.client_states.items()))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of a run of two rounds."""
    federation(tmp_path / "version_0" / "checkpoints", 2).fit()
    return tmp_path / "version_0" / "checkpoints"


def read(folder: Path, number: int = 2) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / f"round_{number:04d}.json").read_text())
    return manifest


def write(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes a manifest with the right checksums of all files, as somebody could who knows how they are made."""
    manifest["files"] = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in manifest["files"]}
    (folder / f"round_{manifest['round']:04d}.json").write_text(json.dumps(sealed(manifest)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({**SETTINGS, "seed": 1}, "it is of a run with seed=1; allowed is"),
        ({**SETTINGS, "rule.name": "mean"}, "it is of a run with rule.name=mean; .* this run, with rule.name=scaffold"),
        ({**SETTINGS, "local.lr": 0.2, "ranks": [2, 4]}, r"a run with local.lr=0.2, ranks=\[2, 4\]; "),
    ],
    ids=["another seed", "another recipe", "two settings"],
)
def test_another_run_s_checkpoints_are_refused_by_name(settings: dict[str, Any], said: str, folder: Path) -> None:
    other = folder.parent.parent / "version_1" / "checkpoints"
    federation(other, 2, settings).fit()
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(OtherRunError, match=f"^resume=round_0002_end.safetensors: .*{said}"):
        federation(folder, 3)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_another_run_s_state_in_this_run_s_manifest_is_refused_though_the_checksum_is_right(folder: Path) -> None:
    other = folder.parent.parent / "version_1" / "checkpoints"
    federation(other, 2, {**SETTINGS, "rule.name": "mean"}, scaffold=False).fit()
    manifest = read(folder)
    shutil.copy(other / manifest["state"], folder / manifest["state"])
    write(folder, manifest)
    with pytest.raises(OtherRunError, match="^round_0002_end.safetensors=<another run's>: allowed is"):
        federation(folder, 3)


def test_a_manifest_that_hides_its_run_is_refused(folder: Path) -> None:
    manifest = read(folder)
    write(folder, {key: value for key, value in manifest.items() if key != "run"} | {"format": 2})
    with pytest.raises(OtherRunError, match="=<another run's>"):
        federation(folder, 3)


@pytest.mark.parametrize("how", ["the files", "the manifest's entries"])
def test_swapped_client_states_are_refused_by_name(how: str, folder: Path) -> None:
    manifest = read(folder)
    (first, *_), (second, *_) = ([file, client] for client, _, file in manifest["private"][:2])
    if how == "the files":
        one, two = (folder / first).read_bytes(), (folder / second).read_bytes()
        (folder / first).write_bytes(two)
        (folder / second).write_bytes(one)
    else:
        manifest["private"][0][2], manifest["private"][1][2] = second, first
    write(folder, manifest)
    with pytest.raises(OtherRunError, match=r"^clients/[01]_0_0002.safetensors=<of job \([01], 0\)>: allowed is"):
        federation(folder, 3)


def test_another_run_s_client_state_is_refused_by_name(folder: Path) -> None:
    other = folder.parent.parent / "version_1" / "checkpoints"
    federation(other, 2, {**SETTINGS, "seed": 1}).fit()
    shutil.copy(other / "clients/1_0_0002.safetensors", folder / "clients")
    write(folder, read(folder))
    with pytest.raises(OtherRunError, match="^clients/1_0_0002.safetensors=<another run's>: allowed is"):
        federation(folder, 3)


def test_client_states_that_are_swapped_during_a_run_are_refused(folder: Path) -> None:
    federator = federation(folder, 3)
    shutil.copy(folder / "clients/0_0_0002.safetensors", folder / "clients/1_0_0002.safetensors")
    with pytest.raises(OtherRunError, match="^clients/1_0_0002.safetensors=<of job"):
        federator.fit()


def test_a_message_that_is_no_client_state_is_passed_over(folder: Path) -> None:
    manifest = read(folder)
    (folder / "clients/0_0_0002.safetensors").write_bytes((folder / manifest["state"]).read_bytes())
    write(folder, manifest)
    assert federation(folder, 3).state.rounds == 1


def older(folder: Path) -> None:
    """Makes of the checkpoints what the version before wrote: nothing names the run or the job."""
    for path in folder.rglob("*.safetensors"):
        found = decode(path.read_bytes())
        if path.parent == folder:
            object.__setattr__(found, "run", "")
        path.write_bytes(encode(found if path.parent == folder else found.state))
    for number in (1, 2):
        manifest = read(folder, number)
        write(folder, {key: value for key, value in manifest.items() if key != "run"} | {"format": 2})


def test_a_checkpoint_of_the_version_before_goes_on_to_the_same_bits_and_gets_an_identity(
    folder: Path, tmp_path: Path
) -> None:
    older(folder)
    assert isinstance(decode((folder / "clients/0_0_0002.safetensors").read_bytes()), ClientState)
    again = federation(folder, 3)
    assert again.state.rounds == 2
    again.fit()
    straight = federation(tmp_path / "straight", 3)
    straight.fit()
    assert bits(again) == bits(straight)
    assert read(folder, 3)["run"] == SETTINGS
    with pytest.raises(OtherRunError, match="seed"):
        federation(folder, 4, {**SETTINGS, "seed": 1})


def test_a_run_keeps_its_identity_when_a_later_version_has_more_settings(folder: Path) -> None:
    again = federation(folder, 3, {**SETTINGS, "new": 5})
    again.fit()
    assert read(folder, 3)["run"] == SETTINGS
    federation(folder, 4).fit()


def lay(folder: Path) -> set[str]:
    """Puts files of others into the folder, with names like flt's, and returns the names."""
    (folder / "model.safetensors").write_bytes(b"mine")
    (folder / "clients" / "mine.txt").write_text("mine")
    (folder / "clients" / "9_0_0001.safetensors").write_bytes(b"mine")
    (folder / "round_0000.safetensors").write_bytes(b"mine")
    (folder / "round_notes.json").write_text("{}")
    (folder / "clients" / ".mine.tmp").write_text("mine")
    (folder / "round_table.safetensors").write_bytes(b"mine")
    (folder / "zz.safetensors").mkdir()
    (folder / "clients" / "8_0_0001.safetensors").symlink_to(folder / "clients" / "mine.txt")
    (folder / "round_0001.extra.json").symlink_to(folder / "round_notes.json")
    return {
        "model.safetensors", "clients/mine.txt", "clients/9_0_0001.safetensors", "round_0000.safetensors",
        "round_notes.json", "clients/.mine.tmp", "round_table.safetensors", "zz.safetensors",
        "clients/8_0_0001.safetensors", "round_0001.extra.json",
    }  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_files_of_others_stay_and_the_run_s_own_go(folder: Path) -> None:
    mine = lay(folder)
    federation(folder, 4).fit()
    manifests = {f"round_{number:04d}.json" for number in (3, 4)}
    named = {file for name in manifests for file in json.loads((folder / name).read_text())["files"]}
    assert names(folder) == mine | manifests | named | {"clients"}
    assert (folder / "model.safetensors").read_bytes() == b"mine"


def test_what_a_killed_process_of_this_run_left_goes(folder: Path) -> None:
    federation(folder.parent.parent / "other", 1, {**SETTINGS, "seed": 1}).fit()
    shutil.copy(folder / "clients/0_0_0002.safetensors", folder / "clients/0_0_0009_1.safetensors")
    shutil.copy(folder.parent.parent / "other/clients/0_0_0001.safetensors", folder / "clients/0_0_0008.safetensors")
    shutil.copy(folder / "round_0002_end.safetensors", folder / "round_0009.safetensors")
    leftover = [f".round_0003.json.{'a' * 16}.tmp", f"clients/.0_0_0003.safetensors.{'a' * 16}.tmp"]
    for name in leftover:
        (folder / name).write_bytes(b"half")
    federation(folder, 3).fit()
    found = names(folder)
    assert not found & {*leftover, "clients/0_0_0009_1.safetensors", "round_0009.safetensors"}
    assert "clients/0_0_0008.safetensors" in found  # another run's


def test_a_manifest_of_others_names_nothing_that_is_removed(folder: Path) -> None:
    (folder.parent / "x.safetensors").write_bytes(b"mine")
    (folder / "mine.safetensors").write_bytes(b"mine")
    files = {"../x.safetensors": "", "mine.safetensors": ""}
    others = {"format": 3, "round": 1, "state": "", "files": files, "private": [], "run": {"seed": 7}}
    (folder / "round_0001.json").write_text(json.dumps(sealed(others)))
    federation(folder, 4).fit()
    assert json.loads((folder / "round_0001.json").read_text()) == sealed(others)
    assert (folder.parent / "x.safetensors").exists()
    assert (folder / "mine.safetensors").exists()


def test_a_manifest_of_this_run_can_not_make_it_remove_what_is_no_state(folder: Path) -> None:
    mine = ["../x.safetensors", "../round_0001.safetensors", "mine.safetensors", "clients/mine.safetensors"]
    for name in mine:
        (folder / name).write_bytes(b"mine")
    manifest = read(folder, 1)
    write(folder, {**manifest, "state": mine[1], "files": dict.fromkeys([*manifest["files"], *mine])})
    federation(folder, 4).fit()
    assert all((folder / name).read_bytes() == b"mine" for name in mine)


def of_another_run(folder: Path, rounds: int) -> set[str]:
    """Puts the checkpoints that another run wrote after some rounds beside this run's, and returns their names."""
    other = folder.parent.parent / "other" / "checkpoints"
    federation(other, rounds, {**SETTINGS, "seed": 1}).fit()
    files = {f"round_{rounds:04d}.json", *read(other, rounds)["files"]}
    for name in files:
        shutil.copy(other / name, folder / name)
    return files


def test_another_run_s_whole_checkpoint_stays_and_counts_as_none_of_this_run_s(folder: Path) -> None:
    theirs = of_another_run(folder, 1)
    before = {name: (folder / name).read_bytes() for name in theirs}
    federation(folder, 4).fit()
    assert {name: (folder / name).read_bytes() for name in theirs} == before
    manifests = {path.name for path in folder.glob("round_*.json")}
    assert manifests == {"round_0001.json", "round_0003.json", "round_0004.json"}


@pytest.mark.parametrize("rounds", [3, 5])
def test_a_manifest_of_others_takes_no_place_among_those_that_are_kept(rounds: int, folder: Path) -> None:
    """The foreign one lies between this run's, so it would be one of the two newest."""
    federator = federation(folder, rounds)
    checkpoint = next(callback for callback in federator.callbacks if isinstance(callback, Checkpoint))
    checkpoint.keep = 3
    (folder / "round_0001.json").write_text("notes")
    (folder / "round_0000.json").write_text("notes")
    federator.fit()
    manifests = sorted(path.name for path in folder.glob("round_*.json"))
    own = [f"round_{number:04d}.json" for number in range(max(2, rounds - 2), rounds + 1)]
    assert manifests == ["round_0000.json", "round_0001.json", *own]


@pytest.mark.parametrize("text", ["notes", "", "[]", "[" * 100_000], ids=len)
def test_what_is_no_manifest_stays_whatever_it_is_called(text: str, folder: Path) -> None:
    mine = ("round_0000.json", "round_0009.json")
    for name in mine:
        (folder / name).write_text(text)
    for rounds in (3, 6):
        federation(folder, rounds).fit()
    assert all((folder / name).read_text() == text for name in mine)


def test_a_damaged_manifest_is_passed_over_until_the_run_writes_it_again(folder: Path) -> None:
    (folder / "round_0004.json").write_text("damaged")
    for rounds, found in ((3, 2), (4, 3), (5, 4)):
        federator = federation(folder, rounds)
        assert federator.state.rounds == found
        federator.fit()
    assert {path.name for path in folder.glob("round_*.json")} == {"round_0004.json", "round_0005.json"}


def test_a_manifest_that_is_damaged_after_this_process_wrote_it_goes_in_its_turn(folder: Path) -> None:
    class Damaging(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            if federator.state.rounds == 3:
                (folder / "round_0003.json").write_text("damaged")
                (folder / "round_0002.json").write_text("damaged")

    federator = federation(folder, 6)
    federator.callbacks = [*federator.callbacks, Damaging()]
    federator.fit()
    assert {path.name for path in folder.glob("round_*.*")} == {
        "round_0005.json", "round_0005.safetensors", "round_0006.json", "round_0006_end.safetensors",
    }  # fmt: skip


def test_a_manifest_that_others_put_in_the_place_of_the_run_s_own_during_the_run_stays(folder: Path) -> None:
    class Replacing(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            if federator.state.rounds == 4:
                of_another_run(folder, 3)

    federator = federation(folder, 6)
    federator.callbacks = [*federator.callbacks, Replacing()]
    federator.fit()
    assert {"round_0003.json", "round_0003_end.safetensors"} <= names(folder)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/clients"])
@pytest.mark.parametrize("moment", ["at the start", "during the run"])
def test_a_link_in_the_place_of_a_folder_is_refused_and_its_target_stays(
    place: str, moment: str, folder: Path, tmp_path: Path
) -> None:
    linked = folder.parent / place
    mine = tmp_path / "mine"
    (mine / "clients").mkdir(parents=True)
    for name in ("model.safetensors", "clients/mine.txt", "1_0_0001.safetensors"):
        (mine / name).write_bytes(b"mine")

    def link() -> None:
        linked.rename(tmp_path / "away")
        linked.symlink_to(mine)

    def run() -> None:
        federator = federation(folder, 3)
        if moment == "during the run":
            link()
        federator.fit()

    if moment == "at the start":
        link()
    with pytest.raises(InputError, match=f"^{place}=<link>: no link is followed here; allowed is"):
        run()
    assert names(mine) == {"clients", "model.safetensors", "clients/mine.txt", "1_0_0001.safetensors"}


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_checkpoints_and_client_states_are_their_owner_s_alone(tmp_path: Path) -> None:
    federation(tmp_path / "checkpoints", 2).fit()
    found = [tmp_path / "checkpoints", *(tmp_path / "checkpoints").rglob("*")]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in found}
    assert set(modes.values()) == {0o700, 0o600}
    assert {name for name, mode in modes.items() if mode == 0o700} == {"checkpoints", "clients"}


def test_a_folder_of_the_version_before_is_closed_to_others(folder: Path) -> None:
    folder.chmod(0o755)
    federation(folder, 3).fit()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("gone", ["version_0", "version_0/checkpoints/clients"])
def test_a_folder_that_is_removed_during_a_run_is_a_line(gone: str, folder: Path) -> None:
    class Removing(FedCallback):
        def on_round_start(self, federator: Federator) -> None:
            shutil.rmtree(folder.parent.parent / gone)

    federator = federation(folder, 3)
    federator.callbacks = [*federator.callbacks, Removing()]
    with pytest.raises(InputError, match="No such file or directory; allowed is a folder that stays"):
        federator.fit()
    assert not (folder.parent.parent / gone).exists()


def test_a_checkpoint_of_another_model_is_refused_by_the_tensor_also_without_an_identity(tmp_path: Path) -> None:
    toy_federator(callbacks=[Checkpoint(tmp_path)], rank=4).fit()
    with pytest.raises(InputError, match=r"^resume=fc1.*\(4, 6\): the checkpoint is of another model; allowed is fc1"):
        Checkpoint(tmp_path).restore(toy_federator(rank=2, rounds=2))
