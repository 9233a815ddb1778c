"""A round's updates: added to the sums as they come where the recipe streams, and kept where it doesn't."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from failing import tolerant
from methods import METHODS, clients_of
from toys import Sent, assert_same, toy_clients, toy_federator, weights_of

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.robust import Krum, Median, MultiKrum
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.svd import Svd
from flt.algorithm.server_optimizer import Adam
from flt.core.errors import InputError
from flt.protocol.messages import Update, encode
from flt.server.accumulator import UpdateAccumulator
from flt.server.callback import FedCallback
from flt.server.federator import Federator


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
@pytest.mark.slow
def test_a_larger_cohort_keeps_no_more_tensors(recipe: Recipe) -> None:
    assert recipe.streams
    assert most_alive(recipe, 2) == most_alive(recipe, 5)


@pytest.mark.slow
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
    jobs = {job.id: job for job in before.draw_cohort()}
    valid = [before.server.validated(before.state, jobs[update.job], update) for update in sent]
    assert encode(before.server.aggregate(before.state, valid)) == encode(federator.state)


def taken(*changes: Any) -> UpdateAccumulator:
    """A round of two clients, of whose first update there are several changed copies."""
    federator = toy_federator(Recipe(Mean()), toy_clients(2))
    federator.fit()
    sent = next(callback for callback in federator.callbacks if isinstance(callback, Sent)).updates
    fresh = toy_federator(Recipe(Mean()), toy_clients(2))
    accumulator = fresh.server.accumulator(fresh.state, fresh.draw_cohort())
    for change in changes:
        accumulator.add(dataclasses.replace(sent[0], **change))
    return accumulator


def test_an_update_is_taken_once() -> None:
    with pytest.raises(InputError, match=r"^update of client 0, job 0=twice"):
        taken({}, {})


def test_an_update_that_was_not_asked_for_is_refused() -> None:
    with pytest.raises(InputError, match=r"^update of client 7, job 0=\?: allowed is a job of the round's cohort"):
        taken({"job": (7, 0)})


def test_what_another_process_sends_of_a_streamed_update_has_its_shapes() -> None:
    accumulator = taken({})
    expected = {name: tensor.shape for name, tensor in accumulator.updates[0, 0].tensors.items()}
    (sendable,) = accumulator.sendable()
    assert not sendable.tensors
    accumulator.merge([sendable])
    assert {name: tensor.shape for name, tensor in accumulator.updates[0, 0].tensors.items()} == expected


# ---------------------------------------------------------------------------------------------- finite, and too large


def vast_tensor(update: Update) -> Update:
    last = max(update.tensors)
    return dataclasses.replace(update, tensors={**update.tensors, last: torch.full_like(update.tensors[last], 1e30)})


def vast_scores(update: Update) -> Update:
    scores = {layer: (ids, torch.full_like(values, 1e30)) for layer, (ids, values) in update.scores.items()}
    return dataclasses.replace(update, scores=scores)


def vast_examples(update: Update) -> Update:
    return dataclasses.replace(update, examples=2**70)


class Vast(FedCallback):
    """A transform that makes what client 2 sends too large."""

    def __init__(self, spoil: Callable[[Update], Update]) -> None:
        self.spoil = spoil

    def __call__(self, updates: list[Update]) -> list[Update]:
        return [self.spoil(update) if update.job[0] == 2 else update for update in updates]


def of_five(recipe: Recipe, spoil: Callable[[Update], Update] | None = None, without: int | None = None) -> Federator:
    """A federation of five clients, one of which sends something else, or isn't there."""
    clients = {number: client for number, client in clients_of(5).items() if number != without}
    federator = toy_federator(recipe, clients)
    federator.server.jobs = 5
    federator.transforms = [Vast(spoil)] if spoil else []
    return federator


@functools.cache
def of_the_others(name: str) -> Federator:
    federator = of_five(RECIPES[name], without=2)
    federator.fit()
    return federator


LISTED = ["fl_tac", "fl_tac, unlocked", "flora", "flexlora", "fedex_lora"]
RECIPES = {
    **{name: METHODS[name][0] for name in (*LISTED, "fedit", "hafl freeze", "hafl own scores")},
    "krum": Recipe(Krum()),
    "multi-Krum": Recipe(MultiKrum()),
    "scores in groups": dataclasses.replace(METHODS["fl_tac"][0], importance=METHODS["hafl freeze"][0].importance),
}
SCORED = ["hafl freeze", "hafl own scores", "scores in groups"]
CASES = [
    *((name, vast_tensor) for name in RECIPES),
    *((name, vast_scores) for name in SCORED),
    *((name, vast_examples) for name in (*SCORED, "fedit", "flora", "flexlora", "fedex_lora")),
]


@pytest.mark.parametrize(("name", "spoil"), CASES, ids=[f"{name}, {spoil.__name__}" for name, spoil in CASES])
def test_an_update_that_is_too_large_is_a_failure_of_its_job_in_every_recipe(
    name: str, spoil: Callable[[Update], Update]
) -> None:
    federator, expected = of_five(RECIPES[name], spoil), of_the_others(name)
    tolerant(federator, min_updates=4).fit()
    assert [update.job[0] for update in federator.updates] == [0, 1, 3, 4]
    assert federator.state.clusters == expected.state.clusters
    for gid, group in expected.state.groups.items():
        assert_same(weights_of(federator, gid), group.weights)
        assert_same(federator.state.groups[gid].scores, group.scores)


def fits_alone(update: Update) -> Update:
    """Its term in the weighted sum is half of what a sum holds; five of them would be too much."""
    last, value = max(update.tensors), 2.0**37 / update.examples
    return dataclasses.replace(update, tensors={**update.tensors, last: torch.full_like(update.tensors[last], value)})


@pytest.mark.parametrize("name", ["fedit", "hafl freeze", "hafl own scores"])
def test_an_update_that_is_too_large_only_if_all_were_like_it_is_a_failure_too(name: str) -> None:
    federator = of_five(RECIPES[name], fits_alone)
    tolerant(federator, min_updates=4).fit()
    assert [update.job[0] for update in federator.updates] == [0, 1, 3, 4]


@pytest.mark.parametrize("name", SCORED)
@pytest.mark.parametrize("spoil", [vast_scores, vast_examples])
def test_scores_that_are_too_large_end_a_strict_run_in_a_line(name: str, spoil: Callable[[Update], Update]) -> None:
    with pytest.raises(InputError, match=r"^update of client 2, job 0.*; lower local.lr$"):
        of_five(RECIPES[name], spoil).fit()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:Number of distinct clusters")
@pytest.mark.parametrize("name", LISTED)
def test_numbers_that_are_too_large_end_a_strict_run_in_a_line(name: str) -> None:
    with pytest.raises(InputError, match=r"^update of client 2, job 0=.*; lower local.lr$"):
        of_five(RECIPES[name], vast_tensor).fit()


def test_a_rule_that_sorts_values_takes_one_of_any_size() -> None:
    federator = of_five(Recipe(Median()), vast_tensor)
    tolerant(federator, min_updates=4).fit()
    assert len(federator.updates) == 5
    assert all(float(tensor.abs().max()) < 100 for tensor in weights_of(federator).values())
