from __future__ import annotations

import numpy as np
import pytest
from benchmarks.results.statistics import equivalence, interval, not_worse
from scipy import stats


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("mean", [-0.012, 0.0, 0.004])
def test_equivalence_is_the_larger_of_scipys_two_one_sided_tests(count: int, mean: float) -> None:
    values = np.random.default_rng(count).normal(mean, 0.01, count)
    above = stats.ttest_1samp(values, -0.01, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.01, alternative="less").pvalue
    assert equivalence(list(values), 0.01) == pytest.approx(max(above, below))
    assert not_worse(list(values), 0.01) == pytest.approx(above)


@pytest.mark.parametrize("spread", [0.001, 0.004, 0.02])
def test_equivalence_below_five_percent_means_a_90_percent_interval_inside_the_margin(spread: float) -> None:
    values = list(np.random.default_rng(3).normal(0.002, spread, 5))
    inside = interval(values, 0.9)
    p = equivalence(values, 0.01)
    assert inside is not None
    assert p is not None
    assert (p < 0.05) == (max(-inside[0], inside[1]) < 0.01)


def test_the_interval_is_that_of_scipys_t_test() -> None:
    values = [0.25, -0.5, 0.75, 0.125]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_differences_without_deviation_are_surely_inside_or_outside() -> None:
    assert equivalence([0.0, 0.0, 0.0], 0.01) == 0.0
    assert equivalence([0.02, 0.02], 0.01) == 1.0
    assert equivalence([-0.02, -0.02], 0.01) == 1.0
    assert not_worse([0.02, 0.02], 0.01) == 0.0


def test_one_difference_tests_nothing_and_a_margin_is_above_zero() -> None:
    assert equivalence([0.0], 0.01) is None
    assert not_worse([0.0], 0.01) is None
    assert interval([0.0]) is None
    with pytest.raises(ValueError, match="margin=0, allowed: a number above zero"):
        equivalence([0.0, 0.0], 0)
