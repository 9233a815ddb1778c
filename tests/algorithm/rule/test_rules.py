"""Aggregation rules against NumPy: the mean and its paddings, stacking, SCAFFOLD."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import SIZES, layout_of, update_of, view_of
from rule_inputs import KEPT, full_of, view_and_updates
from toys import toy_clients, toy_data, toy_federator, toy_module

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Rule, Totals
from flt.algorithm.rule.mean import PADS, Mean
from flt.algorithm.rule.residual import Residual
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.entries import Entry
from flt.protocol.messages import Update, encode
from flt.protocol.state import apply_change


def mean_by_hand(view: View, updates: list[Update], name: str, pad: str, weights: str) -> np.ndarray:
    state = view.state
    start = state.groups[1].weights[name].numpy()
    sent = np.stack([full_of(update, name, start.shape) for update in updates])  # (clients, *shape)
    n = np.array([update.examples if weights == "examples" else 1 for update in updates])[:, None, None]
    if pad == "parameter":
        return (n * np.nan_to_num(sent)).sum(0) / n.sum()
    if pad == "update":
        before = np.stack([state.groups[state.assignment[update.job]].weights[name] for update in updates])
        return (n * np.where(np.isnan(sent), before, sent)).sum(0) / n.sum()
    weight = (n * ~np.isnan(sent)).sum(0)
    return np.where(weight > 0, (n * np.nan_to_num(sent)).sum(0) / np.maximum(weight, 1), start)


# ---------------------------------------------------------------------------------------------- the mean


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("pad", ["none", "parameter", "update"])
def test_mean_equals_numpy_entry_by_entry(pad: str, weights: str) -> None:
    view, updates = view_and_updates()
    found = Mean(weights, pad).combine(view, 1, updates).new
    assert set(found) == {"head", "x.A", "x.B", "y.A", "y.B"}
    for name, tensor in found.items():
        expected = mean_by_hand(view, updates, name, pad, weights)
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)


def test_pairs_that_nobody_sent_keep_their_bits_and_become_zero_by_zero_padding() -> None:
    view, updates = view_and_updates()
    start = view.state.groups[1].weights
    for pad, expected in (("none", start), ("parameter", {name: torch.zeros_like(t) for name, t in start.items()})):
        new = Mean(pad=pad).combine(view, 1, updates).new
        assert torch.equal(new["x.A"][3], expected["x.A"][3])
        assert torch.equal(new["y.B"][:, 2:], expected["y.B"][:, 2:])


@pytest.mark.parametrize("pad", PADS)
def test_pairs_that_do_not_live_keep_their_bits_under_any_padding(pad: str) -> None:
    alive = {"x": (0, 2), "y": (1,)}
    view = view_of(alive=alive)
    new = Mean(pad=pad).combine(view, 0, [update_of(view, (client, 0), alive) for client in range(3)]).new
    start = view.state.groups[0].weights
    assert torch.equal(new["x.A"][[1, 3]], start["x.A"][[1, 3]])
    assert torch.equal(new["y.B"][:, [0, 2, 3]], start["y.B"][:, [0, 2, 3]])


@settings(max_examples=25)
@given(data=st.data(), clients=st.integers(1, 7), rank=st.integers(1, 5), pad=st.sampled_from(PADS))
def test_over_any_clients_ranks_and_groups_the_mean_is_numpys(
    data: st.DataObject, clients: int, rank: int, pad: str
) -> None:
    """Members come from any group, send any pairs, and what nobody sends is the mean of what they were sent."""
    layout = layout_of(rank)
    jobs = {(client, 0): data.draw(st.integers(0, 2)) for client in range(clients)}
    view = view_of(layout, groups=(0, 1, 2), assignment=jobs)
    pairs = st.sets(st.integers(0, rank - 1)).map(lambda ids: tuple(sorted(ids)))
    updates = [
        update_of(view, job, {"x": data.draw(pairs), "y": data.draw(pairs)}, data.draw(st.integers(1, 99)))
        for job in jobs
    ]
    rule, gid = Mean(pad=pad), data.draw(st.integers(1, 3))
    found = rule.combine(view.with_group_starts({gid: updates}, rule.weight), gid, updates).new
    for name, tensor in found.items():
        sent = np.stack([full_of(update, name, tuple(tensor.shape)) for update in updates])
        before = np.stack([view.state.groups[jobs[u.job]].weights[name].numpy().astype(np.float64) for u in updates])
        n = np.array([update.examples for update in updates])[:, None, None]
        somebody = np.where(np.isnan(sent).all(0), np.nan, 0.0)
        fill = {"parameter": 0.0, "update": before, "none": np.nan, "sent": somebody}[pad]
        filled = np.where(np.isnan(sent), fill, sent)
        counts = n * ~np.isnan(filled)
        mean = (n * np.nan_to_num(filled)).sum(0) / np.maximum(counts.sum(0), 1)
        expected = np.where(counts.sum(0) > 0, mean, (n * before).sum(0) / n.sum())
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_head_that_no_member_has_stays_the_groups_own() -> None:
    """Job (0, 0) comes from group 1 into group 2, whose head of the other task has been trained by absent jobs."""
    layout = layout_of()
    entries = {**layout.entries, "head#b": Entry("head", (2,), variant="b")}
    made = view_of(dataclasses.replace(layout, entries=entries), groups=(0, 1, 2), assignment={(0, 0): 1, (1, 0): 2})
    assert not torch.equal(made.state.groups[1].weights["head#b"], made.state.groups[2].weights["head#b"])
    update = update_of(made, (0, 0))
    update = dataclasses.replace(update, tensors={n: t for n, t in update.tensors.items() if n != "head#b"})
    begun = made.with_group_starts({2: [update]}, lambda _: 1).group(2).weights
    assert torch.equal(begun["head#b"], made.state.groups[2].weights["head#b"])
    assert torch.equal(begun["head"], made.state.groups[1].weights["head"])


def test_a_group_whose_members_come_from_one_group_begins_with_its_bits() -> None:
    view = view_of(groups=(0, 1, 2), assignment={(client, 0): 2 for client in range(3)})
    updates = [update_of(view, (client, 0), examples=7 + client) for client in range(3)]
    for gid in (1, 2, 3):
        begun = view.with_group_starts({gid: updates}, lambda update: update.examples).group(gid)
        assert all(begun.weights[name] is tensor for name, tensor in view.state.groups[2].weights.items())


def test_a_new_groups_scores_and_slots_begin_with_the_mean_of_its_members_groups() -> None:
    view = view_of(groups=(0, 1, 2), assignment={(0, 0): 1, (1, 0): 2})
    for gid, value in ((1, 1.0), (2, 5.0)):
        slots = {"c": {"x.A": torch.full((4, 4), value)}} if gid == 2 else {}
        scores = {"x": torch.full((4,), value, dtype=torch.float64)}
        view.state.groups[gid] = dataclasses.replace(view.state.groups[gid], scores=scores, slots=slots)
    updates = [update_of(view, (client, 0), examples=examples) for client, examples in ((0, 30), (1, 10))]
    begun = view.with_group_starts({3: updates, 1: updates}, lambda update: update.examples)
    assert begun.group(3).scores["x"].tolist() == [2.0] * 4
    assert begun.group(3).slots["c"]["x.A"].flatten().tolist() == [1.25] * 16
    assert begun.group(1).scores["x"].tolist() == [1.0] * 4
    assert torch.equal(begun.group(1).weights["head"], begun.group(3).weights["head"])


@pytest.mark.parametrize("rule", [Mean(), Mean("uniform"), *map(Mean, ["examples"] * 2, PADS[1:]), Scaffold()], ids=str)
def test_order_of_arrival_changes_no_bit(rule: Rule) -> None:
    view, updates = view_and_updates()
    first = rule.combine(view, 1, updates)
    for order in itertools.permutations(updates):
        assert encode(_as_tuple(rule.combine(view, 1, order))) == encode(_as_tuple(first))


def _as_tuple(combined: object) -> tuple[object, ...]:
    return tuple(getattr(combined, field.name) for field in dataclasses.fields(combined))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [Mean(), Mean(pad="update"), Scaffold()], ids=str)
def test_totals_gathered_on_two_processes_merge_to_the_same_bits(rule: Mean | Scaffold) -> None:
    view, updates = view_and_updates([KEPT[0]] * 3)
    parts: list[Totals] = [{}, {}]
    for update, part in zip(updates, (1, 0, 1), strict=True):
        rule.summand(view, update, parts[part])
    for key, total in parts[0].items():
        parts[0][key] = total.plus(parts[1][key])
    assert encode(_as_tuple(rule.finish(view, 1, parts[0]))) == encode(_as_tuple(rule.combine(view, 1, updates)))


@pytest.mark.parametrize("rule", [Mean(), Mean("uniform"), Mean(pad="update")], ids=str)
def test_mean_over_one_client_is_that_client_bit_for_bit(rule: Mean) -> None:
    view = view_of()
    for examples in (1, 3, 120, 2**24 + 1):
        update = update_of(view, (0, 0), examples=examples)
        new = rule.combine(view, 0, [update]).new
        assert all(torch.equal(new[name], tensor) for name, tensor in update.tensors.items())


def test_mean_leaves_the_state_and_the_updates_alone() -> None:
    view, updates = view_and_updates()
    before = encode(view.state), [encode(update) for update in updates]
    for pad in ("none", "parameter", "update"):
        new = Mean(pad=pad).combine(view, 1, updates).new
        for tensor in new.values():
            tensor.zero_()
    assert (encode(view.state), [encode(update) for update in updates]) == before


def test_tensors_that_nobody_was_asked_for_keep_their_values() -> None:
    view, updates = view_and_updates()
    fewer = [dataclasses.replace(update, tensors={"x.A": update.tensors["x.A"]}) for update in updates]
    new = Mean().combine(view, 1, fewer).new
    assert torch.equal(new["head"], view.state.groups[1].weights["head"])
    assert not torch.equal(new["x.A"], view.state.groups[1].weights["x.A"])


def test_weights_keep_their_dtype() -> None:
    view = view_of()
    weights = view.state.groups[0].weights
    weights |= {name: tensor.bfloat16() for name, tensor in weights.items()}
    update = update_of(view, (0, 0))
    half = dataclasses.replace(update, tensors={name: tensor.bfloat16() for name, tensor in update.tensors.items()})
    new = Mean().combine(view, 0, [half]).new
    assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, half.tensors[n]) for n, tensor in new.items())


def test_numbers_too_large_to_be_summed_are_refused_naming_the_client() -> None:
    view = view_of()
    updates = [update_of(view, (client, 0)) for client in (3, 8)]
    updates[1].tensors["x.A"][0, 0] = 1e30
    with pytest.raises(InputError, match="^update of client 8, job 0=.*lower local.lr$"):
        Mean().combine(view, 0, updates)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: Mean(weights="size"), "rule.weights=size: allowed is examples, uniform, norm"),
        (lambda: Mean(pad="zero"), "rule.pad=zero: allowed is none, parameter, update, sent"),
        (lambda: Stacking(weights="norm"), "rule.weights=norm: allowed is examples, uniform"),
    ],
    ids=["weights", "pad", "weights of another rule"],
)
def test_unknown_settings_are_refused_with_the_choices(make: object, line: str) -> None:
    with pytest.raises(InputError) as error:
        make()  # type: ignore[operator]
    assert str(error.value) == line


# ---------------------------------------------------------------------------------------------- stacking


def dense_mean(updates: Sequence[Update], shares: np.ndarray, layer: str) -> np.ndarray:
    """The weighted mean of the products B A (out, in), float64, without the scale."""
    factors = [[update.tensors[f"{layer}.{part}"].double().numpy() for part in "BA"] for update in updates]
    return sum(share * b @ a for share, (b, a) in zip(shares, factors, strict=True))


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_stacked_product_is_the_dense_weighted_mean_of_products(transposed: bool, weights: str) -> None:
    """Of ranks 3, 1 and 2 (x) or 1, 2 and 0 (y); the scale is that of the initial rank for all of them."""
    view = view_of(layout_of(scale=3.0, transposed=transposed))
    updates = [update_of(view, (i, 0), kept, n) for i, (kept, n) in enumerate(zip(KEPT, (10, 30, 7), strict=True))]
    shares = np.array([10, 30, 7] if weights == "examples" else [1, 1, 1], dtype=np.float64)
    change = Stacking(weights).combine(view, 0, updates).base
    for layer, (out, inner) in SIZES.items():
        dense = 3.0 * dense_mean(updates, shares / shares.sum(), layer)
        start = torch.zeros((inner, out) if transposed else (out, inner), dtype=torch.float64)
        left, right = change[f"{layer}.W"]
        found = apply_change(start, (left.double(), right.double())).numpy()
        np.testing.assert_allclose(found.T if transposed else found, dense, rtol=1e-6, atol=1e-6)
        assert left.is_contiguous()
        assert right.is_contiguous()


@pytest.mark.parametrize("weights", ["examples", "uniform"])
@pytest.mark.parametrize("transposed", [False, True], ids=["linear", "conv1d"])
def test_residual_and_product_of_the_means_are_the_dense_mean_of_products(transposed: bool, weights: str) -> None:
    view = view_of(layout_of(scale=3.0, transposed=transposed))
    updates = [update_of(view, (i, 0), examples=n) for i, n in enumerate((10, 30, 7))]
    shares = np.array([10, 30, 7] if weights == "examples" else [1, 1, 1], dtype=np.float64)
    out = Residual(weights).combine(view, 0, updates)
    for layer, (height, width) in SIZES.items():
        dense = 3.0 * dense_mean(updates, shares / shares.sum(), layer)
        start = torch.zeros((width, height) if transposed else (height, width), dtype=torch.float64)
        left, right = out.base[f"{layer}.W"]
        residual = apply_change(start, (left.double(), right.double())).numpy()
        a, b = (out.new[f"{layer}.{part}"].double().numpy() for part in "AB")
        found = (residual.T if transposed else residual) + 3.0 * b @ a
        np.testing.assert_allclose(found, dense, rtol=1e-5, atol=1e-5)
        assert np.abs(residual).max() > 1e-3  # the product of the means alone is another


def test_head_is_averaged_beside_the_stack() -> None:
    view = view_of()
    updates = [update_of(view, (i, 0), examples=n) for i, n in enumerate((10, 30))]
    expected = (10 * updates[0].tensors["head"].double() + 30 * updates[1].tensors["head"].double()) / 40
    np.testing.assert_allclose(Stacking().combine(view, 0, updates).new["head"], expected, rtol=1e-6)


def test_the_next_adapter_is_fresh_in_each_round_layer_and_seed_and_its_b_is_zero() -> None:
    """Kaiming-uniform with a = sqrt(5) is uniform on +- 1 / sqrt(in)."""
    layout, drawn = layout_of(64), []
    for rounds, seed in itertools.product(range(3), range(2)):
        view = view_of(layout, rounds=rounds, seed=seed)
        new = Stacking().combine(view, 0, [update_of(view, (0, 0))]).new
        assert not new["x.B"].any()
        assert not new["y.B"].any()
        drawn += [new["x.A"].flatten()[:8], new["y.A"].flatten()[:8]]
        for layer, (_, inner) in SIZES.items():
            scaled = new[f"{layer}.A"] * inner**0.5
            assert 0.97 < float(scaled.abs().max()) <= 1
            assert abs(float(scaled.var()) - 1 / 3) < 0.07
    assert all(not torch.allclose(one * 2, other * 6**0.5) for one, other in itertools.combinations(drawn, 2))
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))


def test_the_global_generator_is_neither_read_nor_moved_by_a_fresh_adapter() -> None:
    view = view_of()
    torch.manual_seed(0)
    first, state = Stacking().combine(view, 0, [update_of(view, (0, 0))]).new, torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(Stacking().combine(view, 0, [update_of(view, (0, 0))]).new["x.A"], first["x.A"])
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_real_forward_pass_after_the_round_is_that_of_the_dense_mean() -> None:
    """W0 + sum_k p_k s B_k A_k with clients of ranks 1, 2 and 4, and the mean head."""
    recipe = Recipe(Stacking(), selection=Truncate("first"))
    federator = toy_federator(recipe, toy_clients(3, ranks=[1, 2, 4]), lr=0.1, steps=6)
    federator.fit()
    federator.engine.local_trainer.load(federator.state, 0)
    plain, updates = toy_module()[0], federator.updates
    named = dict(plain.named_parameters())
    shares = np.array([update.examples for update in updates]) / sum(update.examples for update in updates)
    with torch.no_grad():
        for name in ("head.weight", "head.bias"):
            named[name].copy_(sum(p * u.tensors[name].double() for p, u in zip(shares, updates, strict=True)))
        for layer in ("fc1", "fc2"):
            pairs = [[u.tensors[f"{layer}.lora_{part}.default.weight"].double() for part in "BA"] for u in updates]
            dense = sum(p * 2.0 * b @ a for p, (b, a) in zip(shares, pairs, strict=True))
            named[f"{layer}.base_layer.weight"].add_(dense)  # plain's own B is zero
    x = toy_data(50, seed=9).tensors[0]
    torch.testing.assert_close(federator.engine.local_trainer.module(x), plain(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain(x), toy_module()[0](x), atol=0.05)
