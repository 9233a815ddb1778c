"""``flt.show``: what the files of a run say, in whatever state they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from causal_runs import causal_run, copied
from commands import finished_run, in_empty_folder, metrics
from filelock import FileLock

import flt
from flt.cli.main import main
from flt.core.errors import InputError
from flt.core.locks import is_locked


def change(run: Path, **settings: object) -> None:
    found = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**found, **settings}))


def test_a_page_has_the_figures_of_the_run_s_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    run = finished_run(tmp_path, "shown")
    page, last = flt.show("last"), metrics(run)[-1]
    assert (page.recipe, page.paper, page.label) == ("fedit", "2305.05644", "shown/version_0")
    assert page.summary == "FedIT: FedAvg on LoRA (arXiv 2305.05644)."
    assert (page.data, page.model) == ("digits, 5 classes", "embedded, lora of rank 8")
    assert (page.clients, page.seed) == ("3, dirichlet (alpha 0.5)", 0)
    assert (page.state, page.rounds_done, page.rounds, page.go_on) == ("finished", 1, 1, "")
    assert (page.bytes_up, page.bytes_down) == (int(last["comm/total_up"]), int(last["comm/total_down"]))
    assert page.metrics["round/val_acc"] == float(last["round/val_acc"])
    assert page.settings == {
        "rounds": 1, "clients": 3, "local.steps": 1, "eval.examples": 20, "eval.client_examples": 4,
    }  # fmt: skip
    assert sorted(page.command.split()) == sorted(
        ["flt", "train", "algo=fedit", *(f"{key}={value}" for key, value in page.settings.items())]
    )
    assert page.files["metrics.csv"] == (run / "metrics.csv").stat().st_size
    assert page.files["adapter/"] == sum(path.stat().st_size for path in (run / "adapter").rglob("*"))
    assert page.models == {"": run.relative_to(tmp_path) / "adapter"} or page.models == {"": run / "adapter"}
    assert page.score == (("acc", page.test["acc"]) if page.test else ("val_acc", page.metrics["round/val_acc"]))


def test_models_of_groups_and_clients_are_named() -> None:
    assert list(flt.show(causal_run("groups")).models) == ["group_1", "group_2"]
    assert list(flt.show(causal_run("clients")).models) == ["client_0", "client_1", "client_2"]
    page = flt.show(causal_run("groups") / "adapter" / "group_1")
    assert (page.data, page.state) == ("rows.parquet, 2 tasks", "finished")


def test_a_run_without_an_export_has_stopped_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    shutil.rmtree(run / "adapter")
    change(run, rounds=5)
    page = flt.show(run)
    assert (page.state, page.rounds_done, page.rounds) == ("stopped", 1, 5)
    assert page.go_on == f"flt train resume={run}"


def test_a_run_that_was_continued_after_its_end_has_stopped_until_it_ends_again(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    change(run, rounds=5)
    assert flt.show(run).state == "stopped"
    change(run, stop={"accuracy": 0.5, "patience": None})  # such a run may end early
    assert flt.show(run).state == "finished"


def test_a_run_whose_lock_is_held_is_running(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    with FileLock(run / ".lock"):
        assert flt.show(run).state == "running"
    (run / ".lock").touch()  # left behind by a process that was killed
    assert flt.show(run).state == "finished"
    assert not is_locked(run / "nothing")


def test_a_run_before_its_first_round_has_no_metrics(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    shutil.rmtree(run / "adapter")
    (run / "metrics.csv").unlink()
    page = flt.show(run)
    assert (page.state, page.rounds_done, page.metrics, page.bytes_up) == ("stopped", 0, {}, None)
    assert (page.seconds, page.score) == (None, None)


def test_a_record_says_with_which_versions_a_run_started(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    line = {"versions": {"flt": "0.1.0", "torch": "2.13.0"}, "command": "flt train algo=fedit"}
    (run / "record.jsonl").write_text(json.dumps(line) + '\n{"round": 1}\n')
    page = flt.show(run)
    assert (page.versions, page.command) == (line["versions"], "flt train algo=fedit")
    for damaged in ("[1]", "{", '{"versions": 3}', "[" * 100_000):
        (run / "record.jsonl").write_text(damaged)
        assert flt.show(run).versions == {}


def test_a_run_of_flt_fit_is_continued_by_flt_fit(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    shutil.rmtree(run / "adapter")
    change(run, data={"name": "own"}, model={"name": "Mine", "adapt_layers": "all"}, rounds=3)
    page = flt.show(run)
    assert (page.data, page.clients) == ("the caller's of flt.fit", "the caller's of flt.fit")
    assert page.go_on == f'flt.fit(..., overrides=["resume={run}"])'
    assert page.model == "Mine, lora of rank 8"


def newer(run: Path) -> None:
    found = yaml.safe_load((run / "config.yaml").read_text())
    found["rule"] = {"name": "newest", "power": 3}
    (run / "config.yaml").write_text(yaml.safe_dump({**found, "algo": "unheard", "more": {"a": [1]}}))


def older(run: Path) -> None:
    kept = ("name", "seed", "rounds", "clients", "data", "model", "adapter", "partition", "rule")
    found = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({key: found[key] for key in kept}))


def nearly_empty(run: Path) -> None:
    (run / "config.yaml").write_text("data: 3\nstop: 4\nrule: [1]\nranks: x\nrounds: {}\n")


@pytest.mark.parametrize("edit", [newer, older, nearly_empty])
def test_a_run_of_another_version_has_a_page_too(edit: Callable[[Path], None], tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    edit(run)
    page = flt.show(run)
    assert page.rounds_done == 1
    assert page.paper == ""


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    (run / "metrics.csv").write_text("round,comm/total_up,comm/total_down,clients/val_acc_worst10\n1,nan,1e400,0.5\n")
    change(run, partition={"kind": ["iid"]})
    page = flt.show(run)
    assert (page.bytes_up, page.bytes_down, page.clients) == (None, None, "3, ['iid']")
    assert main(["show", str(run)]) == 0


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("config.yaml", "a: [", "a run with the config.yaml that flt wrote"),
        ("config.yaml", "- 1", "a run with the config.yaml that flt wrote"),
        ("config.yaml", "a: ${b}", "it contains interpolations"),
        ("metrics.csv", "round,a\n1,x\n", "a run with the metrics.csv that flt wrote"),
        ("classes.json", "[1]", "a run with the classes.json that flt wrote"),
    ],
)
def test_a_damaged_run_is_one_line(name: str, text: str, line: str, tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    (run / name).write_text(text)
    with pytest.raises(InputError) as caught:
        flt.show(run)
    assert line in str(caught.value)
