"""The server aggregation callback: what it sends, what it lets through, and what it puts together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from made import jobs_of, layout_of, random_weights, update_of, view_of
from torch import Tensor
from toys import Planned, toy_clients, toy_federator

from flt.algorithm.grouping.base import Everyone
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.importance import DeltaSensitivity, GradientSensitivity, SensitivityMeter
from flt.algorithm.learning_rate import LearningRateFactor
from flt.algorithm.plan import AdapterPlan, Proximal
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.base import Rule
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import ControlVariate, Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.schedule import Constant
from flt.algorithm.selection.freeze import Freeze, FrozenComponents
from flt.algorithm.selection.truncate import Truncate
from flt.core.errors import InputError
from flt.protocol.entries import Entry
from flt.protocol.layout import Layout
from flt.protocol.messages import Plan, Update, encode
from flt.protocol.state import ClientState, ServerState
from flt.server.aggregation import ServerAggregation

COHORT = jobs_of(4, 2, 3)
BASE = {"x.W": torch.ones(5, 4), "y.W": torch.ones(3, 6)}


def server_of(recipe: Recipe | None = None) -> ServerAggregation:
    return ServerAggregation(recipe or Recipe(Mean()), layout_of(), 3, 0, BASE)


def round_of(recipe: Recipe | None = None) -> tuple[ServerAggregation, ServerState, list[Update]]:
    """A server, its first state, and what the cohort would send back."""
    server = server_of(recipe)
    state = server.initial(random_weights(server.layout, 0))
    view = view_of(server.layout)
    updates = []
    for job in COHORT:
        payload = server.broadcast(state, job, COHORT)
        updates.append(update_of(view, job.id, payload.kept, 10 + job.client))
    return server, state, updates


# ---------------------------------------------------------------------------------------------- refusals

WITHOUT_PAIRS = Layout({"net": Entry("adapter", (2, 2)), "head": Entry("head", (2,)), "w": Entry("base", (2,))}, {})


@pytest.mark.parametrize(
    "parts",
    [
        {"selection": Freeze()},
        {"selection": Truncate("first")},
        {"importance": GradientSensitivity()},
        {"importance": DeltaSensitivity()},
        {"rule": Stacking()},
    ],
    ids=str,
)
def test_an_adapter_without_pairs_takes_no_part_that_works_on_them(parts: dict[str, Any]) -> None:
    recipe = Recipe(**{"rule": Mean(), **parts})
    ((group, part),) = parts.items()
    name = type(part).__name__
    with pytest.raises(InputError, match=rf"^{group}={name}: .*no A and no B; allowed is another {group}, or adapter"):
        recipe.check(WITHOUT_PAIRS)
    recipe.check(layout_of())
    Recipe(Mean()).check(WITHOUT_PAIRS)


def test_a_plan_that_lets_nothing_train_is_refused() -> None:
    with pytest.raises(InputError, match=r"^plan.train=\('A',\): .*nothing else to train; allowed is adapter, head$"):
        Recipe(Mean(), plan=AdapterPlan(["A"])).check(WITHOUT_PAIRS)


# ---------------------------------------------------------------------------------------------- broadcast


def test_the_first_state_is_one_group_of_copies_with_every_pair_alive() -> None:
    server = server_of()
    weights = random_weights(server.layout, 0)
    state = server.initial(weights | {"x.W": BASE["x.W"]})
    assert (state.rounds, list(state.groups), state.home, state.assignment) == (0, [0], 0, {})
    assert state.alive == {"x": (0, 1, 2, 3), "y": (0, 1, 2, 3)}
    assert set(state.groups[0].weights) == set(weights)
    for name, tensor in state.groups[0].weights.items():
        assert torch.equal(tensor, weights[name])
        assert tensor.data_ptr() != weights[name].data_ptr()


@pytest.mark.parametrize("selection", [Freeze("first"), Truncate("first")], ids=str)
def test_a_payload_holds_the_rows_and_columns_of_the_held_pairs(selection: Freeze | Truncate) -> None:
    server, state, _ = round_of(Recipe(Mean(), selection=selection))
    payload, weights = server.broadcast(state, COHORT[1], COHORT), state.groups[0].weights
    held = 4 if isinstance(selection, Freeze) else 2
    assert payload.kept == {"x": (0, 1), "y": (0, 1)}
    assert payload.held == {name: tuple(range(held)) for name in "xy"}
    assert torch.equal(payload.tensors["x.A"], weights["x.A"][:held])
    assert torch.equal(payload.tensors["y.B"], weights["y.B"][:, :held])
    assert torch.equal(payload.tensors["head"], weights["head"])


def test_broadcast_is_pure_and_hands_out_copies() -> None:
    server, state, _ = round_of(Recipe(Mean(), selection=Freeze()))
    before = encode(state)
    payload = server.broadcast(state, COHORT[1], COHORT)
    again = encode(server.broadcast(state, COHORT[1], COHORT[::-1]))
    assert encode(payload) == again
    for tensor in payload.tensors.values():
        tensor.zero_()
    assert encode(state) == before


def private_plan(round: int) -> Plan:
    return Plan(train=("A", "B", "head"), private=("B", "head") if round else ("head",))


def test_what_is_private_travels_neither_down_nor_up() -> None:
    server, state, updates = round_of(Recipe(Mean(), plan=Planned(make=private_plan)))
    assert sorted(server.broadcast(state, COHORT[0], COHORT).tensors) == ["x.A", "x.B", "y.A", "y.B"]
    with pytest.raises(InputError, match="other tensors than were asked for"):
        collected(server, state, updates)
    later = dataclasses.replace(state, rounds=1)
    assert sorted(server.broadcast(later, COHORT[0], COHORT).tensors) == ["x.A", "y.A"]


def test_slots_travel_only_where_the_rule_sends_them_and_gathered_as_the_weights_are() -> None:
    c = random_weights(layout_of(), 5)
    for rule, sent in ((Mean(), []), (Scaffold(), ["c"])):
        server, state, _ = round_of(Recipe(rule, selection=Truncate("first")))
        group = dataclasses.replace(state.groups[0], slots={"c": c, "m": c})
        payload = server.broadcast(dataclasses.replace(state, groups={0: group}), COHORT[1], COHORT)
        assert sorted(payload.slots) == sent
        for slot in sent:
            assert torch.equal(payload.slots[slot]["x.B"], c["x.B"][:, :2])


def test_an_absent_client_is_sent_the_versions_that_it_missed() -> None:
    """Stacked factors of rank 1 are 4 + 5 numbers and more, W is 20 of them: two versions are kept, not three."""
    server = ServerAggregation(Recipe(Stacking()), layout_of(1), 3, 0, BASE)
    state, view = server.initial(random_weights(server.layout, 0)), view_of(server.layout)
    versions = {0: [], 1: [], 2: []}
    for cohort in ((0, 1), (0,), (0, 1)):
        jobs = [job for job in COHORT if job.client in cohort]
        sent = {job.client: server.broadcast(state, job, jobs) for job in jobs}
        for client, payload in sent.items():
            assert payload.base_version == state.base.version
            versions[client].append([delta.version for delta in payload.base])
        first = update_of(view, (0, 0))
        state = server.aggregate(state, [dataclasses.replace(first, base_version=sent[0].base_version)])
    assert versions == {0: [[], [1], [2]], 1: [[], [1, 2]], 2: []}


# ---------------------------------------------------------------------------------------------- validate


def collected(server: ServerAggregation, state: ServerState, updates: Sequence[Update]) -> list[Update]:
    """The updates that the round's accumulator holds after all of these were added."""
    accumulator = server.accumulator(state, COHORT)
    for update in updates:
        accumulator.add(update)
    return accumulator.compute()[0]


def test_good_updates_are_let_through_sorted_by_job() -> None:
    server, state, updates = round_of()
    assert [server.validated(state, job, update) for job, update in zip(COHORT, updates, strict=True)] == updates
    assert [update.job for update in collected(server, state, updates[::-1])] == [update.job for update in updates]
    assert collected(server, state, []) == []


def with_tensor(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Update], Update]:
    return lambda update: dataclasses.replace(update, tensors=update.tensors | {name: change(update.tensors[name])})


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.view(-1)[:2] = value
        return changed

    return change


def without(update: Update, name: str) -> Update:
    return dataclasses.replace(update, tensors={key: t for key, t in update.tensors.items() if key != name})


BAD = {
    "nan": (with_tensor("x.A", filled(float("nan"))), r"x\.A=2 of 8 not finite"),
    "inf in the head": (with_tensor("head", filled(float("inf"))), "head=2 of 6 not finite"),
    "-inf": (with_tensor("y.B", filled(float("-inf"))), r"y\.B=2 of 6 not finite"),
    "full rank": (with_tensor("x.A", lambda _: torch.zeros(4, 4)), r"x\.A=\(4, 4\): allowed is \(2, 4\)"),
    "transposed": (with_tensor("y.B", lambda t: t.T), r"y\.B=\(2, 3\): allowed is \(3, 2\)"),
    "one dimension more": (with_tensor("head", lambda t: t[None]), r"head=\(1, 2, 3\): allowed is \(2, 3\)"),
    "missing tensor": (lambda u: without(u, "x.B"), "other tensors than were asked for"),
    "foreign tensor": (lambda u: dataclasses.replace(u, tensors=u.tensors | {"x.W": BASE["x.W"]}), "other tensors"),
    "score": (
        lambda u: dataclasses.replace(u, scores={"x": ((0,), torch.tensor([float("nan")]))}),
        r"scores of x=\[nan\]",
    ),
    "score of no pair": (
        lambda u: dataclasses.replace(u, scores={"x": ((9,), torch.ones(1))}),
        r"scores of x=\(9,\)",
    ),
    "scores that aren't as many": (
        lambda u: dataclasses.replace(u, scores={"x": ((0, 1), torch.ones(3))}),
        r"scores of x=\(3,\)",
    ),
    "scalar": (lambda u: dataclasses.replace(u, scalars={"lr": float("nan")}), "lr=nan"),
    "stale": (lambda u: dataclasses.replace(u, round=3), "round=3: it belongs to another round"),
    "no examples": (lambda u: dataclasses.replace(u, examples=0), "examples=0"),
    "no steps": (lambda u: dataclasses.replace(u, steps=0), "steps=0"),
    "a layer less": (
        lambda u: dataclasses.replace(u, kept={"x": u.kept["x"]}),
        r"layers=\['x'\]",
    ),
    "pairs out of range": (lambda u: dataclasses.replace(u, kept=u.kept | {"x": (0, 4)}), r"components of x=\(0, 4\)"),
    "pairs in disorder": (lambda u: dataclasses.replace(u, kept=u.kept | {"x": (1, 0)}), r"components of x=\(1, 0\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_is_refused_in_one_line_naming_its_client_and_the_number(name: str) -> None:
    change, message = BAD[name]
    server, state, updates = round_of(Recipe(Mean(), selection=Freeze("first")))
    updates[1] = change(updates[1])
    with pytest.raises(InputError, match=rf"^update of client 1, job 0\S* ?.*{message}") as error:
        collected(server, state, updates)
    assert "\n" not in str(error.value)
    assert "; allowed is " in str(error.value) or ": allowed is " in str(error.value)


@pytest.mark.parametrize("job", [(7, 0), (0, 1)], ids=["client", "job of a client"])
def test_an_update_of_who_was_not_in_the_cohort_is_refused(job: tuple[int, int]) -> None:
    server, state, updates = round_of()
    foreign = dataclasses.replace(updates[0], job=job)
    with pytest.raises(InputError, match=rf"^update of client {job[0]}, job {job[1]}=.*a job of the round's cohort$"):
        collected(server, state, [*updates, foreign])


def test_a_second_update_of_a_job_is_refused() -> None:
    server, state, updates = round_of()
    with pytest.raises(InputError, match="^update of client 1, job 0=twice"):
        collected(server, state, [*updates, updates[1]])


# ---------------------------------------------------------------------------------------------- aggregate


def test_a_round_is_finished_by_the_rule_and_the_importance() -> None:
    server, state, updates = round_of(Recipe(Mean(), importance=GradientSensitivity(beta1=0.5)))
    updates[0] = dataclasses.replace(updates[0], scores={"x": ((1,), torch.tensor([8.0]))})
    after = server.aggregate(state, updates)
    n = [update.examples for update in updates]
    expected = sum(k * u.tensors["head"].double() for k, u in zip(n, updates, strict=True)) / sum(n)
    torch.testing.assert_close(after.groups[0].weights["head"].double(), expected, rtol=1e-6, atol=1e-7)
    assert after.groups[0].scores["x"].tolist() == [0.0, 4.0, 0.0, 0.0]
    assert after.rounds == 1
    assert after.assignment == {(0, 0): 0, (1, 0): 0, (2, 0): 0}
    assert after.alive == state.alive


def test_aggregate_leaves_the_state_of_before_alone() -> None:
    for rule in (Mean(), Scaffold(), Stacking()):
        server, state, updates = round_of(Recipe(rule))
        before = encode(state)
        server.aggregate(state, updates)
        assert encode(state) == before


def test_an_empty_cohort_finishes_the_round_and_changes_nothing_else() -> None:
    for rule in (Mean(), Scaffold(), Stacking()):
        server, state, updates = round_of(Recipe(rule))
        once = server.aggregate(state, updates)
        assert encode(server.aggregate(once, [])) == encode(dataclasses.replace(once, rounds=2))


def test_the_version_that_was_sent_counts_as_seen_and_not_the_one_that_the_round_makes() -> None:
    server, state, updates = round_of(Recipe(Stacking()))
    first = server.aggregate(state, updates[:2])
    assert (first.base.version, first.base.seen) == (1, {})
    sent = server.broadcast(first, COHORT[0], COHORT[:1])
    second = server.aggregate(first, [dataclasses.replace(updates[0], base_version=sent.base_version)])
    assert (second.base.version, second.base.seen) == (2, {0: 1})


def test_each_group_is_combined_by_itself_and_those_without_members_stay() -> None:
    server = server_of(Recipe(Mean("uniform"), grouping=KMeansGrouping(2)))
    state = server.initial(random_weights(server.layout, 0))
    view = view_of(server.layout)
    updates = [update_of(view, job.id) for job in COHORT[:2]]
    first = server.aggregate(state, updates)
    assert sorted(first.groups) == [0, 1, 2]
    for update in updates:
        weights = first.groups[first.assignment[update.job]].weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in update.tensors.items())
    assert encode(first.groups[0]) == encode(state.groups[0])
    second = server.aggregate(first, [updates[0]])
    other = first.assignment[updates[1].job]
    assert encode(second.groups[other]) == encode(first.groups[other])
    assert second.assignment == first.assignment


def test_schedule_cuts_what_is_alive_for_the_next_round() -> None:
    class Half(Constant):
        def __call__(self, state: ServerState, layout: Layout) -> ServerState:
            if not state.rounds:
                return state
            return dataclasses.replace(state, alive={name: ids[::2] for name, ids in state.alive.items()})

    server, state, updates = round_of(Recipe(Mean(), schedule=Half()))
    after = server.aggregate(state, updates)
    payload = server.broadcast(after, COHORT[0], COHORT)
    assert payload.held == {"x": (0, 2), "y": (0, 2)}
    assert torch.equal(payload.tensors["x.B"], after.groups[0].weights["x.B"][:, ::2])
    assert after.groups[0].weights["x.B"].shape == (5, 4)


# ---------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("rule", [Scaffold(), Stacking()], ids=["scaffold", "stacking"])
def test_a_rule_of_one_group_with_several_groups_is_refused_saying_why(rule: Rule) -> None:
    with pytest.raises(
        InputError, match=f"^rule {type(rule).__name__} with grouping KMeansGrouping: .*; allowed is one"
    ):
        Recipe(rule, grouping=KMeansGrouping(2))
    Recipe(rule, grouping=KMeansGrouping(1))
    Recipe(rule, grouping=Everyone())


def test_callbacks_of_a_fit_measure_first_and_freeze_last() -> None:
    recipe = Recipe(
        Scaffold(),
        plan=Planned(make=lambda round: Plan(mu=0.1, lr_factor=0.5)),
        selection=Freeze("first"),
        importance=GradientSensitivity(),
    )
    federator = toy_federator(recipe, toy_clients(1, ranks=[2]))
    local_trainer, (job,) = federator.engine.local_trainer, federator.clients[0].jobs(4)
    payload = federator.server.broadcast(federator.state, job, [job])
    local_trainer.install(payload, ClientState())
    found = recipe.callbacks(local_trainer._prepare(payload, ClientState()))
    expected = [SensitivityMeter, LearningRateFactor, Proximal, ControlVariate, FrozenComponents]
    assert [type(callback) for callback in found] == expected
