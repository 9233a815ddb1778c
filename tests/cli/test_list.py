"""``flt list``: groups, choices with their papers, and runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from causal_runs import causal_run, copied

import flt
from flt.cli import conf_comments
from flt.cli.main import main
from flt.run.conf_groups import choices, config_folder, groups


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["list", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_without_a_word_every_group_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys)
    for group in flt.list():
        assert len(group.meaning) > 15, group.name
        assert f"{group.name} {group.meaning} {', '.join(choices(group.name))}" in text
    assert [group.name for group in flt.list()] == groups()


def test_a_recipe_has_the_paper_that_the_readme_names() -> None:
    rows = (config_folder().parent / "README.md").read_text().splitlines()
    papers = {}
    for row in (row for row in rows if row.startswith("| `")):
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            papers[name] = (re.findall(r"\[(\d{4}\.\d+(?:v\d)?)\]", row) or [""])[0]
    assert {choice.name for choice in flt.list("algo")} == set(choices("algo"))
    ours = ("fl_tac_memory", "fl_tac_unlocked")
    for choice in flt.list("algo"):
        expected = papers.get(choice.name, "")
        assert choice.paper.partition("v")[0] == expected.partition("v")[0] or choice.name in ours


def test_a_recipe_has_its_parts_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    found = {choice.name: choice for choice in flt.list("algo")}
    assert found["haflq"].parts == {
        "selection": "freeze", "importance": "gradient", "rule": "mean", "compression": "quantised",
    }  # fmt: skip
    assert found["haflq"].settings == {"ranks": "[2,4,8]"}
    assert "compression=quantised ranks=[2,4,8]" in listed(capsys, "algo")


@pytest.mark.parametrize("group", groups())
def test_a_group_s_choices_have_their_first_sentences(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys, group)
    for choice in choices(group):
        assert conf_comments.summary(group, choice) in text
    assert [choice.name for choice in flt.list(group)] == choices(group)


def test_runs_are_listed_with_their_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "lightning_logs"
    run, bad = copied("one", tmp_path), root / "bad" / "version_0"
    bad.mkdir(parents=True)
    (bad / "config.yaml").write_text("a: [")
    damaged, row = flt.list("runs", root=root)
    page = flt.show(run)
    assert (row.folder, row.recipe, row.data) == (run, "fedit", "rows.parquet")
    assert (row.rounds_done, row.rounds, row.state) == (1, 1, "finished")
    assert (row.metric, row.value, row.on_test) == ("perplexity", page.test["perplexity"], True)
    assert damaged.recipe == ""
    assert "a run with the config.yaml that flt wrote" in damaged.state
    text = listed(capsys, "runs", f"root={root}")
    assert f"run/version_0 fedit rows.parquet 1/1 perplexity {row.value:.3f}" in text
    assert "bad/version_0 damaged" in text


def test_runs_fit_into_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied("groups", tmp_path)
    run.parent.rename(tmp_path / "lightning_logs" / "a_recipe_with_a_long_name")
    assert main(["list", "runs", f"root={tmp_path / 'lightning_logs'}"]) == 0
    text = capsys.readouterr().out
    assert all(len(line) <= 80 for line in text.splitlines())
    assert re.search(r"\d\d-\d\d \d\d:\d\d", text)


def test_a_folder_without_runs_says_how_to_make_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "runs", f"root={tmp_path}") == "there is no run yet; flt train algo=hafl makes one"


def test_json_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(listed(capsys, "algo", "--json"))
    assert [choice["name"] for choice in found] == choices("algo")
    root = causal_run("one").parents[1]
    (row,) = json.loads(listed(capsys, "runs", f"root={root}", "--json"))
    assert row["recipe"] == "fedit"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipes"], "list=recipes: allowed is adapter, algo, "),
        (["algo", "rule"], "list=algo rule: allowed is one group, or runs"),
        (["algo", "root=x"], "root=x: allowed is a folder of runs, for flt list runs"),
        (["runs", "root=nowhere"], "root=nowhere: there is no such folder; allowed is the folder of all runs"),
        (["--yaml"], "list=--yaml: allowed is --json"),
        (["seed=1"], "list=seed=1: allowed is root="),
    ],
)
def test_bad_input_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {line}")
