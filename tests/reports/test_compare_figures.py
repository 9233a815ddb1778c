"""The files of a comparison: curves and points with the runs' data, LaTeX that compiles, csv that reads back."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from compared_runs import made_run, rounds
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import flt
from flt.core.errors import InputError
from flt.reports import compare_figures
from flt.reports.compare_figures import COLOURS, save
from flt.reports.compare_result import Comparison

VALUES = {"fedit": [(0.4, 0.6, 0.7), (0.5, 0.7, 0.9)], "hafl": [(0.3, 0.5, 0.8), (0.5, 0.5, 0.6)]}


@pytest.fixture
def found(tmp_path: Path) -> Comparison:
    for algo, runs in VALUES.items():
        for seed, accuracies in enumerate(runs):
            rows = rounds(*accuracies, test=accuracies[-1], sent=1e6 * (seed + 1))
            made_run(tmp_path / "logs", f"algo={algo}", f"seed={seed}", rows=rows)
    return flt.compare(tmp_path / "logs", target=0.65)


def panels(figure: Figure) -> list[Axes]:
    return figure.get_axes()


@pytest.mark.parametrize("number", [0, 1])
def test_the_curve_over_the_rounds_is_the_mean_of_the_seeds_and_its_band_the_deviation(
    found: Comparison, number: int
) -> None:
    (axes,) = panels(found.figure("rounds"))
    runs = list(VALUES.values())[number]
    line, band = axes.get_lines()[number], axes.collections[number]
    assert list(line.get_xdata()) == [1, 2, 3]
    assert line.get_ydata() == pytest.approx(np.mean(runs, axis=0))
    edges = {round(float(y), 9) for y in band.get_paths()[0].vertices[:, 1]}
    means, spread = np.mean(runs, axis=0), np.std(runs, axis=0, ddof=1)
    assert edges >= {round(float(y), 9) for y in [*(means - spread), *(means + spread)]}
    assert line.get_label() == ["fedit", "hafl"][number]


def test_the_curve_over_the_bytes_has_the_mean_of_what_was_sent(found: Comparison) -> None:
    (axes,) = panels(found.figure("bytes"))
    assert axes.get_lines()[0].get_xdata() == pytest.approx([4.5, 9.0, 13.5])  # (1 + 2) / 2 MB up and twice that down
    assert axes.get_xlabel() == "MB sent, up and down"


def test_the_final_values_are_a_point_for_each_seed(found: Comparison) -> None:
    (axes,) = panels(found.figure("final"))
    points = [line for line in axes.get_lines() if line.get_linestyle() == "None" and line.get_alpha() == 0.6]
    assert [list(line.get_xdata()) for line in points] == [[0.7, 0.9], [0.8, 0.6]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fedit", "hafl"]


def test_three_panels_share_their_legend_and_need_no_titles(found: Comparison) -> None:
    figure = found.figure()
    assert [axes.get_xlabel() for axes in panels(figure)] == ["round", "MB sent, up and down", "test accuracy"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedit", "hafl"]
    assert [axes.get_title() for axes in panels(figure)] == ["", "", ""]
    assert figure.get_figwidth() == 6.8


def test_the_target_is_a_line_in_the_curves(found: Comparison) -> None:
    assert list(panels(found.figure("rounds"))[0].get_lines()[-1].get_ydata()) == [0.65, 0.65]


@pytest.mark.parametrize(("width", "inches"), [(None, 3.3), ("single", 3.3), ("double", 6.8), (5, 5.0), ("4.5", 4.5)])
def test_a_figure_has_the_width_of_a_column(found: Comparison, width: str | float | None, inches: float) -> None:
    assert found.figure("rounds", width).get_figwidth() == inches


@pytest.mark.parametrize("kind", ["all", "rounds", "bytes", "final"])
@pytest.mark.parametrize("width", [3.3, 6.8])
def test_text_is_readable_and_lies_inside_the_figure(found: Comparison, kind: str, width: float) -> None:
    figure = found.figure(kind, width)
    figure.draw_without_rendering()
    for axes in panels(figure):
        assert min(text.get_fontsize() for text in (*axes.get_xticklabels(), *axes.get_yticklabels())) >= 7
        names = axes.get_yticklabels() if axes.get_xlabel() == "test accuracy" else []
        for text in filter(lambda text: text.get_text(), [axes.xaxis.label, axes.yaxis.label, *names]):
            box = text.get_window_extent()
            assert figure.bbox.x0 - 1 <= box.x0 < box.x1 <= figure.bbox.x1 + 1, text
            assert figure.bbox.y0 - 1 <= box.y0 < box.y1 <= figure.bbox.y1 + 1, text


def test_methods_have_different_colours_or_dashes(tmp_path: Path) -> None:
    for number in range(len(COLOURS) + 2):
        made_run(tmp_path, "algo=fedit", f"local.lr={0.01 * (number + 1):g}")
    lines = panels(flt.compare(tmp_path).figure("rounds"))[0].get_lines()
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in lines}
    assert len(lines) == len(looks) == len(COLOURS) + 2


def test_methods_without_a_curve_are_left_out_of_the_figure(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit")
    made_run(tmp_path, "algo=local", rows=[{"round": 1, "clients/val_acc": 0.5}, {"round": 2, "clients/val_acc": 0.6}])
    figure = flt.compare(tmp_path).figure()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fedit"]
    assert [label.get_text() for label in panels(figure)[2].get_yticklabels()] == ["fedit"]


def test_rounds_that_a_seed_did_not_measure_are_not_drawn(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", "seed=0", "rounds=3", rows=rounds(0.1, 0.2, 0.3))
    stopped = rounds(0.5, 0.6)
    made_run(tmp_path, "algo=fedit", "seed=1", "rounds=3", rows=[*stopped, {"round": 3, "comm/total_up": 1.0}])
    line = panels(flt.compare(tmp_path).figure("rounds"))[0].get_lines()[0]
    assert list(line.get_xdata()) == [1, 2]
    assert line.get_ydata() == pytest.approx([0.3, 0.4])


def test_files_are_pictures_of_their_kind_with_embedded_text_and_the_same_bytes_each_time(found: Comparison) -> None:
    figure = found.figure("rounds")
    assert save(figure, "png").startswith(b"\x89PNG")
    pdf, svg = save(figure, "pdf"), save(figure, "svg").decode()
    assert pdf.startswith(b"%PDF")
    assert b"/Subtype /Type3" not in pdf
    assert "validation accuracy</text>" in svg
    again = found.figure("rounds")
    assert (save(again, "pdf"), save(again, "svg").decode()) == (pdf, svg)


def test_names_are_no_formulas_and_no_hidden_entries(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", algo="_$x^2$", name="a")
    made_run(tmp_path, "algo=hafl")
    figure = flt.compare(tmp_path).figure()
    svg = save(figure, "svg").decode()
    assert svg.count("_$x^2$</text>") == 2  # in the legend and beside the points


def test_a_folder_has_all_files_and_the_csv_reads_back(found: Comparison, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    files = found.save(out)
    kinds = {f"{name}.{form}" for name in ("compare", "rounds", "bytes", "final") for form in ("png", "pdf", "svg")}
    assert {path.name for path in out.iterdir()} == {"table.csv", "runs.csv", "table.tex", *kinds}
    assert all(path.stat().st_size > 100 for path in files)
    rows = list(csv.DictReader(io.StringIO((out / "table.csv").read_text())))
    assert [float(row["test/acc mean"]) for row in rows] == [0.8, 0.7]
    runs = list(csv.DictReader(io.StringIO((out / "runs.csv").read_text())))
    assert [(row["method"], row["seed"], float(row["test/acc"])) for row in runs] == [
        ("fedit", "0", 0.7), ("fedit", "1", 0.9), ("hafl", "0", 0.8), ("hafl", "1", 0.6),
    ]  # fmt: skip


def test_figures_of_several_problems_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_figures, "FORMATS", ("svg",))  # which is the fastest
    made_run(tmp_path / "logs", "algo=fedit")
    made_run(tmp_path / "logs", "algo=fl_tac")
    found = flt.compare(tmp_path / "logs")
    names = {path.name for path in found.save(tmp_path / "out")}
    assert {"compare_1.svg", "compare_2.svg", "table.csv"} <= names
    assert found.to_latex().count(r"\begin{table*}") == 2
    with pytest.raises(InputError, match="^problem=3: allowed is an integer from 1 to 2"):
        found.figure(problem=3)
    with pytest.raises(InputError, match="^kind=pie: allowed is all, rounds, bytes, final"):
        found.figure("pie")


def test_the_latex_table_is_balanced_and_says_what_it_shows(tmp_path: Path) -> None:
    hostile = r"a&b%c$d#e_f{g}h~i^j\k[1em]*<>|"
    for name in ("fedit", hostile):
        for seed in (0, 1):
            made_run(tmp_path, "algo=fedit", f"seed={seed}", algo=name, name="run")
    text = flt.compare(tmp_path, target=0.6).to_latex()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert not set("%#&~^") & set(bare.replace(" & ", ""))
    assert re.findall(r"\\(?:begin|end)\{([\w*]+)\}", text) == ["table*", "tabular", "tabular", "table*"]
    for said in ("2 seeds each", r"$\pm$ standard deviation", r"95\,\% intervals", r"\toprule", r"\bottomrule"):
        assert said in text
    assert len(re.findall("[lr]", re.search(r"@\{\}([lr]+)@", text)[1])) == rows[0].count("&") + 1  # type: ignore[index]  # found above


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_the_latex_table_compiles(found: Comparison, tmp_path: Path) -> None:
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{found.to_latex()}\end{{document}}"
    (tmp_path / "a.tex").write_text(document)
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize("accuracies", [(0.9, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 0.5, 1.0), (0.987, 0.99, 1.0)])
def test_no_tick_and_hardly_any_axis_lies_beyond_an_accuracy_of_1(
    tmp_path: Path, accuracies: tuple[float, ...]
) -> None:
    for seed in (0, 1):
        worse = [accuracy - 0.08 * seed * (accuracy > 0.5) for accuracy in accuracies]
        made_run(tmp_path, "algo=fedit", f"seed={seed}", rows=rounds(*worse, test=worse[-1]))
    figure = flt.compare(tmp_path).figure()
    figure.draw_without_rendering()
    curves, over_bytes, final = panels(figure)
    for low, high, ticks in (
        (*curves.get_ylim(), curves.get_yticks()),
        (*over_bytes.get_ylim(), over_bytes.get_yticks()),
        (*final.get_xlim(), final.get_xticks()),
    ):
        assert -0.03 < low < 1
        assert 1 < high < 1.03
        assert 1.0 in [pytest.approx(tick) for tick in ticks]
        assert all(tick < 1.0001 for tick in ticks if tick <= high)


def test_losses_and_other_figures_may_lie_beyond_1(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", rows=[{"round": n, "round/val_loss": 1.0 + n} for n in (1, 2)])
    figure = flt.compare(tmp_path).figure("rounds")
    assert panels(figure)[0].get_ylim()[1] > 3


@pytest.mark.parametrize("last", [1, 2, 3, 7, 50, 333])
def test_ticks_of_rounds_are_round_integers(tmp_path: Path, last: int) -> None:
    rows = [{"round": n, "round/val_acc": 0.5} for n in range(1, last + 1)]
    made_run(tmp_path, "algo=fedit", rows=rows)
    axes = panels(flt.compare(tmp_path).figure("rounds"))[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks
    assert all(tick == int(tick) for tick in ticks)
    assert {str(int(b - a)).rstrip("0") for a, b in zip(ticks, ticks[1:], strict=False)} <= {"1", "2", "5"}


def test_the_curves_have_at_least_four_ticks_in_the_figure_of_all_panels(tmp_path: Path) -> None:
    made_run(tmp_path, "algo=fedit", rows=rounds(0.45, 0.72, 0.95, test=0.9))
    figure = flt.compare(tmp_path).figure()
    save(figure, "png")
    for axes in panels(figure)[:2]:
        low, high = axes.get_ylim()
        assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 4
