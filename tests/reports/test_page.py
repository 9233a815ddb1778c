"""The pages of runs: their figures are those of metrics.csv, and nothing that a file says can act in them."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from reports import ALGOS, Page, data_of

import flt
from flt.cli.main import main
from flt.core.errors import InputError
from flt.reports.page import one

pytestmark = pytest.mark.slow  # whole runs

ALWAYS = {"chart-score", "chart-loss", "chart-bytes", "chart-time", "chart-clients", "chart-partition"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture
def hafl(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the run of HAFL, to be changed."""
    return Path(shutil.copytree(runs["hafl"], tmp_path / "hafl" / "version_0"))


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def change_head(run: Path, **changes: object) -> None:
    first, *rest = (run / "record.jsonl").read_text().splitlines()
    (run / "record.jsonl").write_text("\n".join([json.dumps({**json.loads(first), **changes}), *rest]) + "\n")


@pytest.mark.parametrize(
    ("algo", "more"),
    [
        ("hafl", {"chart-trained", "chart-importance", "chart-by-client"}),
        (
            "fl_tac",
            {
                "chart-groups",
                "chart-task-map",
                "chart-agreement",
                "chart-distances",
                "chart-cluster-map",
                "chart-cosines",
            },
        ),
        ("sa_fedlora", {"chart-trained", "chart-importance", "chart-by-client", "chart-ranks", "chart-active"}),
        ("c2a", set()),
    ],
)
def test_a_page_has_the_charts_of_what_its_run_has(algo: str, more: set[str], runs: dict[str, Path]) -> None:
    text = one(runs[algo])
    assert Page(text).charts == set(data_of(text)) == ALWAYS | more


@pytest.mark.parametrize("algo", ALGOS)
def test_curves_have_the_figures_of_metrics_csv(algo: str, runs: dict[str, Path]) -> None:
    charts, rows = data_of(one(runs[algo])), rows_of(runs[algo])
    curves = {trace["name"]: trace["y"] for trace in charts["chart-score"]["data"]}
    for name, key in {
        "global model": "round/val_acc",
        "received, mean": "clients/val_acc",
        "received, worst 10 %": "clients/val_acc_worst10",
        "fitted, mean": "clients/fitted_val_acc",
    }.items():
        unit = "jobs" if algo == "fl_tac" else "clients"
        name = name.replace("worst 10 %", f"worst 10 % of {unit}")
        assert curves[name] == [float(row[key]) for row in rows]
    (trace,) = charts["chart-bytes"]["data"]
    assert trace["x"] == [float(row["comm/total_up"]) + float(row["comm/total_down"]) for row in rows]
    (trace,) = charts["chart-time"]["data"]
    assert trace["x"] == [float(row["time/total_seconds"]) for row in rows]


def test_the_head_and_the_tables_have_the_figures_of_metrics_csv(runs: dict[str, Path]) -> None:
    texts, last = Page(one(runs["hafl"])).texts, rows_of(runs["hafl"])[-1]
    for key in ("test/acc", "round/val_acc", "clients/val_acc", "clients/val_acc_worst10"):
        assert f"{float(last[key]):.4f}" in texts, key


def test_the_spread_of_the_clients_has_the_mean_of_metrics_csv(runs: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (runs["hafl"] / "record.jsonl").read_text().splitlines()[1:]]
    for line, row in zip(lines, rows_of(runs["hafl"]), strict=True):
        values = line["clients"]["received/val_acc"]["values"]
        assert sum(values) / len(values) == pytest.approx(float(row["clients/val_acc"]), abs=1e-4)


def test_components_of_hafl_add_up_to_the_ranks_of_the_clients(runs: dict[str, Path]) -> None:
    charts = data_of(one(runs["hafl"]))
    (trained,), (by_client,) = charts["chart-trained"]["data"], charts["chart-by-client"]["data"]
    ranks, rounds, layers = (2, 4, 8, 2), 3, 4
    assert sum(map(sum, trained["z"])) == sum(ranks) * rounds * layers
    assert [round(sum(row)) for row in by_client["z"]] == [rank * layers for rank in ranks]


def test_the_task_map_has_a_frame_for_each_round(runs: dict[str, Path]) -> None:
    frames = data_of(one(runs["fl_tac"]))["chart-task-map"]["frames"]
    assert [frame["name"] for frame in frames] == ["round 1", "round 2", "round 3"]


def test_three_runs_are_compared_in_the_same_charts(runs: dict[str, Path], tmp_path: Path) -> None:
    three = [runs[algo] for algo in ALGOS[:3]]
    text = flt.report(three, tmp_path / "three.html").read_text()
    charts = data_of(text)
    assert set(charts) == {f"chart-{name}" for name in ("score", "received", "worst", "loss", "bytes", "time")}
    for trace, run in zip(charts["chart-score"]["data"], three, strict=True):
        assert trace["name"] == run.parent.name
        assert trace["y"] == [float(row["round/val_acc"]) for row in rows_of(run)]
    colours = [trace["line"]["color"] for trace in charts["chart-score"]["data"]]
    assert len(set(colours)) == 3
    assert "schedule.name" in Page(text).texts
    assert "checkpoint.keep" not in Page(text).texts


def test_a_folder_of_runs_stands_for_all_runs_in_it(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(runs["hafl"].parents[1])]) == 0
    assert len(data_of(Path("report.html").read_text())["chart-score"]["data"]) == 4


def test_an_export_stands_for_its_run(runs: dict[str, Path], tmp_path: Path) -> None:
    assert flt.report(runs["hafl"] / "adapter", tmp_path / "page.html").is_file()


def test_a_run_of_an_earlier_version_without_a_record_has_a_page(hafl: Path) -> None:
    (hafl / "record.jsonl").unlink()
    (hafl / "classes.json").unlink()
    assert Page(one(hafl)).charts == {"chart-score", "chart-loss", "chart-bytes", "chart-time"}


def test_a_run_before_its_first_round_has_a_page(hafl: Path) -> None:
    (hafl / "metrics.csv").unlink()
    text = one(hafl, running=True)
    assert 'data-reload="' in text
    assert "round 0 of 3" in " ".join(Page(text).texts)


def test_nothing_that_a_file_says_becomes_an_element(hafl: Path) -> None:
    clean = [element for element in Page(one(hafl)).elements if element[0] in ("script", "img", "iframe", "a", "b")]
    head = json.loads((hafl / "record.jsonl").read_text().splitlines()[0])
    names = [f"{HOSTILE}{i}" for i in range(len(head["classes"]))]
    layers = [[f"{HOSTILE}.{name}", rank] for name, rank in head["layers"]]
    texts = {"command": HOSTILE, "hardware": HOSTILE, "started": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    change_head(hafl, classes=names, layers=layers, tasks=[HOSTILE], **texts)
    config = (hafl / "config.yaml").read_text()
    (hafl / "config.yaml").write_text(re.sub(r"(?m)^algo: .*$", lambda _: f"algo: {json.dumps(HOSTILE)}", config))
    target = hafl.parent.parent / "<img src=x onerror=alert(1)>" / "version_0"
    shutil.copytree(hafl, target)
    page = Page(one(target))
    found = [element for element in page.elements if element[0] in ("script", "img", "iframe", "a", "b")]
    assert found == clean
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    data = json.dumps(data_of(one(target)))
    assert "<img" not in data
    assert "<script" not in data


def test_only_the_scripts_of_flt_and_plotly_may_run(runs: dict[str, Path]) -> None:
    import importlib.util

    text = one(runs["hafl"])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy[1]
    assert "http" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    plotly = Path(str(importlib.util.find_spec("plotly").origin)).parent / "package_data" / "plotly.min.js"  # type: ignore[union-attr]  # installed
    for script in [*scripts, plotly.read_text()]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy[1]
    assert len(scripts) == 2


def test_a_page_names_no_address_to_load_from(runs: dict[str, Path]) -> None:
    elements = Page(one(runs["hafl"])).elements
    assert not [attrs for _, attrs in elements if {"src", "srcset"} & attrs.keys()]
    assert all(str(attrs["href"]).startswith("#") for _, attrs in elements if "href" in attrs)


def test_each_chart_has_a_sentence_and_a_table(runs: dict[str, Path]) -> None:
    page = Page(one(runs["fl_tac"]))
    charts = [attrs for _, attrs in page.elements if attrs.get("class") == "chart"]
    assert all(attrs["role"] == "img" and len(str(attrs["aria-label"])) > 40 for attrs in charts)
    assert sum(tag == "details" for tag, _ in page.elements) >= len(charts)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))


def test_the_page_names_no_folder_of_this_machine(runs: dict[str, Path], tmp_path: Path) -> None:
    page = flt.report(runs["hafl"], tmp_path / "page.html").read_text()
    assert str(runs["hafl"].parents[1]) not in page


def test_a_thousand_clients_and_rounds_make_a_page_of_at_most_five_megabytes(hafl: Path) -> None:
    jobs, rounds = 1000, 1000
    header, *rows = (hafl / "metrics.csv").read_text().splitlines()
    cells = [row.partition(",")[2] for row in rows]
    (hafl / "metrics.csv").write_text("\n".join([header, *(f"{r},{cells[r % 3]}" for r in range(1, rounds + 1))]))
    head = json.loads((hafl / "record.jsonl").read_text().splitlines()[0])
    head |= {"jobs": [[i, 0] for i in range(jobs)], "task": [0] * jobs, "examples": [20] * jobs, "ranks": [4] * jobs,
             "of": jobs, "clients": jobs, "counts": [[4] * 5] * jobs, "shown": list(range(60))}  # fmt: skip
    points = {"jobs": list(range(jobs)), "groups": [i % 3 for i in range(jobs)], "x": [0.12345] * jobs,
              "y": [0.12345] * jobs, "shares": [0.5, 0.2]}  # fmt: skip
    part = {"count": jobs, "quantiles": [0.12345] * 9, "worst": [[i, 0, 0.12345] for i in range(10)]}
    lines = [
        {"round": r, "clients": {"received/val_acc": part}, "groups": [i % 3 for i in range(jobs)]}
        | ({"points": points} if r % 50 == 0 else {})
        for r in range(1, rounds + 1)
    ]
    (hafl / "record.jsonl").write_text("\n".join(map(json.dumps, [head, *lines])))
    assert len(one(hafl).encode()) <= 5_000_000


BROKEN = {
    "not a run": (lambda run: shutil.rmtree(run), "there is no such folder"),
    "another folder": (lambda run: (run / "config.yaml").unlink() or shutil.rmtree(run / "adapter"), "neither a run"),
    "broken settings": (lambda run: (run / "config.yaml").write_text("a: [1"), "config.yaml that flt wrote"),
    "broken metrics": (lambda run: (run / "metrics.csv").write_text("round\nx\n"), "metrics.csv that flt wrote"),
    "no rounds": (lambda run: (run / "metrics.csv").write_text(""), "metrics.csv has no rounds (it is empty"),
    "a cut record": (
        lambda run: (run / "record.jsonl").write_text((run / "record.jsonl").read_text()[:300]),
        "line 1 of record.jsonl: no complete JSON; allowed is a run with the record.jsonl that flt wrote",
    ),
    "no record": (lambda run: (run / "record.jsonl").write_text("x\n"), "record.jsonl that flt wrote"),
    "newer record": (lambda run: change_head(run, format=2), "its format is 2, not 1"),
    "no object": (lambda run: (run / "record.jsonl").write_text("[]\n"), "line 1 of record.jsonl: no object"),
    "no jobs": (lambda run: change_head(run, jobs=None), "record.jsonl that flt wrote"),
    "wrong types": (lambda run: change_head(run, examples="many"), "record.jsonl that flt wrote"),
    "wrong layers": (lambda run: change_head(run, layers=[["a", 1]]), "record.jsonl that flt wrote"),
    "not a number": (lambda run: change_head(run, examples=[float("nan")] * 4), "NaN is no number"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_run_is_refused_in_one_line(broken: str, hafl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage, why = BROKEN[broken]
    damage(hafl)
    assert main(["report", str(hafl)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run=")
    assert error.count("\n") == 1
    assert why in error
    assert not (hafl / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "no run is named"),
        (["last", "out=a.html", "out=b.html"], "only once"),
        (["last", "html=a"], "allowed is out="),
        (["last", "--json"], "no flags"),
        (["last"], "there is no run in lightning_logs yet"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert why in error


def test_a_folder_in_the_place_of_the_page_is_refused(hafl: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a file that flt wrote"):
        flt.report(hafl, tmp_path)
    with pytest.raises(InputError, match=r"^out=page\.html: .*allowed is a file in a folder that can be written"):
        flt.report(hafl, tmp_path / "missing" / "page.html")


def test_the_last_line_of_a_killed_run_may_be_incomplete(hafl: Path) -> None:
    with (hafl / "record.jsonl").open("a") as file:
        file.write('{"round": 4, "cl')
    assert "chart-clients" in data_of(one(hafl))
