"""How the server combines the buffers that clients' training has changed."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from toys import toy_module

from flt.algorithm.buffers import Average, BuffersPart, Keep, Local, check_buffers
from flt.algorithm.plan import AdapterPlan, FullPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Totals
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.robust import Krum, Median, NormBound
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.entries import Entry
from flt.protocol.layout import Layout
from flt.protocol.messages import Plan, Update
from flt.protocol.state import GroupState, ServerState

SIZES = (10, 25, 65)
INITIAL = {
    "norm.running_mean": torch.zeros(4),
    "norm.running_var": torch.ones(4),
    "norm.num_batches_tracked": torch.tensor(0),
    "seen": torch.zeros(2),
    "ready": torch.tensor([False, False]),
}


def samples() -> list[np.ndarray]:
    """Numbers of clients with other means and scales."""
    generator = np.random.default_rng(0)
    return [generator.normal(100 * k, 1 + k, size=(n, 4)) for k, n in enumerate(SIZES)]


def updates() -> list[Update]:
    """Updates with the population statistics of each client's numbers."""
    made = []
    for client, values in enumerate(samples()):
        held = {
            "norm.running_mean": torch.tensor(values.mean(0), dtype=torch.float32),
            "norm.running_var": torch.tensor(values.var(0), dtype=torch.float32),
            "norm.num_batches_tracked": torch.tensor(5 + client),
            "seen": torch.tensor([float(client), 1.0]),
            "ready": torch.tensor([client == 1, False]),
        }
        made.append(Update((client, 0), 0, {}, {}, 0, len(values), 1, buffers=held))
    return made


def view(**held: Tensor) -> View:
    layout = Layout({name: Entry("buffer", tuple(v.shape), dtype=v.dtype) for name, v in INITIAL.items()}, {})
    group = GroupState({}, {}, buffers=held)
    return View(layout, ServerState(0, {0: group}, {}), len(SIZES), 0, buffers=INITIAL)


def combined(given: list[Update], at: View | None = None, policy: BuffersPart | None = None) -> dict[str, Tensor]:
    return (policy or Average()).combine(at or view(), 0, given, Mean())


def test_the_statistics_are_those_of_all_examples_together() -> None:
    pooled, found = np.concatenate(samples()), combined(updates())
    np.testing.assert_allclose(found["norm.running_mean"], pooled.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found["norm.running_var"], pooled.var(0), rtol=1e-6)
    assert (found["norm.running_var"] > 3 * torch.tensor(samples()[2].var(0))).all(), "a mean of variances"


def test_the_statistics_dont_depend_on_the_values_before_the_round() -> None:
    start = {"norm.running_mean": torch.full((4,), -7.0), "norm.running_var": torch.full((4,), 9.0)}
    first, later = combined(updates()), combined(updates(), view(**start))
    assert torch.equal(first["norm.running_var"], later["norm.running_var"])


def test_counters_add_up_what_each_client_counted_from_the_same_start() -> None:
    held = {"norm.num_batches_tracked": torch.tensor(3)}
    assert int(combined(updates())["norm.num_batches_tracked"]) == 5 + 6 + 7
    assert int(combined(updates(), view(**held))["norm.num_batches_tracked"]) == 3 + 2 + 3 + 4


def test_other_numbers_are_averaged_by_examples_and_flags_are_true_if_one_is() -> None:
    found = combined(updates())
    torch.testing.assert_close(found["seen"], torch.tensor([(25 + 2 * 65) / 100, 1.0]))
    assert found["ready"].tolist() == [True, False]
    assert {name: value.dtype for name, value in found.items()} == {n: v.dtype for n, v in INITIAL.items()}


def with_one(name: str, values: list[Tensor]) -> tuple[list[Update], View]:
    """Updates with one buffer besides the usual ones, which is 0 at the start, and the view."""
    given = [
        dataclasses.replace(update, buffers={**update.buffers, name: value})
        for update, value in zip(updates(), values, strict=True)
    ]
    return given, dataclasses.replace(view(), buffers={**INITIAL, name: torch.zeros_like(values[0])})


@pytest.mark.parametrize("rule", [Mean(), Median()], ids=["mean", "median"])
def test_integers_that_are_no_counters_take_a_value_that_a_client_has(rule: Mean | Median) -> None:
    """A position in a queue, added up or averaged, might lie beyond its end."""
    for kind in (torch.int64, torch.uint8):
        values = [torch.tensor([v, 250 - v], dtype=kind) for v in (12, 40, 44)]
        given, at = with_one("queue_ptr", values)
        found = Average().combine(at, 0, given, rule)["queue_ptr"]
        assert found.dtype == kind
        assert found.tolist() == ([44, 206] if rule == Mean() else [40, 210])
    given, at = with_one("queue_ptr", [torch.tensor([v]) for v in (8, 8, 4)])
    given = [dataclasses.replace(update, examples=10) for update in given]
    assert Average().combine(at, 0, given, rule)["queue_ptr"].tolist() == [8], "two against one"


def test_a_flag_that_all_clients_have_cleared_is_cleared() -> None:
    given = [dataclasses.replace(u, buffers={"ready": torch.tensor([False, True])}) for u in updates()]
    assert combined(given, view(ready=torch.tensor([True, True])))["ready"].tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6, 1e12])
def test_statistics_of_inputs_that_nobody_has_normalised_are_exact(scale: float) -> None:
    given = []
    for update, values in zip(updates(), samples(), strict=True):
        mean, var = torch.tensor(values.mean(0) * scale), torch.tensor(values.var(0) * scale**2)
        held = {"norm.running_mean": mean.float(), "norm.running_var": var.float()}
        given.append(dataclasses.replace(update, buffers=held))
    found, pooled = combined(given), np.concatenate(samples()) * scale
    np.testing.assert_allclose(found["norm.running_mean"], pooled.mean(0), rtol=1e-6)
    if scale > 1e-6:  # an exact sum has no digits below 2^-64
        np.testing.assert_allclose(found["norm.running_var"], pooled.var(0), rtol=1e-6)


def test_a_single_client_gets_its_own_bits_back() -> None:
    (only,) = updates()[:1]
    for name, value in combined([only]).items():
        assert torch.equal(value, only.buffers[name]), name


def test_sums_of_any_order_and_of_two_processes_give_the_same_bits() -> None:
    given, expected = updates(), combined(updates())
    random.Random(1).shuffle(given)
    one: Totals = {}
    other: Totals = {}
    for update, totals in zip(given, (other, one, other), strict=True):
        Average().include(view(), update, update.examples, totals)
    merged = {**one, **{key: one[key].plus(term) if key in one else term for key, term in other.items()}}
    for name, value in Average().finish(view(), 0, merged).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("rule", [Median(), Krum()], ids=["median", "krum"])
def test_a_hostile_minority_cant_move_the_statistics_of_a_robust_rule(rule: Median | Krum) -> None:
    given = updates()
    hostile = {
        name: torch.full_like(value, 10**6) for name, value in given[0].buffers.items() if value.is_floating_point()
    }
    given[0] = dataclasses.replace(given[0], buffers={**given[0].buffers, **hostile}, examples=10**6)
    found = Average().combine(view(), 0, given, rule)
    assert float(found["norm.running_mean"].max()) < 300
    assert float(found["norm.running_var"].max()) < 20


def layout_with_norm(head: bool = False) -> Layout:
    _, layout = toy_module()
    entries = {**layout.entries, "norm.running_mean": Entry("buffer", (4,), dtype=torch.float32)}
    entries["norm.weight"] = Entry("head" if head else "base", (4,))
    return dataclasses.replace(layout, entries=entries, statistics=("norm",), head=("norm",) if head else ("head",))


def test_a_robust_rule_of_sums_is_refused_where_statistics_are_trained() -> None:
    Recipe(NormBound()).check(layout_with_norm())  # the base with its norm is frozen
    for recipe, layout in (
        (Recipe(NormBound(), FullPlan()), layout_with_norm()),
        (Recipe(NormBound()), layout_with_norm(head=True)),
    ):
        with pytest.raises(InputError, match="^buffers Average with rule NormBound: .*; allowed is local, keep$"):
            recipe.check(layout)
        dataclasses.replace(recipe, buffers=Local()).check(layout)


def test_private_heads_have_private_buffers_and_a_client_that_sends_nothing_sends_no_buffers() -> None:
    layout, name = layout_with_norm(head=True), "norm.running_mean"
    for plan, sent in (
        (Plan(), True),
        (Plan(private=("head",)), False),
        (Plan(private=("B",)), True),
        (Plan(train=("A",), private=("A",)), False),
    ):
        assert Average().is_sent(layout, plan, name) is sent
        assert Average().is_private(layout, plan, name) is not sent
    assert not Average().is_private(layout_with_norm(), Plan(private=("head",)), name)


def test_local_keeps_the_scale_and_shift_of_the_norms_on_the_clients_as_fedbn_does() -> None:
    layout = Local().adapted(layout_with_norm())
    assert layout.local == {"norm.weight"}
    full = FullPlan()(0)
    assert "norm.weight" not in layout.sent(full)
    assert "norm.weight" in layout.private(full)
    assert "fc1.base_layer.weight" in layout.sent(full)
    assert Average().adapted(layout_with_norm()).local == Keep().adapted(layout_with_norm()).local == frozenset()


def test_there_is_no_global_model_where_the_norms_are_trained_on_the_clients() -> None:
    layout, full, adapter = layout_with_norm(), Recipe(Mean(), FullPlan()), Recipe(Mean(), AdapterPlan())
    assert not Local().has_global(full, layout)
    assert Local().has_global(adapter, layout)
    assert Average().has_global(full, layout)
    assert Local().has_global(full, toy_module()[1])


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("other", torch.zeros(4), "buffer=other"),
        ("norm.running_mean", torch.zeros(5), r"\(5,\) torch.float32"),
        ("norm.running_mean", torch.zeros(4, dtype=torch.float64), "torch.float64"),
        ("norm.running_mean", torch.full((4,), torch.nan), "not finite"),
        ("norm.running_var", torch.tensor([1.0, 1.0, -1.0, 1.0]), "=-1.0: allowed is a variance >= 0"),
        ("norm.num_batches_tracked", torch.zeros(2, dtype=torch.int64), r"\(2,\)"),
    ],
    ids=["unknown", "shape", "type", "nan", "negative variance", "counter's shape"],
)
def test_wrong_buffers_of_an_update_are_refused_by_name(name: str, value: Tensor, named: str) -> None:
    update = dataclasses.replace(updates()[0], buffers={name: value})
    with pytest.raises(InputError, match=f"^client 3: .*{named}"):
        check_buffers("client 3", update, Average(), view().layout, Plan())


@pytest.mark.parametrize("policy", [Local(), Keep()], ids=["local", "keep"])
def test_a_buffer_that_no_policy_asks_for_is_refused(policy: BuffersPart) -> None:
    with pytest.raises(InputError, match="buffer=norm.running_mean"):
        check_buffers("client 3", updates()[0], policy, view().layout, Plan())
    assert not combined(updates(), policy=policy) or isinstance(policy, Average)
