"""States of a checkpoint that have the right types, and are of another model: refused by name before a round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from toys import toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks.communication import Communication
from flt.callbacks.selection_overlap import SelectionOverlap
from flt.callbacks.timer import Timer
from flt.core.errors import InputError
from flt.protocol.messages import BaseDelta
from flt.protocol.state import BaseState, ClientState, ServerState
from flt.server.callback import FedCallback
from flt.server.federator import Federator
from flt.server.state_validation import check_states, restore_callback

A = "fc1.lora_A.default.weight"
W = "fc1.base_layer.weight"


def made() -> Federator:
    return toy_federator(Recipe(Scaffold()), optimizer="sgd", weight_decay=0.0)


def group(state: ServerState, **changes: Any) -> ServerState:
    return dataclasses.replace(state, groups={state.home: dataclasses.replace(state.groups[state.home], **changes)})


def weights(state: ServerState, **changes: Any) -> ServerState:
    return group(state, weights={**state.groups[state.home].weights, **changes})


def base(state: ServerState, *tensors: torch.Tensor, **changes: Any) -> ServerState:
    recent = (BaseDelta(1, {W: tensors}),)
    return dataclasses.replace(state, base=dataclasses.replace(BaseState(1, {}, recent), **changes))


change = dataclasses.replace
STATES: dict[str, tuple[Callable[[ServerState], ServerState], str]] = {
    "a home that isn't there": (lambda state: change(state, home=9), "group 9"),
    "a job in a group that isn't there": (lambda state: change(state, assignment={(0, 0): 7}), "group 7"),
    "a job that isn't there": (lambda state: change(state, assignment={(9, 0): state.home}), r"job \(9, 0\)"),
    "a layer that isn't there": (lambda state: change(state, alive={**state.alive, "x": ()}), "layers"),
    "no layer": (lambda state: change(state, alive={}), "layers"),
    "a component that isn't there": (lambda state: change(state, alive={**state.alive, "fc1": (0, 99)}), "fc1"),
    "a component twice": (lambda state: change(state, alive={**state.alive, "fc1": (1, 1)}), "fc1"),
    "a weight of another shape": (lambda state: weights(state, **{A: torch.ones(1, 2)}), A),
    "a weight of another type": (lambda state: weights(state, **{A: torch.ones(4, 6).double()}), "float64"),
    "a weight that isn't there": (lambda state: weights(state, x=torch.ones(1)), "weights x"),
    "no weights": (lambda state: group(state, weights={}), "weights"),
    "scores that aren't finite": (
        lambda state: group(state, scores=dict.fromkeys(("fc1", "fc2"), torch.full((4,), torch.nan).double())), "fc1",
    ),
    "scores of another shape": (
        lambda state: group(state, scores={layer: torch.ones(3).double() for layer in ("fc1", "fc2")}), "fc1",
    ),
    "a slot of another shape": (lambda state: group(state, slots={"c": {A: torch.ones(1)}}), A),
    "a slot of integers": (lambda state: group(state, slots={"c": {A: torch.ones(4, 6, dtype=torch.int64)}}), "int64"),
    "a slot of what isn't there": (lambda state: group(state, slots={"c": {"x": torch.ones(1)}}), "x"),
    "a job's scores of another shape": (
        lambda state: change(state, scores={(0, 0): {"fc1": torch.ones(9)}}), "fc1",
    ),
    "a job's rank": (lambda state: change(state, ranks={(0, 0): 99}), "rank 99"),
    "directions of two lengths": (
        lambda state: change(state, directions={(0, 0): torch.ones(2), (1, 0): torch.ones(3)}), "directions",
    ),
    "factors that don't fit": (lambda state: base(state, torch.ones(8, 2), torch.ones(3, 6)), W),
    "one factor": (lambda state: base(state, torch.ones(8, 2)), W),
    "three factors": (lambda state: base(state, *[torch.ones(8, 6)] * 3), W),
    "no factor": (lambda state: base(state), W),
    "a change of another type": (lambda state: base(state, torch.ones(8, 6).bfloat16()), W),
    "a version from the future": (lambda state: base(state, torch.ones(8, 6), version=0), "versions"),
    "a client from the future": (lambda state: base(state, torch.ones(8, 6), seen={0: 9}), "versions"),
    "a folded weight of another shape": (
        lambda state: base(state, torch.ones(8, 6), folded={W: (1, torch.ones(1))}), W,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_a_state_of_another_model_is_refused_by_name(what: str) -> None:
    federator = made()
    made_of, why = STATES[what]
    with pytest.raises(InputError, match=f"^resume=.*{why}.*: the checkpoint is of another model") as raised:
        check_states(made_of(federator.state), {}, federator)
    assert "\n" not in str(raised.value)


def test_a_state_of_this_model_is_accepted_with_and_without_a_changed_base() -> None:
    federator = made()
    for state in (federator.state, base(federator.state, torch.ones(8, 6)),
                  base(federator.state, torch.ones(8, 2), torch.ones(2, 6)), weights(federator.state)):  # fmt: skip
        check_states(state, {}, federator)


PRIVATE: dict[str, tuple[ClientState, str]] = {
    "another shape": (ClientState({}, {"c_i": {A: torch.ones(1)}}), A),
    "another name": (ClientState({}, {"c_i": {"x": torch.ones(1)}}), "x"),
    "integers": (ClientState({}, {"c_i": {A: torch.ones(4, 6, dtype=torch.int64)}}), "int64"),
    "one private tensor of two": (ClientState({A: torch.ones(4, 6)}), "without fc2.lora_A.default.weight"),
}


@pytest.mark.parametrize("what", PRIVATE)
def test_a_private_state_of_another_model_is_refused_by_name(what: str) -> None:
    federator, (state, why) = made(), PRIVATE[what]
    with pytest.raises(InputError, match=f"^resume=.*{why}"):
        check_states(federator.state, {(0, 0): state}, federator)


def test_a_private_state_of_a_job_that_is_not_there_is_refused() -> None:
    federator = made()
    with pytest.raises(InputError, match=r"^resume=job \(9, 9\)"):
        check_states(federator.state, {(9, 9): ClientState()}, federator)


CALLBACKS: list[tuple[FedCallback, dict[str, Any]]] = [
    (Timer(), {"total": (1, 2)}),
    (Timer(), {"total": float("nan")}),
    (Timer(), {}),
    (Communication(), {"up": "x", "down": 0, "numbers": 1.0, "rounds": 1}),
    (Communication(), {"up": 0, "down": 0, "numbers": 1.0}),
    (SelectionOverlap(), {"last": {(0, 0): None}}),
    (SelectionOverlap(), {"last": 3}),
]


@pytest.mark.parametrize(
    ("callback", "state"), CALLBACKS, ids=lambda value: str(value) if isinstance(value, dict) else type(value).__name__
)
def test_a_callbacks_state_of_another_type_is_refused(callback: FedCallback, state: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^resume=key: .*; allowed is the state that this callback saved$"):
        restore_callback("key", callback, state)


@pytest.mark.parametrize(
    "callback", [Timer(), Communication(), SelectionOverlap()], ids=lambda each: type(each).__name__
)
def test_a_callbacks_own_state_is_restored(callback: FedCallback) -> None:
    restore_callback("key", callback, callback.state_dict())
