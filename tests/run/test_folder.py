"""Run folders: numbers, and going on with a run."""

from __future__ import annotations

import dataclasses
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from commands import QUICK, finished_run, in_empty_folder, metrics, train

from flt.core.errors import InputError
from flt.run import build
from flt.run.compose import load_config
from flt.run.folder import folder_of
from flt.run.resume import _find, configure

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Path:
    """A finished run of one round."""
    return finished_run(folder, "fedit")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.slow
def test_a_run_in_a_folder_that_can_not_be_written_is_refused_in_a_line_and_stays_as_it_is(
    number: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    before = contents(run)
    capsys.readouterr()
    monkeypatch.setattr("flt.run.folder.write_atomically", refused)
    assert train("algo=fedit", "rounds=2", f"resume={run}") == 2
    line = f"error: resume=version_0: {os.strerror(number)}; allowed is a folder that can be written\n"
    assert capsys.readouterr().err == line
    assert contents(run) == before


def test_a_folder_that_can_not_be_looked_into_is_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, stat = load_config(["resume=somebody/version_0"]), os.stat

    def denied(path: object, **how: object) -> os.stat_result:
        if "somebody" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **how)  # type: ignore[arg-type]  # whatever it is called with

    monkeypatch.setattr(os, "stat", denied)
    with pytest.raises(InputError, match="^resume=somebody/version_0: there is no config.yaml in it"):
        _find(cfg)


@pytest.mark.parametrize(
    ("there", "number"),
    [([], 0), ([0], 1), ([0, 1, 5], 6), ([*range(11)], 11)],
    ids=["none", "one", "a gap", "more than ten"],
)
def test_a_new_run_takes_the_next_number(there: list[int], number: int, folder: Path) -> None:
    for taken in there:
        (folder / f"lightning_logs/fedit/version_{taken}").mkdir(parents=True)
    (folder / "lightning_logs/fedit/version_x").mkdir(parents=True)
    assert folder_of(load_config(["algo=fedit"])).name == f"version_{number}"


def test_runs_that_start_at_once_have_folders_of_their_own() -> None:
    cfg = load_config(["algo=fedit"])
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: folder_of(cfg), range(32)))
    assert len(set(folders)) == 32
    assert all((path / "config.yaml").is_file() for path in folders)


def test_last_is_the_newest_run_that_was_started(folder: Path) -> None:
    cfg = load_config(["algo=fedit"])
    for _ in range(11):
        newest = folder_of(cfg)
    (folder / "lightning_logs/fedit/version_99").mkdir()
    assert configure(["algo=fedit", "resume=last"]).resume == str(newest)
    assert newest.name == "version_10"


def test_last_goes_on_with_the_run_of_the_same_name(folder: Path) -> None:
    folder_of(load_config(["algo=fedit", "name=mine", "seed=3"]))
    folder_of(load_config(["algo=fedit"]))
    cfg = configure(["algo=fedit", "name=mine", "resume=last"])
    assert (cfg.resume, cfg.seed) == ("lightning_logs/mine/version_0", 3)


@pytest.mark.slow
def test_without_a_run_yet_one_starts_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert train("algo=fedit", "resume=last") == 0
    assert "there is no run in lightning_logs/fedit yet, so a new one starts" in caplog.text
    assert (folder / "lightning_logs/fedit/version_0" / ADAPTER).is_file()


@pytest.mark.slow
def test_a_finished_run_says_so_and_nothing_is_rewritten(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, made = contents(run), (run / ADAPTER).stat().st_mtime_ns
    assert train("algo=fedit", "resume=last") == 0
    assert "has finished after 1 of 1 rounds" in caplog.text
    assert contents(run) == before
    assert (run / ADAPTER).stat().st_mtime_ns == made


@pytest.mark.slow
def test_a_run_without_its_export_is_exported_again(run: Path) -> None:
    before = (run / ADAPTER).read_bytes()
    (run / "adapter").rename(run.parent / "taken away")
    assert train("algo=fedit", "resume=last") == 0
    assert (run / ADAPTER).read_bytes() == before


@pytest.mark.slow
def test_rounds_may_grow_and_the_run_is_that_of_the_larger_number(run: Path, folder: Path) -> None:
    assert train("algo=fedit", "rounds=2", "resume=last") == 0
    assert train("algo=fedit", "rounds=2", "name=straight") == 0
    straight = folder / "lightning_logs/straight/version_0"
    assert (run / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    grown, whole = metrics(run), metrics(straight)
    assert [row["round"] for row in grown] == ["1", "2"]
    assert {key for key in grown[0] if grown[0][key] != whole[0][key]} <= {"test/acc", "test/loss"}  # of its own end
    assert grown[1] == whole[1]
    assert "rounds: 2\n" in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_the_folder_of_a_run_is_as_good_as_last(run: Path) -> None:
    assert train("algo=fedit", "rounds=2", f"resume={run}") == 0
    assert [row["round"] for row in metrics(run)] == ["1", "2"]


@pytest.mark.parametrize(
    ("override", "old"),
    [
        ("seed=1", "0"),
        ("clients=4", "3"),
        ("local.lr=0.5", "0.005"),
        ("partition.alpha=9.0", "0.5"),
        ("ranks=[2,4]", "None"),
        ("selection=freeze", "all"),
        ("rule=scaffold", "mean"),
        ("experiment=rank_tiers", "None"),
    ],
)
def test_a_key_that_contradicts_the_run_is_refused_by_name(
    override: str, old: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(load_config(["algo=fedit", *(f"{key}={value}" for key, value in QUICK.items())]))
    before = contents(folder)
    assert train("algo=fedit", "resume=last", override) == 2
    (line,) = capsys.readouterr().err.splitlines()
    key = override.partition("=")[0].replace("experiment", "ranks")
    assert line.startswith(f"error: {key}=")
    assert old in line.partition("allowed is")[2]
    assert contents(folder) == before


@pytest.mark.parametrize(
    "text",
    ["a: [", "- 1", "", "rule: {_target_: os.system}"],
    ids=["broken", "list", "empty", "target in a part"],
)
def test_a_config_that_flt_did_not_write_is_one_line(text: str, folder: Path) -> None:
    made = folder_of(load_config(["algo=fedit"]))
    (made / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="allowed is") as error:
        build.recipe(configure(["algo=fedit", "resume=last"]), 1)
    assert "\n" not in str(error.value)


def test_a_run_may_go_on_with_another_limit_of_the_cache(folder: Path) -> None:
    folder_of(load_config(["algo=hafl", "cache.max_gb=3"]))
    assert configure(["algo=hafl", "resume=last"]).cache.max_gb == 3
    assert configure(["algo=hafl", "resume=last", "cache.max_gb=5"]).cache.max_gb == 5


def test_the_saved_configuration_is_the_run_s_whatever_the_defaults_become(folder: Path) -> None:
    cfg = load_config(["algo=hafl", "local.lr=0.5", "data.classes=[1,2]"])
    folder_of(cfg)
    again = configure(["algo=hafl", "resume=last"])
    assert dataclasses.replace(again, resume=None) == cfg


def test_a_configuration_from_before_there_was_a_key_goes_on_by_its_default(run: Path, folder: Path) -> None:
    older = yaml.safe_load((run / "config.yaml").read_text())
    for key in ("min_updates", "max_retries", "client_timeout", "faults"):
        del older[key]
    del older["checkpoint"]["keep"]
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    again = configure(["algo=fedit", "resume=last", "max_retries=2"])
    assert (again.min_updates, again.max_retries, again.faults.drop, again.checkpoint.keep) == (None, 2, 0.0, 2)
