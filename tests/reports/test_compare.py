"""``flt compare``: problems, methods, figures against numpy and scipy, and one line for what can't be compared."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from commands import in_empty_folder
from compared_runs import made_run, rounds
from rich.console import Console

import flt
from flt.cli.main import main
from flt.core.errors import InputError
from flt.reports import compare_settings
from flt.reports.compare_result import Comparison
from flt.run.compose import compose_config

FEDIT, HAFL = (0.91, 0.93, 0.89), (0.95, 0.92, 0.97)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two recipes with three seeds."""
    for algo, tests in {"fedit": FEDIT, "hafl": HAFL}.items():
        for seed, test in enumerate(tests):
            made_run(tmp_path, f"algo={algo}", f"seed={seed}", rows=rounds(0.5, 0.7 + 0.1 * seed, 0.85, test=test))
    return tmp_path


def shown(found: Comparison, width: int = 80) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as said:
        found.print(console)
    return said.get()


def test_means_and_deviations_over_seeds_are_numpy_s(root: Path) -> None:
    table = flt.compare(root).table
    for algo, values in {"fedit": FEDIT, "hafl": HAFL}.items():
        row = table.loc[(1, algo)]
        assert row["test/acc mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert row["test/acc std"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
        assert row["test/loss mean"] == pytest.approx(1 - np.mean(values), abs=1e-12)
        assert (row["runs"], row["seeds"]) == (3, "0 1 2")
        assert (row["comm/total_up mean"], row["comm/total_down mean"]) == (3000, 6000)


def test_differences_are_paired_by_seed_with_scipy_s_interval(root: Path) -> None:
    row = flt.compare(root, baseline="fedit").table.loc[(1, "hafl")]
    reference = scipy.stats.ttest_rel(HAFL, FEDIT).confidence_interval(0.95)
    assert row["test/acc difference"] == pytest.approx(np.mean(np.subtract(HAFL, FEDIT)))
    assert (row["test/acc low"], row["test/acc high"]) == pytest.approx((reference.low, reference.high))
    assert row["pairs"] == 3


def test_only_seeds_of_both_methods_are_paired(root: Path) -> None:
    made_run(root, "algo=hafl", "seed=7", rows=rounds(0.5, 0.6, 0.7, test=0.1))
    found = flt.compare(root, baseline="hafl")
    assert found.table.loc[(1, "fedit"), "pairs"] == 3
    assert found.table.loc[(1, "fedit"), "test/acc difference"] == pytest.approx(np.mean(np.subtract(FEDIT, HAFL)))
    assert "the methods have different seeds (fedit: 0, 1, 2; hafl: 0, 1, 2, 7)" in " ".join(found.notes)


def test_one_seed_has_neither_a_deviation_nor_an_interval(tmp_path: Path) -> None:
    for algo in ("fedit", "hafl"):
        made_run(tmp_path, f"algo={algo}")
    found = flt.compare(tmp_path)
    row = found.table.loc[(1, "hafl")]
    assert all(math.isnan(row[f"test/acc {name}"]) for name in ("std", "low", "high"))
    assert row["test/acc difference"] == 0
    assert "one seed, so no deviation and no interval: fedit, hafl" in found.notes
    assert "±" not in shown(found)


def test_the_target_is_reached_in_the_first_round_at_or_above_it(root: Path) -> None:
    row = flt.compare(root, target=0.75).table.loc[(1, "fedit")]
    assert row["reached"] == 3
    assert row["rounds to target"] == pytest.approx(np.mean([3, 2, 2]))
    assert row["bytes to target"] == pytest.approx(3000 * np.mean([3, 2, 2]))
    assert row["seconds to target"] == pytest.approx(0.5 * np.mean([3, 2, 2]))


def test_seeds_that_the_baseline_lacks_are_no_pairs(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", "seed=1", rows=rounds(0.5, test=0.5))
    for seed in range(3):
        made_run(tmp_path, "algo=hafl", f"seed={seed}", rows=rounds(0.5, test=0.6 + seed / 10))
    row = flt.compare([tmp_path / "fedit", tmp_path / "hafl"]).table.loc[(1, "hafl")]
    assert (row["pairs"], row["test/acc difference"]) == (1, pytest.approx(0.2))


def test_means_that_look_the_same_are_equally_good(tmp_path: Path) -> None:
    for algo, figures in {"fedit": (0.7, 0.9), "hafl": (0.79996, 0.79999), "fedavg": (0.5, 0.5)}.items():
        for seed, figure in enumerate(figures):
            made_run(tmp_path, f"algo={algo}", f"seed={seed}", rows=rounds(0.5, test=figure))
    console = Console(width=80, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as said:
        flt.compare(tmp_path).print(console)
    assert re.findall(r"\x1b\[1m(0\.8\S+ ± \S+)\x1b", said.get()) == ["0.800 ± 0.141", "0.800 ± 0.000"]


def test_a_target_is_reached_by_the_figure_itself_and_a_loss_from_above(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", rows=rounds(0.25, 0.5, 0.75))
    found = flt.compare(tmp_path, target=0.5)
    assert found.table.loc[(1, "fedit"), "rounds to target"] == 2
    losses = flt.compare(tmp_path, metric="round/val_loss", target=0.25)
    assert losses.table.loc[(1, "fedit"), "rounds to target"] == 3
    assert "until validation loss is at most 0.25" in shown(losses)


def test_the_best_round_of_a_perplexity_is_the_lowest(tmp_path: Path) -> None:
    measured = enumerate((9.0, 2.0, 5.0), start=1)
    figures = [{"round": n, "round/val_perplexity": p, "round/val_loss": n / 10} for n, p in measured]
    made_run(tmp_path, "algo=fedit", rows=figures)
    row = flt.compare(tmp_path, metric="best").table.loc[(1, "fedit")]
    assert (row["round/val_perplexity mean"], row["round/val_loss mean"]) == (2.0, 0.2)


def test_a_name_is_no_formula_for_a_spreadsheet(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", algo="=1+1", rows=[{"round": 1, "round/val_acc": -0.5, "@sum": 1.0}])
    found = flt.compare(tmp_path, metric="@sum")
    (row,) = csv.DictReader(found.to_csv().splitlines())
    assert (row["method"], row["'@sum mean"]) == ("'=1+1", "1.0")
    assert found.table.index[0] == (1, "=1+1")


def test_a_target_that_some_seeds_miss_has_no_mean_on_the_terminal(root: Path) -> None:
    made_run(root, "algo=fedit", "seed=3", rows=rounds(0.1, 0.1, 0.1, test=0.1))
    (line,) = (line for line in shown(flt.compare(root, target=0.75)).splitlines() if "3 of 4" in line)
    assert line.split() == ["fedit", "3", "of", "4", "-", "-", "-"]


@pytest.mark.parametrize(
    ("metric", "column", "value"),
    [
        ("validation", "round/val_acc", 0.6), ("best", "round/val_acc", 0.9), ("clients", "clients/val_acc", 0.5),
        ("clients/val_acc_worst10", "clients/val_acc_worst10", 0.4), (None, "test/acc", 0.7),
    ],
)  # fmt: skip
def test_the_metric_chooses_the_column_and_the_round(
    tmp_path: Path, metric: str | None, column: str, value: float
) -> None:
    made_run(tmp_path, "algo=fedit", rows=rounds(0.5, 0.9, 0.6, test=0.7))
    assert flt.compare(tmp_path, metric=metric).table[f"{column} mean"].item() == pytest.approx(value)


def test_the_loss_of_the_best_round_is_that_of_the_best_score(tmp_path: Path) -> None:
    rows = rounds(0.5, 0.9, 0.6)
    rows[2]["round/val_loss"] = 0.001
    made_run(tmp_path, "algo=fedit", rows=rows)
    assert flt.compare(tmp_path, metric="best").table["round/val_loss mean"].item() == pytest.approx(0.1)


def test_settings_that_differ_make_methods_and_the_label_names_them(tmp_path: Path) -> None:
    for lr in ("0.1", "0.01"):
        for seed in (0, 1):
            made_run(tmp_path, "algo=fedit", f"local.lr={lr}", f"seed={seed}")
    made_run(tmp_path, "algo=hafl")
    found = flt.compare(tmp_path)
    assert [method.label for method in found.problems[0].methods] == [
        "fedit local.lr=0.1",
        "fedit local.lr=0.01",
        "hafl",
    ]
    said = shown(found)
    assert "the methods differ in more than their recipe" in said
    assert "the recipes differ in: ranks, selection, importance" in said
    assert found.settings.loc["local.lr", (1, "hafl")] == "0.005"


def test_a_part_s_choice_stands_for_the_settings_that_come_with_it(tmp_path: Path) -> None:
    for rule in ("mean", "trimmed_mean", "median"):
        made_run(tmp_path, "algo=fedit", f"rule={rule}")
    labels = [method.label for method in flt.compare(tmp_path).problems[0].methods]
    assert labels == ["fedit rule=mean", "fedit rule=trimmed_mean", "fedit rule=median"]


def test_other_partitions_are_other_problems_with_a_table_each(root: Path) -> None:
    made_run(root, "algo=fl_tac", rows=rounds(0.5, 0.6, 0.7, test=0.8))
    found = flt.compare(root)
    assert [[method.label for method in problem.methods] for problem in found.problems] == [
        ["fedit", "hafl"],
        ["fl_tac"],
    ]
    said = shown(found)
    assert "warning: these runs solve different problems" in said
    assert said.index("warning") < said.index("problem 2:") < said.index("settings in which the problems differ")
    for key in ("jobs", "partition.kind", "partition.min_share"):
        assert f"  {key} " in said
    assert "fl_tac sets jobs=per_task partition.kind=quantity partition.min_share=0.01." in " ".join(said.split())
    assert list(found.table.loc[2].index) == ["fl_tac"]


@pytest.mark.parametrize(
    "override",
    ["partition.alpha=0.1", "partition.held_out=0.1", "clients=5", "data=cifar10", "model=minilm", "local.steps=3",
     "batch_size=8", "heads=shared", "cohort.size=2", "eval.examples=9", "faults.drop=0.1", "stop.accuracy=0.5",
     "rounds=3"],
)  # fmt: skip
def test_what_defines_the_problem_splits_the_table(tmp_path: Path, override: str) -> None:
    made_run(tmp_path, "algo=fedit")
    made_run(tmp_path, "algo=hafl", override, rows=rounds(0.5, 0.6, 0.7, test=0.7) if override == "rounds=3" else None)
    found = flt.compare(tmp_path)
    assert len(found.problems) == 2
    assert f"  {override.partition('=')[0]} " in shown(found)


@pytest.mark.parametrize(
    "override", ["name=other", "checkpoint.keep=5", "cache.max_gb=1", "threads=2", "eval.batch_size=8"]
)
def test_what_changes_no_metric_makes_no_method(tmp_path: Path, override: str) -> None:
    made_run(tmp_path, "algo=fedit", "seed=0")
    made_run(tmp_path, "algo=fedit", "seed=1", override)
    (method,) = flt.compare(tmp_path).problems[0].methods
    assert method.seeds == [0, 1]


def test_every_key_of_the_configuration_has_a_role_that_was_decided() -> None:
    """A new key fails here, until the table of roles says whether it belongs to the problem or to the place."""
    sections = {
        "adapter", "algo", "buffers", "compression", "grouping", "importance", "plan", "rule", "schedule", "selection",
        "server_optimizer", "transfer",
    }  # fmt: skip
    single = {
        "compile", "devices", "engine.name", "length_window", "precision", "prefix_cache", "ranks", "local.clip",
        "local.lr", "local.momentum", "local.optimizer", "local.weight_decay", "model.adapt_layers", "model.attention",
        "model.dropout", "model.gradient_checkpointing", "model.head", "model.label_scale",
    }  # fmt: skip
    for algo in ("fedit", "fl_tac"):
        keys = compare_settings.of_recipe(algo)
        methods = {key for key in keys if compare_settings.role(key) == "method"}
        assert {key for key in methods if key.partition(".")[0] not in sections} == single


def test_the_default_recipe_sets_nothing_of_the_problem() -> None:
    default, bare = (compare_settings.of_recipe(name) for name in (compare_settings.DEFAULT, "hafl"))
    assert compare_settings.differing([default, bare], "problem") == []


def test_unfinished_and_repeated_runs_are_left_out_and_named(root: Path) -> None:
    old = made_run(root, "algo=fedit", "seed=0", rows=rounds(0.1, 0.1, 0.1, test=0.0))
    os.utime(old / "metrics.csv", (1, 1))
    made_run(root, "algo=hafl", "seed=0", "rounds=9", rows=rounds(0.1, 0.2))
    found = flt.compare(root)
    assert found.table.loc[(1, "fedit"), "test/acc mean"] == pytest.approx(np.mean(FEDIT))
    assert "left out, as they haven't finished: hafl/version_3 (2 of 9 rounds)" in found.notes
    assert "repeated runs, of which only the newest counts: fedit/version_0 (seed 0)" in found.notes


def test_runs_without_the_metric_are_named_and_have_no_figure(root: Path) -> None:
    alone = [{key: v for key, v in row.items() if not key.startswith("round/")} for row in rounds(0.5, 0.6, 0.7)]
    made_run(root, "algo=local", rows=alone)
    found = flt.compare(root)
    assert "runs without test/acc: local (1 of 1)" in found.notes
    assert math.isnan(found.table.loc[(1, "local"), "test/acc mean"])
    assert flt.compare(root, metric="clients").table.loc[(1, "local"), "clients/val_acc mean"] == pytest.approx(0.6)


def test_a_problem_without_the_metric_is_left_out_and_its_runs_are_named(root: Path) -> None:
    made_run(root, "algo=fedit", "name=silent", rows=[{"round": 1, "comm/total_up": 5.0}])
    found = flt.compare(root, target=0.8)
    assert found.table["test/acc mean"].tolist() == pytest.approx([np.mean(FEDIT), np.mean(HAFL)])
    assert "left out, as they have no metrics of a model: silent/version_0" in found.notes
    assert len(flt.compare(root, metric="comm/total_up").problems) == 2


def test_a_target_needs_a_curve_in_one_of_the_problems_only(root: Path) -> None:
    made_run(root, "algo=fedit", "name=tested", rows=[{"round": 1, "test/acc": 0.5}])
    said = shown(flt.compare(root, target=0.8))
    assert said.count("until validation accuracy is at least 0.8") == 1


def test_a_run_without_a_seed_in_a_folder_of_runs_is_left_out_and_named(root: Path) -> None:
    made_run(root, "algo=fedit", "name=seedless", seed=None)
    assert flt.compare(root).notes[0].startswith("left out, as it can't be read: seedless/version_0 (seed=None")


def test_a_run_of_an_older_version_has_the_defaults_of_what_it_lacks(root: Path) -> None:
    older = made_run(root, "algo=fedit", "seed=3", rows=rounds(0.5, 0.6, 0.7, test=0.9), task_rounds=None, buffers=None)
    found = flt.compare(root)
    labels = [method.label for method in found.problems[0].methods]
    assert labels == ["fedit buffers=average", "fedit buffers=keep", "hafl"]
    note = f"of another version of flt: fedit/{older.name}; they lack task_rounds, buffers.name"
    assert note in " ".join(found.notes)


def test_a_recipe_that_this_version_lacks_is_compared_and_said(root: Path) -> None:
    made_run(root, "algo=fedit", rows=rounds(0.5, 0.6, 0.7, test=0.9), algo="future", name="future")
    found = flt.compare(root)
    assert (1, "future") in found.table.index
    assert "this version of flt doesn't have the recipes of: future/version_0 (future)" in found.notes


def test_runs_of_a_user_s_own_data_say_that_the_data_are_not_checked(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", data={"name": "own"}, model={"name": "MyModule", "adapt_layers": "all"})
    found = flt.compare(tmp_path)
    assert found.problems[0].name == "own data, 2 rounds"
    assert any("flt.fit" in note for note in found.notes)
    assert not any("another version" in note for note in found.notes)


def test_runs_are_folders_results_exports_and_last(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Result:
        path = root / "hafl" / "version_1"

    export = root / "fedit" / "version_0" / "adapter"
    export.mkdir()
    (export / "adapter_config.json").write_text("{}")
    found = flt.compare([export, Result(), root / "fedit"])
    assert list(found.runs.index) == [(1, "fedit", 0), (1, "fedit", 1), (1, "fedit", 2), (1, "hafl", 1)]
    assert len(flt.compare("last", root=root).runs) == 1


def test_the_first_method_is_the_baseline_unless_another_is_named(root: Path) -> None:
    hafl_first = [root / "hafl", root / "fedit"]
    assert set(flt.compare(hafl_first).table["baseline"]) == {"hafl"}
    assert set(flt.compare(hafl_first, baseline="fedit").table["baseline"]) == {"fedit"}


def test_the_best_means_are_bold_on_the_terminal(root: Path) -> None:
    console = Console(width=80, force_terminal=True, color_system="standard", highlight=False)
    with console.capture() as said:
        flt.compare(root).print(console)
    assert "\x1b[1m0.947 ± 0.025\x1b[0m" in said.get()
    assert "\x1b[1m0.910" not in said.get()


def test_the_terminal_s_lines_have_80_columns_and_whole_figures(root: Path) -> None:
    made_run(root, "algo=fedit", "local.lr=0.12345", "local.weight_decay=0.5", rows=rounds(0.5, 0.6, 0.7, test=0.8))
    said = shown(flt.compare(root, target=0.8))
    assert max(map(len, said.splitlines())) <= 80
    assert "0.910 ± 0.020" in said
    assert "…" not in said


def test_hostile_names_are_shown_as_they_are(tmp_path: Path) -> None:
    name = r"[bold]<script>\input{x}_%$ \x1b[31m"
    made_run(tmp_path, "algo=fedit", algo=name, name="a")
    made_run(tmp_path, "algo=hafl")
    found = flt.compare(tmp_path)
    assert r"<script>\input{x}_%$" in "".join(shown(found, 200).split("\n"))
    assert "<script>" not in found._repr_html_()
    assert r"{[}bold{]}\textless{}script\textgreater{}\textbackslash{}input\{x\}\_\%\$" in found.to_latex()
    made_run(tmp_path, "algo=fedit", algo="a\x1b[31mb", name="b")
    assert "\x1b" not in shown(flt.compare(tmp_path))


def test_a_short_repr_has_the_means(root: Path) -> None:
    found = flt.compare(root)
    assert repr(found) == "Comparison(fedit 0.910 ± 0.020, hafl 0.947 ± 0.025 (test accuracy))"
    assert "<b>0.947 ± 0.025</b>" in found._repr_html_()


BAD = {
    "nope": "run=nope: there is no such folder",
    "logs empty": "run=empty: flt has written neither a run nor a model there",
    "logs/fedit/version_0 metric=test/f1": "metric=test/f1: no run on digits, 10 clients, dirichlet, 3 rounds has it; ",
    "logs target=high": "target=high: ",
    "logs target=inf": "target=inf: allowed is a finite number",
    "logs baseline=flora": "baseline=flora: allowed is fedit, hafl",
    "logs width=0": "width=0: allowed is single, double, or inches from 2 to 20",
    "logs out=file": "out=file: File exists",
    "logs color=red": "compare=color=red: allowed is metric=, target=, baseline=, out=, width=, root=",
    "logs --csv": "compare=--csv: allowed is --json",
    "last root=empty": "run=last: there is no run in empty yet",
    "": "compare=: no run is named",
    "running": "compare=running/version_0 (0 of 2 rounds): allowed is runs of which at least one has finished",
    "damaged/version_0": "run=damaged/version_0: could not convert string to float",
    "damaged": "run=damaged/version_0: could not convert string to float",
    "seedless": "seed=None: so says the config.yaml of seedless/version_0; allowed is an integer",
    "plain": "metric=null: no metrics of a model in plain/version_0",
    "plain plain2": "metric=null: no metrics of a model in plain/version_0, plain2/version_0; allowed is comm/total_up",
    "logs plain metric=test/f1": "metric=test/f1: no run on digits, 10 clients, dirichlet, 3 rounds; digits, ",
}


@pytest.mark.parametrize("line", BAD)
def test_what_can_not_be_compared_is_one_line(
    line: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = root / "logs"
    logs.mkdir()
    for name in ("fedit", "hafl"):
        (root / name).rename(logs / name)
    monkeypatch.chdir(root)
    Path("empty").mkdir()
    Path("file").write_text("")
    made_run(root, "algo=fedit", "name=running", "rounds=2", rows=[])
    (made_run(root, "algo=fedit", "name=damaged") / "metrics.csv").write_text("round,a\n1,x\n")
    made_run(root, "algo=fedit", "name=seedless", seed=None)
    made_run(root, "algo=fedit", "name=plain", rows=[{"round": 1}])
    made_run(root, "algo=fedit", "name=plain2", "seed=1", rows=[{"round": 1, "comm/total_up": 1.0}])
    before = sorted(root.rglob("*"))
    assert main(["compare", *line.split()]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {BAD[line]}")
    assert sorted(root.rglob("*")) == before


def test_a_run_whose_metrics_are_empty_is_left_out_and_named(root: Path) -> None:
    made_run(root, "algo=fedit", "name=good")
    (made_run(root, "algo=hafl", "name=empty") / "metrics.csv").write_text("")
    assert "left out, as they haven't finished: empty/version_0 (metrics.csv is empty)" in flt.compare(root).notes


def test_a_damaged_run_in_a_folder_of_runs_is_left_out_and_named(root: Path) -> None:
    (root / "hafl" / "version_1" / "config.yaml").write_text("a: [")
    found = flt.compare(root)
    assert found.table.loc[(1, "hafl"), "seeds"] == "0 2"
    assert found.notes[0].startswith("left out, as it can't be read: hafl/version_1 (")


def test_json_has_every_figure_and_nothing_else(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(root), "--json", "target=0.99"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["methods"][0]["test/acc mean"] == pytest.approx(np.mean(FEDIT))
    assert said["methods"][0]["rounds to target"] is None
    assert len(said["runs"]) == 6


def test_the_command_needs_no_torch(root: Path) -> None:
    heavy = ("torch", "lightning", "transformers", "scipy.stats", "matplotlib", "pandas")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy})); from flt.cli.main import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", str(root)], text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "difference from fedit" in done.stdout


@pytest.mark.slow
def test_a_sweep_of_three_recipes_and_two_seeds_ends_with_their_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    quick = ["rounds=2", "clients=3", "local.steps=1", "eval.examples=20", "eval.client_examples=4"]
    assert main(["sweep", "algo=hafl,fedit,fl_tac", "seed=0,1", *quick]) == 0
    said = capsys.readouterr().out
    assert "warning: these runs solve different problems" in said
    assert "difference from hafl" in said
    out = tmp_path / "lightning_logs" / "compare" / "sweep_0"
    again = flt.compare([tmp_path / "lightning_logs" / name for name in ("hafl", "fedit", "fl_tac")])
    assert (out / "table.csv").read_text() == again.to_csv()
    assert {"compare_1.pdf", "compare_2.svg", "rounds_1.png", "table.tex"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_a_failed_run_of_a_sweep_is_said_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    quick = ["rounds=1", "clients=2", "local.steps=2", "eval.examples=20", "eval.client_examples=4"]
    assert main(["sweep", "algo=fedit", "local.lr=1e8,0.01,0.02", *quick]) == 2
    said = capsys.readouterr()
    (error,) = said.err.splitlines()
    assert error.startswith("error: run 1 of 3 (algo=fedit local.lr=100000000.0 ")
    assert "fedit\n" in said.out or "local.lr=0.02" in said.out
    assert said.out.rstrip().endswith("1 of 3 runs failed; the lines that begin with error say why")
    assert (tmp_path / "lightning_logs/compare/sweep_0/table.csv").read_text().count("\n") == 3


def test_a_width_is_checked_before_anything_is_written(root: Path) -> None:
    with pytest.raises(InputError, match="^width=30"):
        flt.compare(root).save(root / "out", width=30)
    assert not (root / "out").exists()


def test_of_recipe_is_what_hydra_composes() -> None:
    assert compare_settings.of_recipe("hafl")["ranks"] == [2, 4, 8] == compose_config(["algo=hafl"]).ranks
