"""Decoded values have the types that their dataclass declares, down to the last number."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import Any

import pytest
import safetensors.torch
import torch
from benchmarks.tools.fuzz import messages as fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flt.core.errors import InputError
from flt.protocol.codec import decode, encode
from flt.protocol.field_types import Finite, Whole, fits
from flt.protocol.messages import BaseDelta, JobId, Plan, Update
from flt.protocol.state import ClientState, ServerState

FITTING: list[tuple[Any, Any, bool]] = [
    (1, int, True), (True, int, False), (1.0, int, False), ("1", int, False), (1, float, True), (True, float, False),
    (math.nan, float, True), (math.nan, Finite, False), (0, Whole, True), (-1, Whole, False), (True, Whole, False),
    (None, int | None, True), ("x", int | None, False), ((1, 2), JobId, True), ((1,), JobId, False),
    ([1, 2], JobId, False), ((1, 2, 3), tuple[int, ...], True), ((1, "x"), tuple[int, ...], False),
    ((), tuple[int, ...], True), ({"a": 1}, dict[str, int], True), ({1: 1}, dict[str, int], False),
    ({"a": None}, dict[str, int], False), ((1, 2), dict[str, int], False), (torch.ones(1), Tensor, True),
    (1, Tensor, False), (Plan(), Plan, True), (BaseDelta(1, {}), Plan, False), (object(), Any, True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "expected"), FITTING, ids=lambda value: repr(value)[:20])
def test_a_value_fits_its_annotation_and_no_other(value: Any, hint: Any, expected: bool) -> None:
    assert fits(value, hint) is expected


def message(change: Any, of: Any = Plan()) -> bytes:  # noqa: B008  # frozen
    header, tree, rest = fuzz.split(encode(of))
    change(tree["f"])
    return fuzz.joined(header, tree, rest)


CHANGES: dict[str, dict[str, Any]] = {
    "a text for a number": {"mu": "0.1"},
    "a list for a number": {"mu": [0.1]},
    "a truth for a number": {"mu": True},
    "nan where a number is finite": {"mu": {"n": "nan"}},
    "infinity": {"lr_factor": {"n": "inf"}},
    "a number out of range": {"lr_factor": 10**400},
    "an integer of 400 digits": {"steps": int("9" * 400)},
    "an integer of 64 bits and one": {"steps": 2**63},
    "fewer steps than none": {"steps": -1},
    "a number for a text": {"stage": 1},
    "a text for a list": {"train": "A"},
    "a dict for a list": {"train": {"d": []}},
    "a list of numbers for one of texts": {"train": [1]},
    "another message for a text": {"stage": {"c": "Plan", "f": {}}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_field_of_another_type_is_refused_in_one_line(what: str) -> None:
    with pytest.raises(InputError, match="^message=<") as raised:
        decode(message(lambda fields: fields.update(CHANGES[what])))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


TREES: dict[str, Any] = {
    "a text": "x", "a number": 1, "a list": [], "a dict": {"d": []}, "nothing": None,
    "a key twice": {"c": "ClientState", "f": {"slots": {"d": [["a", {"d": []}], ["a", {"d": []}]]}}},
}  # fmt: skip


@pytest.mark.parametrize("what", TREES)
def test_what_is_no_message_as_a_whole_is_refused(what: str) -> None:
    with pytest.raises(InputError, match="^message=<"):
        decode(safetensors.torch.save({}, metadata={"flt": json.dumps(TREES[what])}))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_a_tensor_of_an_unusual_type_is_refused(dtype: torch.dtype) -> None:
    tree = {"c": "ClientState", "f": {"tensors": {"d": [["w", {"t": "0"}]]}, "slots": {"d": []}}}
    data = safetensors.torch.save({"0": torch.ones(2).to(dtype)}, metadata={"flt": json.dumps(tree)})
    with pytest.raises(InputError, match="a tensor has the type"):
        decode(data)


def test_a_tensor_in_two_places_or_in_none_is_refused() -> None:
    header, tree, rest = fuzz.split(encode(ClientState({"a": torch.ones(2), "b": torch.ones(2)})))
    twice, unused = copy.deepcopy(tree), copy.deepcopy(tree)
    twice["f"]["tensors"]["d"][1][1] = twice["f"]["tensors"]["d"][0][1]
    unused["f"]["tensors"]["d"].pop()
    for changed in (twice, unused):
        with pytest.raises(InputError, match="^message=<"):
            decode(fuzz.joined(header, changed, rest))


def test_a_message_of_another_kind_than_wanted_is_refused() -> None:
    with pytest.raises(InputError, match="it contains a Plan"):
        decode(encode(Plan()), ServerState)


@given(st.sampled_from(fuzz.EXAMPLES), st.integers(0))
@settings(max_examples=300)
def test_a_damaged_message_is_of_the_right_types_or_refused_in_one_line(example: Any, seed: int) -> None:
    found = outcome(fuzz.damaged(random.Random(seed), encode(example)))
    if isinstance(found, str):
        assert "\n" not in found
    else:
        assert encode(decode(encode(found))) == encode(found)


def outcome(data: bytes) -> Any:
    try:
        return decode(data)
    except InputError as error:
        return str(error)


def test_every_field_of_an_update_is_checked() -> None:
    """One value of a wrong type in the place of each field."""
    update = next(value for value in fuzz.EXAMPLES if type(value) is Update)
    for name in vars(update):
        for wrong in ({"c": "Plan", "f": {}}, "x", None, {"n": "nan"}):
            with pytest.raises(InputError, match=rf"Update\.{name} has a wrong type or value|belong to no field"):
                decode(message(lambda fields, name=name, wrong=wrong: fields.update({name: wrong}), update))
