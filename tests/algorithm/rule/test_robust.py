"""Rules against hostile clients: against NumPy, SciPy and Krum by hand, and under attack."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from made import update_of, view_of
from rule_inputs import full_of, view_and_updates
from scipy.stats import trim_mean

from flt.algorithm.rule.base import Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.robust import Krum, Median, MultiKrum, NormBound, TrimmedMean, change
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.messages import Update

NAMES = ["head", "x.A", "x.B", "y.A", "y.B"]
RULES = [Median(), TrimmedMean(trim=0.3), Krum(), MultiKrum(hostile=0.3), NormBound(bound=2.0)]


def members(count: int = 7) -> tuple[View, list[Update]]:
    view = view_of()
    return view, [update_of(view, (i, 0), view.state.alive, 10 + i) for i in range(count)]


def vectors(view: View, updates: list[Update]) -> np.ndarray:
    """What each update changes, (clients, entries), by NumPy alone."""
    sent = view.state.groups[0].weights
    return np.stack([
        np.concatenate([(np.where(np.isnan(full := full_of(u, name, sent[name].shape)), sent[name], full)
                         - sent[name].double().numpy()).ravel() for name in NAMES])
        for u in updates
    ])  # fmt: skip


# ------------------------------------------------------------------------------------------ entry by entry


def test_the_median_is_numpys_over_those_who_sent_an_entry() -> None:
    view, updates = view_and_updates()
    found = Median().combine(view, 1, updates).new
    for name in NAMES:
        start = view.with_group_starts({1: updates}, lambda update: 1).group(1).weights[name].numpy()
        sent = np.stack([full_of(update, name, start.shape) for update in updates])
        known = ~np.isnan(sent).all(axis=0)
        np.testing.assert_allclose(found[name].numpy()[known], np.nanmedian(sent[:, known], axis=0), rtol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 5, 8])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.49])
def test_the_trimmed_mean_is_scipys(trim: float, clients: int) -> None:
    view, updates = members(clients)
    found = TrimmedMean(trim=trim).combine(view, 0, updates).new
    for name in NAMES:
        expected = trim_mean(np.stack([update.tensors[name].double() for update in updates]), trim, axis=0)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean()])
def test_entries_that_nobody_sent_keep_their_bits(rule: Rule) -> None:
    view, updates = view_and_updates()
    before = view.state.groups[1].weights
    new = rule.combine(view, 1, updates).new
    assert torch.equal(new["x.A"][3], before["x.A"][3])
    assert torch.equal(new["y.B"][:, 2:], before["y.B"][:, 2:])


def test_an_entry_of_two_clients_is_their_mean_in_either_rule() -> None:
    view, updates = members(2)
    expected = Mean("uniform").combine(view, 0, updates).new
    for rule in (Median(), TrimmedMean(trim=0.4)):
        for name, tensor in rule.combine(view, 0, updates).new.items():
            torch.testing.assert_close(tensor, expected[name])


# ----------------------------------------------------------------------------------------------- whole updates


def krum_by_hand(changes: np.ndarray, f: int) -> list[int]:
    n = len(changes)
    scores = []
    for i in range(n):
        apart = sorted(float(((changes[i] - changes[j]) ** 2).sum()) for j in range(n) if j != i)
        scores.append(sum(apart[: n - f - 2]))
    return sorted(range(n), key=lambda i: (scores[i], i))


@pytest.mark.parametrize(("clients", "hostile", "f"), [(3, 0.3, 0), (7, 0.2, 1), (10, 0.35, 3)])
def test_krum_takes_the_update_and_multi_krum_the_updates_that_are_nearest_to_their_neighbours(
    clients: int, hostile: float, f: int
) -> None:
    view, updates = members(clients)
    order = krum_by_hand(vectors(view, updates), f)
    assert Krum(hostile=hostile).trusted(view, updates) == order[:1]
    assert sorted(MultiKrum(hostile=hostile).trusted(view, updates)) == sorted(order[: clients - f])
    chosen = updates[order[0]].tensors
    for name, tensor in Krum(hostile=hostile).combine(view, 0, updates).new.items():
        torch.testing.assert_close(tensor, chosen[name])


@pytest.mark.parametrize(("clients", "hostile"), [(2, 0.0), (6, 0.4), (4, 0.25)])
def test_too_few_updates_for_krum_are_refused_in_a_line(clients: int, hostile: float) -> None:
    view, updates = members(clients)
    with pytest.raises(InputError, match=rf"rule.hostile={hostile}: a round may have {clients} updates, .* at least"):
        Krum(hostile=hostile).combine(view, 0, updates)


# ---------------------------------------------------------------------------------------------------- the bound


def test_no_change_that_counts_is_longer_than_the_bound() -> None:
    view, updates = members(4)
    lengths = np.linalg.norm(vectors(view, updates), axis=1)
    bound = float(np.median(lengths))
    factors = np.minimum(1, bound / lengths)[:, None]
    weights = np.array([update.examples for update in updates])[:, None]
    expected = (weights * factors * vectors(view, updates)).sum(0) / weights.sum()
    new = NormBound(bound=bound).combine(view, 0, updates).new
    sent = view.state.groups[0].weights
    found = np.concatenate([(new[name] - sent[name]).double().numpy().ravel() for name in NAMES])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_bound_that_nothing_reaches_is_the_mean_to_the_bit() -> None:
    view, updates = members(4)
    expected = Mean().combine(view, 0, updates).new
    assert all(
        torch.equal(its, expected[name]) for name, its in NormBound(bound=1e9).combine(view, 0, updates).new.items()
    )


# ------------------------------------------------------------------------------------------------------- attacks


def attacked(
    view: View, updates: list[Update], by: int, attack: Callable[[torch.Tensor], torch.Tensor]
) -> list[Update]:
    """The last few updates with another change."""
    sent = view.state.groups[0].weights

    def hostile(update: Update) -> Update:
        return dataclasses.replace(
            update, tensors={name: sent[name] + attack(its - sent[name]) for name, its in update.tensors.items()}
        )

    return [*updates[:-by], *map(hostile, updates[-by:])]


def alike(clients: int) -> tuple[View, list[Update]]:
    """Clients that have learnt much the same."""
    view, (one, *_) = members(1)
    generator = torch.Generator().manual_seed(0)
    noisy = [
        dataclasses.replace(
            one,
            job=(i, 0),
            tensors={n: t + 0.05 * torch.randn(t.shape, generator=generator) for n, t in one.tensors.items()},
        )
        for i in range(clients)
    ]
    return view, noisy


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(trim=0.3), Krum(hostile=0.3), MultiKrum(hostile=0.3)])
@pytest.mark.parametrize("factor", [-1.0, -100.0, 1e6])
def test_three_hostile_of_ten_move_the_answer_less_than_honest_clients_differ(rule: Rule, factor: float) -> None:
    view, updates = alike(10)
    honest = Mean("uniform").combine(view, 0, updates[:-3]).new
    hostile = attacked(view, updates, 3, lambda change: factor * change)
    found = rule.combine(view, 0, hostile).new
    assert max(float((found[name] - honest[name]).abs().max()) for name in found) < 0.25  # five deviations
    moved = Mean("uniform").combine(view, 0, hostile).new
    assert max(float((moved[name] - honest[name]).abs().max()) for name in found) > 0.25


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_order_of_the_updates_changes_no_bit(rule: Rule) -> None:
    view, updates = members(5)
    expected = rule.combine(view, 0, updates).new
    for order in itertools.islice(itertools.permutations(updates), 1, 120, 23):
        found = rule.combine(view, 0, list(order)).new
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_change_is_counted_from_what_the_job_was_sent_and_over_all_pairs() -> None:
    view, updates = view_and_updates()
    for update in updates:
        sent = view.sent_to(update.job)
        by_hand = [
            np.nan_to_num(full_of(update, name, sent[name].shape) - sent[name].double().numpy()) for name in NAMES
        ]
        found = change(view, update, NAMES).numpy()
        np.testing.assert_allclose(found, np.concatenate([its.ravel() for its in by_hand]), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: TrimmedMean(trim=0.5), "rule.trim=0.5"),
        (lambda: TrimmedMean(trim=math.nan), "rule.trim=nan"),
        (lambda: Krum(hostile=0.5), "rule.hostile=0.5"),
        (lambda: NormBound(bound=0.0), "rule.bound=0.0"),
        (lambda: NormBound(bound=math.inf), "rule.bound=inf"),
        (lambda: Median(weights="examples"), "rule.weights=examples"),
    ],
)
def test_settings_out_of_range_are_refused_in_a_line(make: Callable[[], Rule], line: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert str(raised.value).startswith(line)
