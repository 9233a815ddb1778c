"""What changes no bit of any method: the order of clients and of arrival, the global generators, a new process."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from methods import METHODS, clients_of, run
from slowly import mostly_slowly
from toys import toy_federator
from whole_runs import everything, mixed

QUICK = ["fedavg", "scaffold", "flora", "hafl freeze", "haflq channel", "sa_fedlora", "fl_tac, unlocked", "everything"]
methods = pytest.mark.parametrize("name", mostly_slowly(METHODS, QUICK))


@functools.cache
def of_mixed(name: str) -> list[bytes]:
    return everything(run(name, **mixed()))


@methods
def test_neither_an_order_nor_the_global_generators_change_a_bit(name: str) -> None:
    """The order in which clients are listed, that of the cohort, and that of arrival."""
    expected, given, (recipe, settings) = of_mixed(name), mixed(), METHODS[name]
    given["clients"] = dict(reversed(given["clients"].items()))
    federator = toy_federator(recipe, **{**settings, **given})
    sampler, arriving = federator.sampler, federator.engine.run
    federator.sampler = lambda *of: sampler(*of)[::-1]
    federator.engine.run = lambda tasks: rotated(arriving(tasks))  # type: ignore[method-assign]
    torch.manual_seed(123)
    np.random.seed(123)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    federator.fit()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert [job.client for job in federator.cohort] == sorted((job.client for job in federator.cohort), reverse=True)
    assert everything(federator) == expected


def rotated(arriving: Iterable[Any]) -> Iterator[Any]:
    first, *rest = arriving
    return iter([*rest, first])


@methods
def test_another_seed_gives_another_model(name: str) -> None:
    assert everything(run(name, **mixed(seed=1))) != of_mixed(name)


@methods
@pytest.mark.parametrize("rank", [4, 1])
@pytest.mark.slow
def test_going_on_from_a_state_in_a_new_federation_changes_no_bit(name: str, rank: int) -> None:
    """At rank 1, changes of the base are kept as factors, and a client is sent only those that it lacks."""
    given = mixed(rounds=4, rank=rank, clients=clients_of(2, ranks=[1, rank]), cohort=1)
    whole, half = run(name, **given), run(name, **{**given, "rounds": 2})
    recipe, settings = METHODS[name]
    rest = toy_federator(recipe, **{**settings, **given})
    rest.state, rest.client_states = half.state, half.client_states
    rest.fit()
    assert everything(rest) == everything(whole)
