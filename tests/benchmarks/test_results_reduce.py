from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import toy_results
from benchmarks.results.cell import Cell
from benchmarks.results.reduce import Spread, curve, figure, paired, rounds_to
from benchmarks.results.table import Column
from scipy import stats

RECORD = toy_results.record(Cell("toy", "plain", 0, []), (0.25, None, 0.75, 0.5), test=0.625)
KEY = "round/val_acc"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (Column("", "test", "acc"), 0.625),
        (Column("", "test", "test/acc", scale=100), 62.5),
        (Column("", "test", "f1"), None),
        (Column("", "last", KEY), 0.5),
        (Column("", "best", KEY), 0.75),
        (Column("", "best", KEY, better="lower"), 0.25),
        (Column("", "mean", KEY), 0.5),
        (Column("", "mean", KEY, first=3), 0.625),
        (Column("", "mean", KEY, first=3, last=3), 0.75),
        (Column("", "mean", KEY, first=2, last=2), None),
        (Column("", "mean", KEY, first=9), None),
        (Column("", "total", KEY), 1.5),
        (Column("", "rise", KEY), 0.25),
        (Column("", "rise", KEY, first=3), -0.25),
        (Column("", "count", KEY), 4.0),
        (Column("", "count", "round/val_f1"), None),
        (Column("", "last", "comm/total_up + comm/total_down", scale=1e-6), 12.0),
        (Column("", "last", "round/val_f1"), None),
        (Column("", "rounds_to_target"), 3.0),
        (Column("", "bytes_to_target", scale=1e-6), 9.0),
    ],
    ids=lambda value: value.reduce if isinstance(value, Column) else "",
)
def test_reducers_give_the_closed_form(column: Column, expected: float | None) -> None:
    assert figure(RECORD, column, 0.6, KEY) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("reduce", ["rounds_to_target", "bytes_to_target"])
def test_a_target_out_of_reach_is_infinitely_far_and_no_target_is_none(reduce: str) -> None:
    assert figure(RECORD, Column("", reduce), 0.76, KEY) == math.inf
    assert figure(RECORD, Column("", reduce), None, KEY) is None
    assert figure(RECORD, Column("", reduce), 0.1, "round/val_f1") is None


def test_the_first_round_at_the_target_counts() -> None:
    assert rounds_to([0.5, 0.4], 0.5) == 1.0
    assert rounds_to([None, 0.4, 0.6, 0.2], 0.5) == 3.0


def test_a_sum_of_metrics_is_missing_where_one_of_them_is() -> None:
    record = dataclasses.replace(RECORD, history={"a": [1.0, 2.0], "b": [None, 4.0]})
    assert curve(record, "a + b") == [None, 6.0]
    assert curve(record, "a + c") == []


def test_spread_has_the_sample_standard_deviation() -> None:
    values = (0.5, 0.625, 0.875)
    assert Spread(values).mean == pytest.approx(np.mean(values))
    assert Spread(values).deviation == pytest.approx(np.std(values, ddof=1))
    assert Spread((0.5,)).deviation is None
    assert Spread((0.5, math.inf)).mean == math.inf
    assert Spread((0.5, math.inf)).deviation is None


def test_paired_differences_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 0.1, 7), rng.normal(0.45, 0.1, 7)
    found = paired(dict(enumerate(first)), dict(enumerate(second)))
    assert found is not None
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert found.interval() == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert found.mean == pytest.approx(np.mean(first - second))
    assert found.deviation == pytest.approx(np.std(first - second, ddof=1))
    assert found.agreeing == np.sum(np.sign(first - second) == np.sign(np.mean(first - second)))


def test_only_shared_seeds_are_paired() -> None:
    found = paired({0: 1.0, 1: 3.0, 4: 9.0}, {4: 8.0, 1: 1.0, 2: 7.0})
    assert found is not None
    assert found.differences == (2.0, 1.0)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_no_difference_is_taken_where_a_target_was_not_reached() -> None:
    assert paired({0: 1.0, 1: math.inf}, {0: 2.0, 1: 2.0}) is None
    assert paired({0: math.inf}, {0: math.inf}) is None


def test_one_seed_has_no_interval_and_no_difference_agrees_with_nothing() -> None:
    found = paired({0: 1.0}, {0: 1.0})
    assert found is not None
    assert found.interval() is None
    assert found.agreeing == 0
