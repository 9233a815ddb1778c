"""Exact sums against fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flt.algorithm.rule.exact_sum import COUNT, LARGEST, ExactSum

magnitudes = st.floats(1e-12, 1e6, width=64)
values = st.builds(lambda size, sign: sign * size, magnitudes, st.sampled_from((-1.0, 1.0)))
float32 = st.floats(float(2.0**-41), 1e6, width=32)


def summed(terms: list[float]) -> ExactSum:
    total = ExactSum.zeros((1,))
    for term in terms:
        total.add(torch.tensor([term], dtype=torch.float64))
    return total


def limbs(total: ExactSum) -> Fraction:
    return Fraction(total.high.item(), 2**24) + Fraction(total.low.item(), 2**64)


@given(st.lists(values, max_size=30), st.randoms(use_true_random=False))
def test_no_order_changes_a_bit(terms: list[float], random: object) -> None:
    shuffled = random.sample(terms, len(terms))  # type: ignore[attr-defined]
    assert summed(terms) == summed(shuffled) == summed(terms[::-1])


@given(st.lists(values, max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_no_split_over_processes_changes_a_bit(terms: list[float], first: int, second: int) -> None:
    low, high = sorted((first, second))
    parts = [summed(terms[:low]), summed(terms[low:high]), summed(terms[high:])]
    merged = ExactSum.zeros((1,))
    for part in parts[::-1]:
        merged = merged.plus(part)
    assert merged == summed(terms)


@given(st.lists(st.tuples(float32, st.integers(-5000, 5000)), max_size=30))
def test_sum_of_weighted_float32_equals_that_of_fractions(pairs: list[tuple[float, int]]) -> None:
    """A float32 of at least 2^-41 is a multiple of 2^-64, and so is its product with an integer: nothing is cut off."""
    total = summed([n * x for x, n in pairs])
    exact = sum((Fraction(x) * n for x, n in pairs), Fraction(0))
    assert limbs(total) == exact
    assert abs(Fraction(total.value().item()) - exact) <= abs(exact) / 2**51 + Fraction(len(pairs), 2**76)


@given(st.lists(values, max_size=30))
def test_sum_of_any_float64_is_off_by_at_most_half_a_unit_per_term(terms: list[float]) -> None:
    exact = sum(map(Fraction, terms), Fraction(0))
    assert abs(limbs(summed(terms)) - exact) <= Fraction(len(terms), 2**65)


@given(float32, st.sampled_from((-1.0, 1.0)), st.integers(1, 10**5))
def test_mean_over_one_client_is_its_float32(x: float, sign: float, n: int) -> None:
    value = torch.tensor([sign * x], dtype=torch.float32)
    total = ExactSum.zeros((1,))
    total.add(n * value.double())
    assert torch.equal((total.value() / n).float(), value)


def test_two_float32_sums_would_differ_where_the_exact_ones_do_not() -> None:
    terms = torch.randn(10, 1000, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(sum(terms), sum(terms.flip(0)))
    forwards, backwards = ExactSum.zeros((1000,)), ExactSum.zeros((1000,))
    for term, other in zip(terms, terms.flip(0), strict=True):
        forwards.add(term.double())
        backwards.add(other.double())
    assert torch.equal(forwards.value(), backwards.value())
    assert torch.allclose(forwards.value(), terms.double().sum(0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("term", [LARGEST, -LARGEST, float("inf"), float("nan")])
def test_a_term_out_of_range_is_refused(term: float) -> None:
    with pytest.raises(OverflowError, match=r"below 2\^38"):
        summed([term])


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_terms_whose_sum_is_out_of_range_are_refused_and_not_wrapped_round(sign: float) -> None:
    total = summed([sign * LARGEST / 2])
    with pytest.raises(OverflowError):
        total.add(torch.tensor([sign * LARGEST / 2], dtype=torch.float64))
    with pytest.raises(OverflowError):
        total = total.plus(summed([-sign * LARGEST / 2]))
    assert total.value().item() == sign * LARGEST / 2


def test_more_terms_than_the_low_limb_can_hold_are_refused() -> None:
    total = ExactSum.zeros((1,))
    total.count = COUNT - 1
    total.add(torch.ones(1, dtype=torch.float64))
    with pytest.raises(OverflowError, match=str(COUNT)):
        total.add(torch.ones(1, dtype=torch.float64))
    with pytest.raises(OverflowError, match=str(COUNT)):
        total = total.plus(summed([1.0]))


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)], ids=str)
def test_any_shape_is_summed_per_entry(shape: tuple[int, ...]) -> None:
    total = ExactSum.zeros(shape)
    for term in (torch.full(shape, 0.5, dtype=torch.float64), torch.full(shape, -2.0, dtype=torch.float64)):
        total.add(term)
    assert torch.equal(total.value(), torch.full(shape, -1.5, dtype=torch.float64))
