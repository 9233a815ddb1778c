"""The versions of the base: folding and sending the missing ones change no bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import view_of
from torch import Tensor

from flt.protocol.state import BaseState, apply_change, zero_scores

INITIAL = {
    "V": torch.randn(4, 3, generator=torch.Generator().manual_seed(1)),
    "W": torch.randn(6, 8, generator=torch.Generator().manual_seed(2)),
}
Change = dict[str, tuple[Tensor, ...]]


def change_of(ranks: dict[str, int], seed: int) -> Change:
    """A random change of each named weight: factors of a rank, or its value where the rank is 0."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, rank in ranks.items():
        out, inner = INITIAL[name].shape
        shapes = [(out, rank), (rank, inner)] if rank else [(out, inner)]
        made[name] = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return made


def history_of(versions: list[dict[str, int]]) -> tuple[list[BaseState], list[dict[str, Tensor]]]:
    """Every version's state, and its weights as one operation after the other leads to them."""
    states, weights = [BaseState()], [dict(INITIAL)]
    for number, ranks in enumerate(versions):
        change = change_of(ranks, number)
        states.append(states[-1].advance(change, INITIAL))
        weights.append({**weights[-1], **{name: applied(weights[-1][name], parts) for name, parts in change.items()}})
    return states, weights


def applied(weight: Tensor, change: tuple[Tensor, ...]) -> Tensor:
    return change[0] if len(change) == 1 else weight + change[0] @ change[1]


histories = st.lists(
    st.dictionaries(st.sampled_from(sorted(INITIAL)), st.integers(0, 4), min_size=1), min_size=1, max_size=8
)


@given(histories)
def test_value_is_bit_for_bit_what_the_changes_lead_to_in_their_order(versions: list[dict[str, int]]) -> None:
    for state, expected in zip(*history_of(versions), strict=True):
        for name in INITIAL:
            assert torch.equal(state.value(name, INITIAL), expected[name])


@given(histories)
def test_value_equals_dense_numpy(versions: list[dict[str, int]]) -> None:
    dense = {name: value.double().numpy() for name, value in INITIAL.items()}
    for number, ranks in enumerate(versions):
        for name, parts in change_of(ranks, number).items():
            arrays = [part.double().numpy() for part in parts]
            dense[name] = arrays[0] if len(arrays) == 1 else dense[name] + np.matmul(*arrays)
    last = history_of(versions)[0][-1]
    for name, expected in dense.items():
        np.testing.assert_allclose(last.value(name, INITIAL).numpy(), expected, rtol=1e-5, atol=1e-5)


@given(histories)
def test_never_more_numbers_are_kept_than_the_weights_have(versions: list[dict[str, int]]) -> None:
    for state in history_of(versions)[0]:
        for name, initial in INITIAL.items():
            kept = sum(part.numel() for delta in state.recent for part in delta.tensors.get(name, ()))
            assert kept <= initial.numel()
        assert all(delta.tensors for delta in state.recent)
        assert [delta.version for delta in state.recent] == sorted({delta.version for delta in state.recent})


@given(histories)
def test_what_is_missing_since_any_version_leads_to_the_same_bits(versions: list[dict[str, int]]) -> None:
    states, weights = history_of(versions)
    for seen, before in enumerate(weights):
        found = dict(before)
        for delta in states[-1].since(seen, INITIAL):
            assert seen < delta.version <= states[-1].version
            found |= {name: apply_change(found[name], parts) for name, parts in delta.tensors.items()}
        assert all(torch.equal(found[name], weights[-1][name]) for name in INITIAL)


@given(histories)
def test_an_absent_client_is_sent_the_factors_or_the_value_whichever_is_smaller(versions: list[dict[str, int]]) -> None:
    states, _ = history_of(versions)
    for seen in range(len(states)):
        sent = states[-1].since(seen, INITIAL)
        for name, initial in INITIAL.items():
            changes = [change_of(ranks, n)[name] for n, ranks in enumerate(versions) if n >= seen and name in ranks]
            missed = sum(part.numel() for change in changes for part in change)
            numbers = sum(part.numel() for delta in sent for part in delta.tensors.get(name, ()))
            assert numbers == min(missed, initial.numel())


def test_who_has_the_newest_version_is_sent_nothing() -> None:
    states, _ = history_of([{"W": 1}, {"V": 1, "W": 2}])
    assert states[2].since(2, INITIAL) == ()
    assert [delta.version for delta in states[2].since(1, INITIAL)] == [2]
    assert BaseState().since(0, INITIAL) == ()


def test_a_round_without_a_change_is_no_version() -> None:
    state = history_of([{"W": 1}])[0][-1]
    assert state.advance({}, INITIAL) is state


def test_versions_before_a_change_stay_as_they_were() -> None:
    first = BaseState(seen={3: 0})
    second = first.advance(change_of({"W": 4}, 0), INITIAL)
    assert (first.version, first.recent, first.folded) == (0, (), {})
    assert (second.version, second.seen) == (1, {3: 0})


def test_folding_one_weight_leaves_the_factors_of_the_other() -> None:
    """W (6, 8) holds 48 numbers: rank 3 makes 42, so the second version folds the first of W, and V's 7 stay."""
    states, _ = history_of([{"W": 3, "V": 1}, {"W": 3}])
    folded = states[2].folded
    assert {name: version for name, (version, _) in folded.items()} == {"W": 1}
    assert [(delta.version, sorted(delta.tensors)) for delta in states[2].recent] == [(1, ["V"]), (2, ["W"])]


def test_factors_as_large_as_the_weight_are_sent_as_factors_and_larger_ones_as_its_value() -> None:
    """Of a (4, 4) weight, rank 2 is 16 numbers of 16."""
    initial, part = {"S": torch.eye(4)}, torch.ones(4, 2)
    first = BaseState().advance({"S": (part, part.T)}, initial)
    assert [len(delta.tensors["S"]) for delta in first.since(0, initial)] == [2]
    second = first.advance({"S": (part[:, :1], part.T[:1])}, initial)
    assert [len(delta.tensors["S"]) for delta in second.since(0, initial)] == [1]
    assert [len(delta.tensors["S"]) for delta in second.since(1, initial)] == [2]


def test_applying_a_change_leaves_its_arguments_alone() -> None:
    weight, parts = INITIAL["W"].clone(), change_of({"W": 2}, 0)["W"]
    apply_change(weight, parts)
    assert torch.equal(weight, INITIAL["W"])
    replaced = apply_change(weight, (INITIAL["W"],))
    replaced.zero_()
    assert INITIAL["W"].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_weight_keeps_its_dtype(dtype: torch.dtype) -> None:
    parts = change_of({"W": 2}, 0)["W"]
    assert apply_change(INITIAL["W"].to(dtype), parts).dtype == dtype


def test_jobs_that_no_grouping_has_met_are_at_home() -> None:
    state = view_of(groups=(0, 5, 7), assignment={(1, 0): 5}).state
    assert [state.group_of(job) for job in ((1, 0), (1, 1), (2, 0))] == [5, 0, 0]


def test_all_pairs_tie_before_anything_was_measured() -> None:
    scores = zero_scores([("x", 2), ("y", 3)])
    assert {name: found.tolist() for name, found in scores.items()} == {"x": [0.0, 0.0], "y": [0.0, 0.0, 0.0]}
