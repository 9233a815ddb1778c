"""``flt show``: a page of 80 columns, or JSON, at once and without torch."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from causal_runs import causal_run, copied

import flt
from flt.cli.main import main
from flt.core import formatting


def shown(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["show", str(run)]) == 0
    return capsys.readouterr().out


def test_the_page_says_what_there_is_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    run = causal_run("groups")
    page, text = flt.show(run), shown(run, capsys)
    words = " ".join(text.split())
    for part in (
        "run/version_0 finished: 1 of 1 rounds", f"recipe {page.summary}", "data rows.parquet, 2 tasks",
        "clients 3, quantity (alpha 0.5)", "seed 0", "settings that differ from the recipe's", "local.lr 0.05",
        "data.response response", "files", "adapter/", "TensorBoard's events", "metrics.csv", "last written",
    ):  # fmt: skip
        assert part in words
    for folder in page.models.values():
        assert f'  flt.load("{folder}")' in text.splitlines()
    assert "metrics of the last round perplexity loss acc" in words
    for label, figures in (("validation", formatting.between(page.metrics, "round/val_")), ("test", page.test)):
        shown_figures = " ".join(f"{figures[name]:.4f}" for name in ("perplexity", "loss", "acc"))
        assert f"global model, {label} {shown_figures}" in words
    assert "resume=" not in text


def test_an_export_outside_of_a_run_has_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(causal_run("one") / "adapter", "sent")
    assert main(["show", "sent"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: run=sent: it is an export outside of any run; allowed is a run's")


def test_a_page_has_80_columns_but_for_lines_to_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied("clients", tmp_path)
    (run / f"{'long' * 30}.txt").touch()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**settings, "data": {**settings["data"], "text": "word " * 40}}))
    text = shown(run, capsys)
    name = f"{'long' * 30}.txt"
    assert f"  {name}  0 B" in text.splitlines()
    long = ("flt.load(", "  flt train ", name)
    assert all(len(line) <= 80 for line in text.splitlines() if not any(part in line for part in long))


def test_the_command_is_one_line_with_a_path_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = causal_run("one")
    (line,) = [line.strip() for line in shown(run, capsys).splitlines() if line.startswith("  flt train ")]
    words = dict(word.split("=", 1) for word in shlex.split(line)[2:])
    assert (words["model"], words["data"]) == (str(run.parents[2] / "gpt2"), str(run.parents[2] / "rows.parquet"))
    monkeypatch.chdir(run.parents[2])
    assert " model=./gpt2 " in shown(run, capsys)
    assert " data=rows.parquet " in shown(run, capsys)
    assert str(run.parents[2]) not in (run / "adapter" / "README.md").read_text()


def test_a_run_that_has_stopped_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied("one", tmp_path)
    shutil.rmtree(run / "adapter")
    lines = shown(run, capsys).splitlines()
    assert lines[0] == "run/version_0 has 1 of 1 rounds done, but adapter/ or model/ is missing"
    assert lines[1] == f"to write it again: flt train resume={run}"
    (run / "metrics.csv").unlink()
    lines = shown(run, capsys).splitlines()
    assert lines[0] == "run/version_0 has stopped: 0 of 1 rounds done"
    assert lines[1] == f"to go on: flt train resume={run}"
    (run / "metrics.csv").write_text("")
    lines = shown(run, capsys).splitlines()
    assert lines[0] == "run/version_0 is incomplete: metrics.csv has no rounds (it is empty or damaged)"
    assert lines[1] == f"to write it again: flt train resume={run}"


def test_what_a_file_says_can_not_change_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied("one", tmp_path)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"] |= {"path": "[red]a\x1b[31m\x07"}
    settings["\x1b[2J"] = "\x1b[2J"
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    text = shown(run, capsys)
    assert not {"\x1b", "\x07"} & set(text)
    assert "[red]a\\x1b[31m\\x07" in text


def test_json_has_the_fields_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    run, page = causal_run("one"), flt.show(causal_run("one"))
    assert main(["show", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["recipe"], found["state"], found["metrics"]) == ("fedit", "finished", page.metrics)
    assert (found["folder"], found["models"]) == (str(run), {"": str(run / "adapter")})


def test_show_list_config_and_overrides_import_no_torch(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    lines = [
        ["show", str(run)], ["show", str(run), "--json"], ["list"], ["list", "algo"],
        ["list", "runs", f"root={run.parents[1]}"], ["config", str(run)], ["config", str(run), "--command"],
    ]  # fmt: skip
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'lightning', 'transformers', 'numpy', 'datasets']))\n"
        f"from flt.cli.main import main\nsys.exit(sum(main(line) for line in {lines}))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "show=: no run is named; allowed is 1 of: a run's folder, or last"),
        (["a", "b"], "show=a b: allowed is 1 of: a run's folder, or last"),
        (["nowhere"], "run=nowhere: there is no such folder; allowed is a run's folder"),
        (["."], "run=.: flt has written neither a run nor a model there; allowed is"),
        (["last"], "run=last: there is no run in lightning_logs yet; allowed is"),
        (["last", "root=other"], "run=last: there is no run in other yet; allowed is"),
        (["last", "roots=other"], "show=roots=other: the nearest is root; allowed is root="),
        (["last", "--yaml"], "show=--yaml: allowed is --json"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == []
