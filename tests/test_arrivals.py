"""A round's updates: added to the sums as they come where the recipe streams, and kept where it doesn't."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import pytest
from test_trivial_cases import METHODS, clients_of
from toys import Sent, toy_clients, toy_federator

from flt.arrivals import Arrivals
from flt.callbacks.base import FedCallback
from flt.errors import InputError
from flt.federator import Federator
from flt.messages import Update, encode
from flt.recipe import Recipe
from flt.rules.mean import Mean
from flt.rules.scaffold import Scaffold
from flt.rules.svd import Svd
from flt.server_optimizer import Adam


class Living(FedCallback):
    """How many tensors of updates are alive when the next one is sent."""

    def __init__(self) -> None:
        self.tensors: list[weakref.ref[Any]] = []
        self.most = 0

    def on_update(self, federator: Federator, update: Update) -> None:
        gc.collect()
        self.most = max(self.most, sum(tensor() is not None for tensor in self.tensors))
        self.tensors += [weakref.ref(tensor) for tensor in update.tensors.values()]


def most_alive(recipe: Recipe, clients: int) -> int:
    living = Living()
    federator = toy_federator(recipe, toy_clients(clients), steps=1, optimizer="sgd")
    federator.callbacks = [living]
    federator.fit()
    return living.most


@pytest.mark.parametrize(
    "recipe",
    [Recipe(Mean()), Recipe(Scaffold()), Recipe(Mean(), server_optimizer=Adam())],
    ids=["mean", "scaffold", "adam"],
)
def test_a_larger_cohort_keeps_no_more_tensors(recipe: Recipe) -> None:
    assert recipe.streams
    assert most_alive(recipe, 2) == most_alive(recipe, 5)


def test_a_rule_on_lists_keeps_them_all() -> None:
    recipe = Recipe(Svd())
    assert not recipe.streams
    assert most_alive(recipe, 5) >= 4 * 6


@pytest.mark.parametrize("name", METHODS)
def test_streaming_has_the_bits_of_aggregating_the_list(name: str) -> None:
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    federator.fit()
    before = toy_federator(recipe, **{**settings, "clients": clients_of(3), "rounds": 1})
    sent = next(callback for callback in federator.callbacks if isinstance(callback, Sent)).updates
    screened = before.server.screen(before.state, before._draw(), sent)
    assert encode(before.server.aggregate(before.state, screened)) == encode(federator.state)


def taken(*changes: Any) -> Arrivals:
    """A round of two clients, of whose first update there are several changed copies."""
    federator = toy_federator(Recipe(Mean()), toy_clients(2))
    federator.fit()
    sent = next(callback for callback in federator.callbacks if isinstance(callback, Sent)).updates
    fresh = toy_federator(Recipe(Mean()), toy_clients(2))
    arrivals = Arrivals(fresh.server, fresh.state, fresh._draw())
    for change in changes:
        arrivals.take(dataclasses.replace(sent[0], **change))
    return arrivals


def test_an_update_is_taken_once() -> None:
    with pytest.raises(InputError, match=r"^update of client 0, job 0=twice"):
        taken({}, {})


def test_an_update_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"^update of client 7, job 0=\?: allowed is a job of the round's cohort"):
        taken({"job": (7, 0)})


def test_what_another_process_sends_of_a_streamed_update_has_its_shapes() -> None:
    arrivals = taken({})
    expected = {name: tensor.shape for name, tensor in arrivals.updates[0, 0].tensors.items()}
    (sendable,) = arrivals.sendable()
    assert not sendable.tensors
    arrivals.receive([sendable])
    assert {name: tensor.shape for name, tensor in arrivals.updates[0, 0].tensors.items()} == expected
