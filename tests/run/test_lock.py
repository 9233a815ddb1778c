"""One process at a time trains a run, in its own folder, and no link leads it out of there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import finished_run, in_empty_folder, train
from filelock import FileLock

from flt.callbacks.checkpoint import Checkpoint
from flt.core import cache
from flt.core.errors import InputError
from flt.core.locks import unlock
from flt.run.compose import load_config
from flt.run.folder import LOCK, PLACES, folder_of, lock, tidy
from flt.run.resume import fixed_settings
from flt.server.federator import Federator

HOLDER = """
import sys, time
from filelock import FileLock
held = FileLock(sys.argv[1])
held.acquire()
print(flush=True)
time.sleep(120)
"""
ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


@contextlib.contextmanager
def holder(run: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that trains the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, run / LOCK], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refusing(number: int) -> Callable[..., None]:
    """A flock of a file system that refuses it."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def taken(run: Path) -> FileLock:
    held = lock(run)
    assert held is not None
    return held


def test_the_second_process_is_refused_and_a_killed_one_leaves_no_lock() -> None:
    run = folder_of(load_config(["algo=fedit"]))
    with holder(run) as process:
        with pytest.raises(InputError) as error:
            lock(run)
        line = "resume=version_0: another process is training it; allowed is a run that no other process is training"
        assert str(error.value) == line
        process.kill()
        process.wait()
        assert (run / LOCK).exists()
        unlock(taken(run))
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_files_have_no_locks_a_run_goes_on_with_a_warning_and_leaves_no_lock(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    run = folder_of(load_config(["algo=fedit"]))
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    assert lock(run) is None
    assert lock(run, "here") is None  # as after a kill
    why = f"no lock keeps other processes from training this run at once ({os.strerror(number)})"
    assert [record.getMessage() for record in caplog.records] == [f"resume=version_0: {why}", f"root=here: {why}"]
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert not recwarn.list


@pytest.mark.parametrize(("root", "key"), [(None, "resume=version_0"), ("here", "root=here")])
def test_an_error_of_the_lock_names_the_key_that_the_folder_comes_from(
    root: str | None, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder_of(load_config(["algo=fedit"]))
    monkeypatch.setattr(fcntl, "flock", refusing(errno.EIO))
    with pytest.raises(InputError, match=f"^{key}: {os.strerror(errno.EIO)}; allowed is a folder that can be written$"):
        lock(run, root)


@pytest.mark.slow
def test_a_run_where_files_have_no_locks_ends_and_is_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOSYS))
    assert train("algo=fedit") == 0
    assert train("algo=fedit", "resume=last", "rounds=2") == 0
    assert sum("no lock keeps other processes" in record.getMessage() for record in caplog.records) == 2


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(folder: Path) -> None:
    run = folder_of(load_config(["algo=fedit"]))
    (folder / "mine").write_text("mine")
    (run / LOCK).symlink_to(folder / "mine")
    with pytest.raises(InputError, match="^resume=version_0: .*; allowed is a folder that can be written"):
        lock(run)
    assert (folder / "mine").read_text() == "mine"


@pytest.mark.parametrize("place", ["", *PLACES])
def test_a_link_in_the_place_of_a_folder_of_the_run_is_refused(place: str, folder: Path) -> None:
    run = folder_of(load_config(["algo=fedit"]))
    mine, linked = folder / "mine", run / place
    if place:
        linked.parent.mkdir(exist_ok=True)
        linked.unlink(missing_ok=True)
    else:
        run.rename(folder / "away")
    mine.mkdir()
    linked.symlink_to(mine)
    with pytest.raises(
        InputError, match=f"^{place or run.name}=<link>: no link is followed here; allowed is the run's own"
    ):
        lock(run)
    assert not list(mine.iterdir())


def test_leftovers_of_a_killed_process_go_and_files_of_others_stay() -> None:
    run = folder_of(load_config(["algo=fedit"]))
    random = "0123456789abcdef"
    for name in (f".export-{random}", ".export-mine", ".export"):
        (run / name / "group_0").mkdir(parents=True)
        (run / name / "group_0" / "adapter_model.safetensors").write_bytes(b"")
    (run / ".export" / "mine.txt").write_text("mine")
    for name in (f".config.yaml.{random}.tmp", f".notes.{random}.tmp", ".config.yaml.tmp"):
        (run / name).write_text("")
    tidy(run)
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert left == {
        "config.yaml", f".notes.{random}.tmp", ".config.yaml.tmp", ".export/mine.txt",
        ".export-mine/group_0/adapter_model.safetensors",
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_refused_in_a_line_and_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(folder, "fedit")
    with holder(run):
        before = contents(run)
        for overrides in (["rounds=2"], []):
            capsys.readouterr()
            assert train("algo=fedit", "resume=last", *overrides) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("error: resume=version_0: another process is training it; allowed is")
        assert contents(run) == before
    assert train("algo=fedit", "resume=last", "rounds=2") == 0
    assert not (run / LOCK).exists()


STARTED = [
    "algo=fedit", "rounds=500", "clients=3", "local.steps=1", "eval.examples=20", "eval.client_examples=4", "threads=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_resume_beside_the_first_run_is_refused_and_goes_on_once_that_is_killed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = subprocess.Popen([sys.executable, "-m", "flt", "train", *STARTED], stdout=subprocess.DEVNULL)
    run = folder / "lightning_logs/fedit/version_0"
    try:
        end = time.monotonic() + 120
        while not (run / "checkpoints/round_0001.json").exists() and not (run / "checkpoints/round_0002.json").exists():
            assert time.monotonic() < end
            assert first.poll() is None
            time.sleep(0.01)
        capsys.readouterr()
        assert train("algo=fedit", "resume=last", "rounds=501") == 2
        assert "another process is training it" in capsys.readouterr().err
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    done = max(int(path.stem.removeprefix("round_")) for path in (run / "checkpoints").glob("round_*.json"))
    assert train("algo=fedit", "resume=last", f"rounds={done + 1}") == 0
    assert (run / ADAPTER).is_file()


@pytest.mark.slow
def test_of_two_resumes_at_once_one_goes_on(folder: Path) -> None:
    run = finished_run(folder, "fedit")
    command = [sys.executable, "-m", "flt", "train", "algo=fedit", "resume=last", "rounds=12"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    # Where one had ended before the other began, the other finds nothing left to do.
    assert codes in ([0, 2], [0, 0]), said
    assert any(("another process is training it" in text) or ("nothing is left to do" in text) for text in said), said
    assert (run / ADAPTER).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["version_0", "checkpoints", "adapter"])
def test_a_resume_through_a_link_is_a_line_and_the_target_stays(
    place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(folder, "fedit")
    linked, mine = (run if place == "version_0" else run / place), folder / "mine"
    linked.rename(mine)
    (mine / "model.safetensors").write_bytes(b"mine")
    (mine / "clients").mkdir()
    (mine / "clients" / "mine.txt").write_text("mine")
    linked.symlink_to(mine)
    before = contents(mine)
    capsys.readouterr()
    assert train("algo=fedit", "resume=last", "rounds=2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {place}=<link>: no link is followed here; allowed is")
    assert contents(mine) == before


@pytest.mark.slow
def test_the_folder_of_all_runs_may_be_a_link(folder: Path) -> None:
    (folder / "disk").mkdir()
    (folder / "lightning_logs").symlink_to(folder / "disk")
    assert train("algo=fedit") == 0
    assert train("algo=fedit", "resume=last", "rounds=2") == 0
    assert (folder / "disk/fedit/version_0" / ADAPTER).is_file()


@pytest.mark.slow
def test_files_of_others_in_an_export_stay(folder: Path) -> None:
    run = finished_run(folder, "fedit")
    (run / "adapter" / "notes").mkdir()
    (run / "adapter" / "notes" / "mine.txt").write_text("mine")
    (run / "adapter" / "README.md").write_text("mine")
    before = (run / ADAPTER).read_bytes()
    assert train("algo=fedit", "resume=last", "rounds=2") == 0
    assert (run / ADAPTER).read_bytes() != before
    assert (run / "adapter" / "notes" / "mine.txt").read_text() == "mine"
    assert (run / "adapter" / "README.md").read_text() == "mine"
    for name in ("adapter_model.safetensors", "adapter_config.json", "flt_base.json"):
        (run / "adapter" / name).unlink()  # what is left is no export
    assert train("algo=fedit", "resume=last", "rounds=2") == 0
    assert (run / ADAPTER).is_file()
    assert (run / "adapter" / "README.md").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["on_round_start", "on_fit_end"])
def test_a_run_s_folder_that_is_removed_during_the_run_is_a_line(
    moment: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = getattr(Checkpoint, moment)

    def removing(self: Checkpoint, federator: Federator) -> None:
        before(self, federator)
        shutil.rmtree(folder / "lightning_logs/fedit/version_0", ignore_errors=True)

    monkeypatch.setattr(Checkpoint, moment, removing)
    assert train("algo=fedit", "rounds=2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No such file or directory; allowed is a folder that stays" in line
    assert not (folder / "lightning_logs/fedit/version_0").exists()


@pytest.mark.slow
def test_another_run_s_checkpoints_are_refused_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SCAFFOLD doesn't go on from FedIT's checkpoint, nor one seed from another's."""
    for name, *overrides in (("one", "algo=scaffold"), ("two", "algo=fedit"), ("three", "algo=scaffold", "seed=1")):
        assert train(*overrides, f"name={name}") == 0
    one = folder / "lightning_logs/one/version_0/checkpoints"
    shutil.rmtree(one)
    for name, key in (("two", "rule.name=mean"), ("three", "seed=1")):
        shutil.copytree(folder / f"lightning_logs/{name}/version_0/checkpoints", one)
        before = contents(one.parent)
        capsys.readouterr()
        assert train("algo=scaffold", "name=one", "resume=last", "rounds=2") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: resume=round_0001_end.safetensors: it is of a run with ")
        assert key in line
        assert contents(one.parent) == before
        shutil.rmtree(one)


def test_the_settings_of_a_run_are_all_that_a_resume_may_not_change() -> None:
    def settings(*overrides: str) -> dict[str, object]:
        return fixed_settings(load_config(["algo=fedit", *overrides]))

    plain = settings()
    for free in (
        "rounds=3",
        "threads=1",
        "checkpoint.keep=5",
        "cache.keep=false",
        "name=x",
        "root=y",
        "stop.patience=2",
    ):
        assert settings(free) == plain, free
    for fixed in ("seed=1", "local.lr=0.5", "clients=3", "rule=median", "partition.alpha=1", "batch_size=4"):
        assert settings(fixed) != plain, fixed
    assert settings("schedule=annealed", "rounds=3") != settings("schedule=annealed", "rounds=4")
    assert "secret" not in str(settings("data=/secret/reviews.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_run_keeps_its_entries_of_the_cache_or_removes_them_at_its_end(
    keep: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import save_bert, save_reviews

    monkeypatch.setenv("FLT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(cache, "_used", set())
    save_bert(folder / "model")
    save_reviews(folder / "data.csv")
    overrides = [f"data={folder / 'data.csv'}", f"model={folder / 'model'}", f"cache.keep={str(keep).lower()}"]
    assert train("algo=fedit", *overrides) == 0
    assert bool(cache.entries()) == keep
    assert {path.name for path in (folder / "cache").iterdir()} == {"tokens"}
    assert train("algo=fedit", *overrides, "resume=last", "rounds=2") == 0
    assert bool(cache.entries()) == keep


@pytest.mark.slow
def test_client_states_and_checkpoints_of_a_run_are_their_owner_s_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert train("algo=scaffold") == 0
    finally:
        os.umask(before)
    run = folder / "lightning_logs/scaffold/version_0"
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in [run / "checkpoints", *(run / "checkpoints").rglob("*")]
    }
    assert set(modes.values()) == {0o700, 0o600}
    assert (run / "metrics.csv").stat().st_mode & 0o777 == 0o666
