"""Curves of several runs: which of them look alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from compared_runs import made_run
from reports import data_of

from flt.reports.curves import key_figures, looks, of_one, results
from flt.reports.page import several
from flt.run.stored import StoredRun


def runs_of(*recipes: str) -> list[StoredRun]:
    return [StoredRun(Path(str(i)), {"algo": name}, [], {}, None) for i, name in enumerate(recipes)]


def test_runs_of_a_recipe_have_one_colour_and_different_dashes() -> None:
    assert looks(runs_of("fedit", "hafl", "fedit", "hafl")) == [(0, "solid"), (1, "solid"), (0, "dash"), (1, "dash")]


@pytest.mark.parametrize("recipes", [["fedit"] * 5 + ["hafl"], [str(i) for i in range(9)], ["fedit"] * 30])
def test_no_two_runs_look_alike(recipes: list[str]) -> None:
    found = [(colour % 8, dash) for colour, dash in looks(runs_of(*recipes))]
    assert len(set(found)) == len(recipes)


def test_a_run_s_name_ends_no_script(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    text = several([made_run(tmp_path, "algo=fedit", algo=hostile), made_run(tmp_path, "algo=hafl")])
    assert text.count("</script>") == text.count("<script")
    assert hostile in [trace["name"] for trace in data_of(text)["chart-score"]["data"]]


def test_a_run_with_a_fleet_shows_its_accuracy_over_simulated_hours() -> None:
    rows = [
        {"round": n, "round/val_acc": 0.2 * n, "time/simulated_hours": 0.5 * n, "fleet/energy": 30.0 * n}
        for n in (1, 2)
    ]
    (chart,) = [
        chart
        for chart in of_one(StoredRun(Path("run"), {"algo": "fedit"}, rows, {}, None))
        if chart.id == "chart-simulated"
    ]
    assert chart.title == "Accuracy against simulated time"
    assert (chart.traces[0]["x"], chart.traces[0]["y"]) == ([0.5, 1.0], [0.2, 0.4])
    assert chart.layout["xaxis"]["title"]["text"] == "simulated hours"
    plain = [{key: value for key, value in row.items() if "simulated" not in key} for row in rows]
    without = StoredRun(Path("run"), {"algo": "fedit"}, plain, {}, None)
    assert "chart-simulated" not in [chart.id for chart in of_one(without)]
    figures = key_figures(StoredRun(Path("run"), {"algo": "fedit"}, rows, {}, None))
    assert ("simulated time", "1 h 00 min", "30 min 00 s a round, 60 J") in figures
    assert "simulated time" not in [name for name, *_ in key_figures(without)]
    both = results([StoredRun(Path("run"), {"algo": "fedit"}, rows, {}, None), without], ["one", "two"])
    assert [line[list(both.columns).index("simulated time")] for line in both.rows] == ["1 h 00 min", "–"]
    assert "simulated time" not in results([without], ["two"]).columns


@pytest.mark.parametrize(
    ("hours", "unit", "x"), [(0.001, "seconds", [3.6, 7.2]), (0.01, "minutes", [0.6, 1.2]), (2.0, "hours", [2.0, 4.0])]
)
def test_simulated_time_has_a_unit_that_can_be_read(hours: float, unit: str, x: list[float]) -> None:
    rows = [{"round": n, "round/val_acc": 0.5, "time/simulated_hours": hours * n, "fleet/energy": 1.0} for n in (1, 2)]
    charts = of_one(StoredRun(Path("run"), {"algo": "fedit"}, rows, {}, None))
    (chart,) = [chart for chart in charts if chart.id == "chart-simulated"]
    assert chart.layout["xaxis"]["title"]["text"] == f"simulated {unit}"
    assert chart.traces[0]["x"] == pytest.approx(x)
