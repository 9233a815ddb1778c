"""Bits under a budget, against every choice there is and against a linear programme."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from flt.algorithm.compression.allocation import allocate, cost, utility
from flt.protocol.quantise import BITS

LADDER = (0, *BITS)
frugal = settings(max_examples=40, deadline=None)
lengths = st.lists(st.integers(4, 40), min_size=1, max_size=2)
problems = st.lists(st.tuples(st.floats(0, 100), lengths), min_size=1, max_size=4).filter(
    lambda pairs: len({score for score, _ in pairs}) > 1 or len(pairs) == 1
)


def bytes_of(pair: list[int], bits: int) -> int:
    """By hand: a byte for the precision, codes, a float32 scale below 32 bits."""
    return 0 if bits == 0 else 1 + sum(-(-n * bits // 8) + (4 if bits < 32 else 0) for n in pair)


def worth(scores: list[float], bits: tuple[int, ...] | list[int]) -> float:
    return sum(score * (1 - 4.0 ** (1 - q) if q else 0) for score, q in zip(scores, bits, strict=True))


def weights(pairs: list[tuple[float, list[int]]]) -> list[float]:
    return [score for score, _ in pairs] if len(pairs) > 1 else [1.0]


@frugal
@given(problems, st.integers(0, 800))
def test_the_budget_is_never_exceeded_and_a_step_that_fits_is_taken(
    pairs: list[tuple[float, list[int]]], budget: int
) -> None:
    bits = allocate([score for score, _ in pairs], [of for _, of in pairs], budget)
    left = budget - sum(bytes_of(of, q) for (_, of), q in zip(pairs, bits, strict=True))
    assert left >= 0
    assert all(q or bytes_of(of, 2) > left for (_, of), q in zip(pairs, bits, strict=True))
    if 0 not in bits:
        for (_, of), q in zip(pairs, bits, strict=True):
            assert q == 32 or bytes_of(of, LADDER[LADDER.index(q) + 1]) - bytes_of(of, q) > left


@frugal
@given(problems, st.integers(0, 300))
def test_the_sum_is_the_best_of_all_choices_but_for_one_step(pairs: list[tuple[float, list[int]]], spare: int) -> None:
    scores, of = weights(pairs), [its for _, its in pairs]
    budget = sum(bytes_of(its, 2) for its in of) + spare
    found = allocate(scores, of, budget)
    choices = itertools.product(BITS, repeat=len(of))
    fit = [bits for bits in choices if sum(map(bytes_of, of, bits)) <= budget]
    step = max(scores) * (utility(4) - utility(2))
    assert worth(scores, found) >= max(worth(scores, bits) for bits in fit) - step - 1e-9


@frugal
@given(problems, st.integers(0, 300))
def test_the_sum_is_that_of_the_linear_relaxation_but_for_one_step(
    pairs: list[tuple[float, list[int]]], spare: int
) -> None:
    """scipy's optimum over shares of steps; the one that didn't fit in whole is what may be missing."""
    scores, of = weights(pairs), [its for _, its in pairs]
    steps = [
        (score * (utility(high) - utility(low)), bytes_of(its, high) - bytes_of(its, low))
        for score, its in zip(scores, of, strict=True)
        for low, high in itertools.pairwise(BITS)
    ]
    gains, prices = np.array(steps).T
    best = -linprog(-gains, A_ub=prices[None], b_ub=[spare], bounds=(0, 1)).fun
    found = allocate(scores, of, sum(bytes_of(its, 2) for its in of) + spare)
    assert worth(scores, found) - worth(scores, [2] * len(of)) >= best - gains.max() - 1e-6


def test_where_the_lowest_precision_is_too_much_the_lowest_scores_stay_away() -> None:
    each = bytes_of([8], 2)
    scores = [3.0, 1.0, 4.0, 1.5, 9.0]
    for count in range(6):
        kept = {i for i, bits in enumerate(allocate(scores, [[8]] * 5, count * each)) if bits}
        assert kept == set(np.argsort(scores)[5 - count :].tolist())
    assert allocate(scores, [[8]] * 5, -7) == [0] * 5


def test_the_utility_of_bits_is_the_share_of_a_squared_norm_that_is_kept() -> None:
    """1 - 4^-(q - 1), by hand."""
    assert [utility(bits) for bits in (0, 2, 4)] == [0.0, 3 / 4, 63 / 64]


def test_short_pairs_come_back_where_a_long_one_had_to_go() -> None:
    assert allocate([0.66, 0.80, 0.52], [(16, 4), (64, 64), (4, 16)], 34) == [4, 0, 2]


def test_higher_scores_never_get_fewer_bits() -> None:
    scores = np.random.default_rng(0).random(20)
    for budget in range(100, 1500, 50):
        bits = np.array(allocate(scores.tolist(), [(16, 16)] * 20, budget))[np.argsort(scores)]
        assert (np.diff(bits) >= 0).all(), budget


@pytest.mark.parametrize("score", [0.0, 2.5])
def test_equal_scores_are_spread_step_by_step_over_the_pairs(score: float) -> None:
    room = 6 * bytes_of([8], 2) + 3 * (bytes_of([8], 4) - bytes_of([8], 2))
    assert allocate([score] * 6, [[8]] * 6, room) == [4, 4, 4, 2, 2, 2]
    dropped = allocate([score] * 6, [[8]] * 6, 4 * bytes_of([8], 2))
    assert dropped == [2, 2, 2, 2, 0, 0]


def test_pairs_of_score_zero_get_what_the_others_leave_level_by_level() -> None:
    assert allocate([1.0, 0.0, 0.0], [[8]] * 3, 10**6) == [32, 32, 32]
    room = bytes_of([8], 32) + bytes_of([8], 8) + bytes_of([8], 4)
    assert allocate([1.0, 0.0, 0.0], [[8]] * 3, room) == [32, 8, 4]


def test_what_costs_nothing_is_taken_and_costs_are_those_by_hand() -> None:
    """A single number takes a byte at 2, 4 and 8 bits, and at 32 less than at 16 with its scale."""
    assert allocate([1.0, 2.0], [[1], [1]], bytes_of([1], 8) * 2) == [8, 8]
    for pair, bits in itertools.product([[5], [8, 3], []], LADDER):
        assert cost(pair, bits) == bytes_of(pair, bits)
