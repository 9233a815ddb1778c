from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import toy_results
import yaml
from benchmarks.results import claims, claims_page, cli
from benchmarks.results.cell import Store
from benchmarks.results.claims import Comparison
from benchmarks.results.page import finished
from benchmarks.results.table import Column, load, names
from benchmarks.results.verdict import Tables, censored, compare, decide, of_claim

from flt.core.errors import InputError

BETTER = {"table": "toy", "metric": "accuracy", "first": "fancy", "second": "plain"}
ACCURACY = Column("test accuracy", "test", "acc", better="higher", margin=0.05)
LOSS = Column("test NLL", "test", "loss", better="lower", margin=0.05)


def book(*cases: list[dict[str, object]], **more: object) -> dict[str, object]:
    """The YAML of a file with one claim, whose cases have these comparisons."""
    listed = [{"when": f"case {n}", "tests": tests} for n, tests in enumerate(cases, 1)]
    claim = {"id": "one", "name": "Fancy wins", "claim": "Fancy is better.", "experiment": "Both.", "cases": listed}
    metrics = {
        "accuracy": {"label": "test accuracy", "reduce": "test", "key": "acc", "better": "higher", "margin": 0.05},
        "rounds": {"label": "rounds", "reduce": "rounds_to_target", "better": "lower", "margin": 1.0, "format": ".1f"},
    }
    paper = {"name": "Fancy", "source": "Somebody.", "page": "../papers/fancy.md", "claims": [claim]}
    return {"title": "Claims", "text": "About.", "metrics": metrics, "papers": [paper], **more}


def read(folder: Path, content: object) -> claims.Book:
    (folder / "claims.yaml").write_text(yaml.safe_dump(content))
    return claims.load(folder / "claims.yaml")


def tables(folder: Path, leads: tuple[float, ...] = (0.125, 0.125, 0.125)) -> Tables:
    """The toy table, in which fancy leads plain by so much on each seed; NaN: the cell is missing."""
    toy = toy_results.table(folder)
    store = Store(folder / "results" / "cells")
    for cell in toy.cells():
        lead = leads[cell.seed] if cell.row == "fancy" else 0.0
        if not math.isnan(lead):
            store.write(cell, toy_results.record(cell, test=0.5 + lead + cell.seed / 64))
    return {"toy": (toy, finished(toy, store))}


def outcome(folder: Path, leads: tuple[float, ...], *cases: list[dict[str, object]]) -> str:
    found = read(folder, book(*cases))
    return of_claim(found.claims[0], found, tables(folder, leads))


def test_a_claim_shows_where_all_cases_hold(tmp_path: Path) -> None:
    assert outcome(tmp_path, (0.125, 0.13, 0.12), [BETTER], [{**BETTER, "margin": 0.1}]) == "shows"


def test_a_claim_shows_only_when_some_cases_hold(tmp_path: Path) -> None:
    assert outcome(tmp_path, (0.125, 0.13, 0.12), [BETTER], [{**BETTER, "margin": 0.2}]) == "only"


def test_a_claim_does_not_show_where_its_margin_is_excluded(tmp_path: Path) -> None:
    assert outcome(tmp_path, (0.0, 0.01, -0.01), [BETTER]) == "not"


def test_a_claim_is_undecided_where_the_interval_has_zero_and_the_margin(tmp_path: Path) -> None:
    assert outcome(tmp_path, (0.2, -0.1, 0.1), [BETTER]) == "open"


def test_a_claim_without_cells_or_table_or_row_says_so(tmp_path: Path) -> None:
    missing = [{**BETTER, "table": "later"}]
    assert outcome(tmp_path, (0.125, 0.13, 0.12), missing) == "missing"
    assert outcome(tmp_path, (0.125, 0.13, 0.12), [{**BETTER, "second": "later"}]) == "missing"
    assert outcome(tmp_path, (0.125, 0.13, 0.12), missing, [BETTER]) == "shows"


def test_a_case_needs_all_of_its_comparisons(tmp_path: Path) -> None:
    enough = {"table": "toy", "metric": "accuracy", "first": "fancy", "expect": "at_least", "bound": 0.6}
    assert outcome(tmp_path, (0.125, 0.13, 0.12), [BETTER, enough]) == "shows"
    assert outcome(tmp_path, (0.125, 0.13, 0.12), [BETTER, {**enough, "bound": 0.9}]) == "not"


@pytest.mark.parametrize(
    ("expect", "values", "expected"),
    [
        ("better", (0.06, 0.07, 0.08), "yes"),
        ("better", (0.03, 0.031, 0.032), "no"),  # ahead, and by less than the margin
        ("better", (0.01, 0.02, 0.12), "open"),
        ("better", (-0.06, -0.07, -0.08), "no"),
        ("level", (0.001, -0.002, 0.0), "yes"),
        ("level", (0.06, 0.07, 0.08), "no"),
        ("level", (-0.06, -0.07, -0.08), "no"),
        ("level", (0.04, -0.06, 0.0), "open"),
        ("not_worse", (0.06, 0.07, 0.08), "yes"),
        ("not_worse", (-0.001, 0.002, 0.0), "yes"),
        ("not_worse", (-0.06, -0.07, -0.08), "no"),
        ("not_worse", (-0.09, 0.07, 0.01), "open"),
    ],
)
def test_each_rule_decides_and_lower_is_better_turns_it_round(
    expect: str, values: tuple[float, ...], expected: str
) -> None:
    test = Comparison("toy", "accuracy", "fancy", "plain", expect=expect)
    assert decide(test, ACCURACY, 0.05, values) == expected
    assert decide(test, LOSS, 0.05, [-value for value in values]) == expected


@pytest.mark.parametrize(
    ("expect", "values", "expected"),
    [
        ("at_least", (0.5, 0.6), "yes"),
        ("at_least", (0.4, 0.6), "open"),
        ("at_least", (0.4, 0.3), "no"),
        ("at_most", (0.5, 0.4), "yes"),
        ("at_most", (0.6, 0.7), "no"),
    ],
)
def test_a_bound_is_kept_on_every_seed_or_on_none(expect: str, values: tuple[float, ...], expected: str) -> None:
    assert decide(Comparison("toy", "accuracy", "fancy", expect=expect, bound=0.5), ACCURACY, None, values) == expected


def test_a_difference_may_be_compared_with_another_one(tmp_path: Path) -> None:
    found = read(tmp_path, book([{**BETTER, "than": ["fancy", "plain"]}]))
    test = found.claims[0].cases[0].tests[0]
    assert compare(test, found, tables(tmp_path, (0.125, 0.25, 0.5))).values == (0.0, 0.0, 0.0)


def test_a_row_may_be_compared_with_another_figure_of_its_own(tmp_path: Path) -> None:
    own = {**BETTER, "second": "fancy", "second_metric": "rounds"}
    found = read(tmp_path, book([own]))
    result = compare(found.claims[0].cases[0].tests[0], found, tables(tmp_path, (0.125, 0.25, 0.5)))
    assert result.values == (0.625 - 3, 0.765625 - 3, 1.03125 - 3)
    assert "`fancy` − `fancy` (rounds)" in claims_page.text(found, tables(tmp_path))


def test_a_missed_target_counts_as_one_round_more_than_the_run_has(tmp_path: Path) -> None:
    found = read(tmp_path, book([{**BETTER, "metric": "rounds"}]))
    known = tables(tmp_path)
    store = Store(tmp_path / "results" / "cells")
    toy = known["toy"][0]
    for cell in toy.cells(["plain"]):
        store.write(cell, toy_results.record(cell, (0.1, 0.2, 0.3)))
    result = compare(found.claims[0].cases[0].tests[0], found, {"toy": (toy, finished(toy, store))})
    assert (result.values, result.cut, result.outcome) == ((-1.0, -1.0, -1.0), (0, 3), "yes")


@pytest.mark.parametrize(
    ("expect", "missed", "expected"),
    [
        ("better", "first", "open"),
        ("better", "second", "yes"),
        ("not_worse", "first", "open"),
        ("not_worse", "second", "yes"),
        ("level", "first", "open"),
    ],
)
def test_a_missed_target_never_decides_in_favour_of_the_row_that_missed_it(
    expect: str, missed: str, expected: str
) -> None:
    column = Column("rounds", "rounds_to_target", better="lower", margin=1.0)
    test = Comparison("toy", "rounds", "fancy", "plain", expect=expect)
    cut = (3, 0) if missed == "first" else (0, 3)
    assert censored(decide(test, column, 1.0, (-2.0, -2.1, -1.9)), test, column, cut) == expected


@pytest.mark.parametrize(
    ("expect", "value", "expected"),
    [("at_most", 4.0, "open"), ("at_most", 9.0, "no"), ("at_least", 4.0, "open"), ("at_least", 9.0, "yes")],
)
def test_a_bound_is_not_kept_by_a_missed_target(expect: str, value: float, expected: str) -> None:
    column = Column("rounds", "rounds_to_target", better="lower")
    test = Comparison("toy", "rounds", "fancy", expect=expect, bound=5.0)
    assert censored(decide(test, column, None, (value, value)), test, column, (2,)) == expected


def test_a_run_that_diverged_is_not_left_out_silently(tmp_path: Path) -> None:
    found, known = read(tmp_path, book([BETTER])), tables(tmp_path, (0.125, 0.13, 0.12))
    toy, records = known["toy"]
    diverged = dataclasses.replace(records["fancy"][2], test={})
    known = {"toy": (toy, {**records, "fancy": [*records["fancy"][:2], diverged]})}
    result = compare(found.claims[0].cases[0].tests[0], found, known)
    assert (len(result.values), result.without, result.outcome) == (2, 1, "open")
    assert "| undecided, 1 run without a figure |" in claims_page.text(found, known)


def test_the_page_has_figures_rules_outcomes_and_missing_cells(tmp_path: Path) -> None:
    found = read(tmp_path, book([BETTER], [{**BETTER, "table": "later"}], seen=["toy"]))
    shown = claims_page.text(found, tables(tmp_path, (0.125, 0.13, math.nan)))
    assert "| Fancy | [Fancy wins](#fancy-wins) | so far **shows** (of 2 cases, 1 without cells) |" in shown
    compared = "| case 1 | [toy](toy.md): `fancy` − `plain` | test accuracy at least 0.050 higher ‡ | "
    assert compared + "+0.128 [+0.096, +0.159], 2 seeds | rounds, bytes up, bytes down | **holds** so far, 1 " in shown
    assert "cells are missing: there is no table `later` yet" in shown
    assert "Margins, unless a line has another: 0.050 in test accuracy." in shown


def test_advice_follows_the_outcome_and_has_the_figures_of_the_cells(tmp_path: Path) -> None:
    say = {"shows": "Take fancy.", "else": "Take plain."}
    guide = [{"situation": "one", "claim": "one", "say": say, "figures": {"fancy − plain": BETTER}}]
    found = read(tmp_path, book([BETTER], guide=guide))
    ahead = "| one | Take fancy. | fancy − plain, test accuracy: +0.125 [+0.125, +0.125] |"
    assert ahead in claims_page.text(found, tables(tmp_path))
    behind = "| one | Take plain. | fancy − plain, test accuracy: -0.125 [-0.125, -0.125] |"
    assert behind in claims_page.text(found, tables(tmp_path, (-0.125, -0.125, -0.125)))


def test_the_command_writes_the_page_again_only_if_cells_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables(tmp_path)
    read(tmp_path, book([BETTER]))
    folders = (tmp_path / "tables", tmp_path / "results")
    assert cli.main(["--write"], *folders) == 0
    assert "claims.md" in capsys.readouterr().out
    assert "**shows**" in (tmp_path / "results" / "claims.md").read_text()
    assert cli.main(["--write"], *folders) == 0
    assert "nothing to do" in capsys.readouterr().out
    tables(tmp_path, (-0.125, -0.125, -0.125))
    assert cli.main(["--write"], *folders) == 0
    assert "**does not show**" in (tmp_path / "results" / "claims.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expect": "best"}, "tests.expect=best"),
        ({"metric": "speed"}, "tests.metric=speed"),
        ({"expect": "at_least"}, "a bound and no second row"),
        ({"second": ""}, "else a second row and no bound"),
        ({"margin": 0}, "tests.margin=0.0"),
        ({"than": ["plain"]}, "two rows, beside a first and a second one"),
        ({"second_metric": "speed"}, "tests.metric=speed"),
        ({"rows": ["plain"]}, "Key 'rows' not in 'Comparison'"),
    ],
)
def test_a_comparison_that_has_no_meaning_is_refused_in_a_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as refused:
        read(tmp_path, book([{**BETTER, **change}]))
    assert "\n" not in str(refused.value)


def test_advice_about_no_claim_or_without_a_sentence_for_the_rest_is_refused(tmp_path: Path) -> None:
    advice = {"situation": "one", "claim": "two", "say": {"else": "?"}}
    with pytest.raises(InputError, match="guide.claim=two"):
        read(tmp_path, book([BETTER], guide=[advice]))
    with pytest.raises(InputError, match="a sentence for else"):
        read(tmp_path, book([BETTER], guide=[{**advice, "claim": "one", "say": {"shows": "?"}}]))


@pytest.mark.parametrize("content", ["- a list", "title: [", "title: no metrics"])
def test_a_file_of_other_content_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "claims.yaml").write_text(content)
    with pytest.raises(InputError, match=r"claims\.yaml"):
        claims.load(tmp_path / "claims.yaml")


def test_a_rule_is_marked_if_the_cells_of_all_its_rows_were_known(tmp_path: Path) -> None:
    known = read(tmp_path, book([BETTER], seen=["toy"]))
    assert "at least 0.050 higher ‡" in claims_page.text(known, tables(tmp_path))
    new = read(tmp_path, book([BETTER], seen=["toy"], unseen=["toy/fancy"]))
    assert "at least 0.050 higher |" in claims_page.text(new, tables(tmp_path))


def test_every_row_that_a_claim_names_is_in_its_table_or_is_said_to_be_new() -> None:
    found = claims.load(cli.TABLES.parent / cli.CLAIMS)
    rows = {name: {row.id for row in load(cli.TABLES / f"{name}.yaml").rows} for name in names(cli.TABLES)}
    named = {(test.table, id) for test in found.tests for id in test.rows if test.table in rows}
    assert {f"{table}/{id}" for table, id in named if id not in rows[table]} <= set(found.unseen)
