"""Cohorts: their sizes, their chances, and what they do not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from made import view_of

from flt.core.errors import InputError
from flt.server.client_sampling import FixedSize, Poisson

CLIENTS = [3, 5, 8, 13, 21, 34]
SAMPLERS = [FixedSize(2), Poisson(0.5)]
kinds = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)


@kinds
def test_a_cohort_holds_clients_once_each_in_ascending_order(sampler: FixedSize | Poisson) -> None:
    for round in range(50):
        cohort = sampler(CLIENTS, 0, round)
        assert cohort == sorted(set(cohort))
        assert set(cohort) <= set(CLIENTS)


@kinds
def test_a_cohort_depends_on_the_seed_and_the_round_alone(sampler: FixedSize | Poisson) -> None:
    first = [sampler(CLIENTS, 7, round) for round in range(20)]
    np.random.seed(1)
    assert [sampler(CLIENTS, 7, round) for round in range(20)] == first
    assert [sampler(CLIENTS, 8, round) for round in range(20)] != first
    assert len({tuple(cohort) for cohort in first}) > 3


@kinds
def test_the_global_generator_is_not_moved(sampler: FixedSize | Poisson) -> None:
    before = np.random.get_state()[1].tolist()
    sampler(CLIENTS, 0, 0)
    assert np.random.get_state()[1].tolist() == before


@kinds
def test_clients_are_chosen_equally_often(sampler: FixedSize | Poisson) -> None:
    """Of 3000 rounds, a chance p gives 3000 p +- 5 sqrt(3000 p (1 - p))."""
    share = 1 / 3 if isinstance(sampler, FixedSize) else 0.5
    counts = np.bincount([client for round in range(3000) for client in sampler(CLIENTS, 0, round)])[CLIENTS]
    assert (abs(counts - 3000 * share) < 5 * (3000 * share * (1 - share)) ** 0.5).all()


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (6, 6), (None, 6)])
def test_a_fixed_size_is_kept_in_every_round(size: int | None, expected: int) -> None:
    assert {len(FixedSize(size)(CLIENTS, 0, round)) for round in range(20)} == {expected}


def test_poisson_cohorts_vary_in_size_and_may_be_empty() -> None:
    sizes = {len(Poisson(0.2)(CLIENTS, 0, round)) for round in range(200)}
    assert {0, 1, 2} <= sizes
    assert Poisson(1.0)(CLIENTS, 0, 0) == CLIENTS


@pytest.mark.parametrize(
    ("sampler", "key"),
    [
        (FixedSize(0), "cohort.size=0"),
        (FixedSize(7), "cohort.size=7"),
        (Poisson(0.0), "cohort.rate=0.0"),
        (Poisson(1.1), "cohort.rate=1.1"),
    ],
    ids=str,
)
def test_a_cohort_that_can_not_be_drawn_is_refused_by_name(sampler: FixedSize | Poisson, key: str) -> None:
    with pytest.raises(InputError, match=f"^{key}: allowed is "):
        sampler.check(6)
    FixedSize(6).check(6)
    Poisson(1.0).check(6)


def test_no_layers_pairs_are_shuffled_by_the_generator_that_draws_the_cohort() -> None:
    """The cohort's stream is (seed, round, 1): layer 1 must not be shuffled by the same numbers."""
    view = view_of(rounds=3, seed=5)
    drawn = [view.generator(layer).random() for layer in range(8)]
    assert np.random.default_rng([5, 3, 1]).random() not in drawn
    assert len(set(drawn)) == 8
