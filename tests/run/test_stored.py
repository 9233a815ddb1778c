"""Runs on disk: which folder RUN names, what is read of it, and one line for what isn't a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flt.core.errors import InputError
from flt.run.stored import export_of, find_run, read_run, run_around, runs_below


def written(folder: Path, version: str, metrics: str = "round,round/val_acc\n1,0.5\n2,0.75\n") -> Path:
    run = folder / version
    (run / "adapter" / "group_1").mkdir(parents=True)
    (run / "config.yaml").write_text("name: hafl\nlocal:\n  lr: 0.1\n")
    (run / "metrics.csv").write_text(metrics)
    (run / "classes.json").write_text('{"all": ["billing", "other"]}')
    (run / "adapter" / "group_1" / "adapter_config.json").write_text("{}")
    return run


def test_a_run_is_read_with_its_settings_metrics_classes_and_export(tmp_path: Path) -> None:
    run = read_run(written(tmp_path / "hafl", "version_0"))
    assert run.setting("local.lr") == 0.1
    assert run.setting("local.none", 7) == 7
    assert run.history == [{"round": 1, "round/val_acc": 0.5}, {"round": 2, "round/val_acc": 0.75}]
    assert run.classes == {"all": ["billing", "other"]}
    assert run.label == "hafl/version_0"
    assert run.exported == run.folder / "adapter"


def test_last_is_the_run_that_was_written_to_last(tmp_path: Path) -> None:
    older, newer = written(tmp_path / "hafl", "version_9"), written(tmp_path / "fedit", "version_10")
    for number, path in enumerate((older, newer)):
        for name in ("config.yaml", "metrics.csv"):
            os.utime(path / name, (number, number))
    assert find_run("last", tmp_path) == newer
    assert runs_below(tmp_path) == [newer, older]


@pytest.mark.parametrize("inside", ["", "adapter", "adapter/group_1"])
def test_a_run_its_export_and_a_model_in_it_name_the_run(inside: str, tmp_path: Path) -> None:
    run = written(tmp_path, "version_0")
    assert read_run(run / inside).folder == run
    assert run_around(run / inside) == run
    assert export_of(run / inside) == (run / "adapter" / "group_1" if "group" in inside else run / "adapter")


def test_an_export_that_was_copied_into_another_run_isn_t_of_that_run(tmp_path: Path) -> None:
    run = written(tmp_path, "version_0")
    shutil.copytree(run / "adapter", run / "sent")
    assert run_around(run / "sent") is None


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: (run / "config.yaml").unlink(), "flt has written neither a run nor a model there"),
        (lambda run: (run / "config.yaml").write_text("- a list"), "a run with the config.yaml that flt wrote"),
        (lambda run: (run / "config.yaml").write_text("3"), "a run with the config.yaml that flt wrote"),
        (lambda run: (run / "config.yaml").write_text("a: ${b}"), "interpolations"),
        (lambda run: (run / "metrics.csv").write_text("round\nmany\n"), "a run with the metrics.csv that flt wrote"),
        (lambda run: (run / "metrics.csv").write_text("round\n1,2\n"), "a run with the metrics.csv that flt wrote"),
        (lambda run: (run / "metrics.csv").write_text("round,a\nnan,2\n"), "a number of a round isn't whole"),
        (lambda run: (run / "metrics.csv").write_text("round,a\n1,2\n1e400,2\n"), "a number of a round isn't whole"),
        (lambda run: (run / "metrics.csv").write_bytes(b"\xff"), "a run with a metrics.csv that can be read"),
        (lambda run: (run / "classes.json").write_text("{"), "a run with the classes.json that flt wrote"),
        (lambda run: (run / "classes.json").write_text('{"all": "ab"}'), "a run with the classes.json that flt wrote"),
        (lambda run: (run / "classes.json").write_text('{"all": [1]}'), "a run with the classes.json that flt wrote"),
    ],
)
def test_a_damaged_run_is_one_line(damage, line: str, tmp_path: Path) -> None:
    run = written(tmp_path, "version_0")
    for path in (run / "adapter" / "group_1" / "adapter_config.json",):
        path.unlink()
    damage(run)
    with pytest.raises(InputError, match="run=") as error:
        read_run(run)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    written(tmp_path / "hafl", "version_0")
    for run, why in [("none", "no such folder"), (tmp_path, "there are 1 runs in it")]:
        with pytest.raises(InputError, match=why):
            find_run(run)
    with pytest.raises(InputError, match="there is no run in empty yet"):
        find_run("last", tmp_path / "empty")


def test_a_run_without_an_export_has_not_finished(tmp_path: Path) -> None:
    run = written(tmp_path, "version_0")
    (run / "adapter" / "group_1" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match="it has no adapter/ or model/; flt train resume="):
        export_of(run)


def test_reading_a_run_imports_no_torch() -> None:
    code = "import sys, flt.run.stored; print([name for name in ('torch', 'lightning') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout == "[]\n"
