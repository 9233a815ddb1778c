"""The codec: what goes in comes out, and nothing else can come in."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flt.callbacks.checkpoint import Snapshot
from flt.core.errors import InputError
from flt.engines.distributed import Share
from flt.engines.process_group import StatusMessage
from flt.protocol import codec
from flt.protocol.failure import Failure, Late
from flt.protocol.messages import (
    BaseDelta,
    Packed,
    PackedPayload,
    PackedUpdate,
    Payload,
    Plan,
    Update,
    decode,
    encode,
    encoded_size,
)
from flt.protocol.state import BaseState, ClientState, GroupState, ServerState, StoredClientState


def same(found: Any, expected: Any) -> bool:
    """Equal in type, order and bits, nan included."""
    if type(found) is not type(expected):
        return False
    if isinstance(expected, Tensor):
        alike = found.dtype == expected.dtype and found.shape == expected.shape
        return alike and torch.equal(bits(found), bits(expected))
    if dataclasses.is_dataclass(expected):
        return all(same(getattr(found, f.name), getattr(expected, f.name)) for f in dataclasses.fields(expected))
    if isinstance(expected, dict):
        return same(tuple(found.items()), tuple(expected.items()))
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return repr(found) == repr(expected)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def message_of(tree: Any, tensors: dict[str, Tensor] | None = None) -> bytes:
    """Well-formed bytes around any tree."""
    return safetensors.torch.save(tensors or {}, metadata={"flt": json.dumps(tree)})


ROWS = torch.arange(12, dtype=torch.float32).view(3, 4)
WEIGHTS = {
    "rows": ROWS,
    "the same rows": ROWS,
    "a view of them": ROWS[1:, ::2],
    "transposed": ROWS.T,
    "half": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "counts": torch.tensor([[2**62, -1]]),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(0.1, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
}
LORA_FACTORS = {"layer": (0, 2), "without": ()}
SCALARS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "tiny": 5e-324, "third": 1 / 3, "-0": -0.0}
DELTAS = (BaseDelta(3, {"W": (ROWS, ROWS.T)}), BaseDelta(4, {"W": (ROWS,), "V": ()}))
GROUP = GroupState(WEIGHTS, {"layer": torch.ones(2, dtype=torch.float64)}, {"c": WEIGHTS, "nothing": {}})
SERVER = ServerState(
    7,
    {0: GROUP, 12: GroupState({}, {})},
    LORA_FACTORS,
    {(0, 0): 12, (3, 1): 0},
    BaseState(4, {"W": (2, ROWS)}, DELTAS, {5: 3}),
)
PACKED = Packed(torch.tensor([2, 32], dtype=torch.uint8), torch.ones(1), torch.arange(9, dtype=torch.uint8))
EXAMPLES = [
    Plan(),
    Plan(("head",), ("B", "head"), 0.01, 5, 0.5, 'stage "1" – ü'),
    DELTAS[0],
    Payload((3, 1), 7, Plan(), WEIGHTS, LORA_FACTORS, {}, {"c": WEIGHTS, "empty": {}}, 4, DELTAS),
    Payload((0, 0), 0, Plan(), {}, {}, {}),
    Update((3, 1), 7, WEIGHTS, LORA_FACTORS, 4, 120, 10, {"layer": ((0, 2), torch.ones(2))}, SCALARS, SCALARS),
    PACKED,
    PackedPayload((0, 0), 0, Plan(), {}, {}, {}, packed=PACKED),
    PackedUpdate((3, 1), 7, WEIGHTS, LORA_FACTORS, 4, 120, 10, packed=PACKED),
    ClientState({"B": ROWS}, {"c_i": WEIGHTS}),
    GROUP,
    SERVER.base,
    SERVER,
    StatusMessage("said", "why", True),
    Share(
        (Update((3, 1), 7, {}, LORA_FACTORS, 4, 120, 10),),
        {("totals", "value", "w"): ((2, 3), 4, 5.0)},
        {"bytes_up": 1},
        {(3, 1): ("clients/3_1_0001.safetensors", "abc")},
        (Failure((4, 0), "why"),),
    ),  # fmt: skip
    Failure((3, 1), "RuntimeError in step.py, line 3"),
    Late((3, 1), "late"),
    StoredClientState("0123abcd", (3, 1), ClientState({"B": ROWS})),
    Snapshot(SERVER, (SCALARS, {}), {"Communication": {"up": 1, "deep": {(1, (2, "x")): (None, True, 1, 1.0)}}}),
]


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_decoding_gives_back_what_was_encoded(value: Any) -> None:
    found = decode(encode(value))
    assert same(found, value)
    assert encode(found) == encode(value)


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_the_size_of_a_message_is_known_without_writing_it(value: Any) -> None:
    assert encoded_size(value) == len(encode(value))


def test_the_closed_list_is_these_classes_and_each_has_an_example_here() -> None:
    named = {
        "Plan",
        "BaseDelta",
        "Payload",
        "Update",
        "Packed",
        "PackedPayload",
        "PackedUpdate",
        "ClientState",
        "StoredClientState",
        "GroupState",
        "BaseState",
        "ServerState",
        "Snapshot",
        "Word",  # StatusMessage, under the name that it had first
        "Share",
        "Failure",
        "Late",
    }
    assert set(codec._MESSAGES) == named == {codec._name(type(value)) for value in EXAMPLES}


def test_a_message_without_buffers_has_the_bytes_that_it_had_before_there_were_buffers() -> None:
    update = Update((0, 0), 0, {"a": torch.zeros(2)}, {}, 0, 1, 1)
    assert b"buffers" not in encode(update)
    with_buffers = dataclasses.replace(update, buffers={"mean": torch.ones(2), "count": torch.tensor(3)})
    found = decode(encode(with_buffers))
    assert torch.equal(found.buffers["mean"], torch.ones(2))
    assert found.buffers["count"].dtype == torch.int64
    assert encoded_size(with_buffers) == len(encode(with_buffers))


def test_tensors_that_share_memory_come_out_apart() -> None:
    found = decode(encode(ClientState({"a": ROWS, "b": ROWS}))).tensors
    found["a"].zero_()
    assert torch.equal(found["b"], ROWS)


def test_encoding_detaches_and_leaves_its_argument_alone() -> None:
    weight = torch.nn.Parameter(ROWS.clone())
    found = decode(encode(ClientState({"w": weight}))).tensors["w"]
    assert not found.requires_grad
    assert weight.requires_grad
    assert torch.equal(weight, ROWS)


def test_any_reader_of_safetensors_finds_the_tensors() -> None:
    found = safetensors.torch.load(encode(ClientState({"w": ROWS}, {"c_i": {"v": ROWS.T}})))
    assert [tensor.tolist() for _, tensor in sorted(found.items())] == [ROWS.tolist(), ROWS.T.tolist()]


# ---------------------------------------------------------------------------------------------- random messages

names = st.text(max_size=8)
whole = st.integers(0, 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
ids = st.lists(st.integers(0, 63), max_size=5, unique=True).map(lambda found: tuple(sorted(found)))
dtypes = st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return (values * 10).to(draw(dtypes))


named = st.dictionaries(names, tensors(), max_size=3)
slots = st.dictionaries(names, named, max_size=2)
job_ids = st.tuples(st.integers(0, 2**40), st.integers(0, 9))
numbers = st.dictionaries(names, st.floats(), max_size=3)
deltas = st.builds(
    BaseDelta, st.integers(0, 99), st.dictionaries(names, st.lists(tensors(), max_size=2).map(tuple), max_size=2)
)
plans = st.builds(
    Plan,
    st.lists(names).map(tuple),
    st.lists(names).map(tuple),
    finite,
    st.none() | whole,
    finite,
    names,
)
payloads = st.builds(
    Payload, job_ids, whole, plans, named, st.dictionaries(names, ids), st.dictionaries(names, ids), slots,
    whole, st.lists(deltas, max_size=2).map(tuple),
)  # fmt: skip
updates = st.builds(
    Update, job_ids, whole, named, st.dictionaries(names, ids), whole, whole, whole,
    st.dictionaries(names, st.tuples(ids, tensors()), max_size=2), numbers, numbers,
)  # fmt: skip


@given(payloads | updates)
@settings(max_examples=150)
def test_any_message_survives_the_way(value: Payload | Update) -> None:
    assert encoded_size(value) == len(encode(value))
    assert same(decode(encode(value)), value)


# ---------------------------------------------------------------------------------------------- what is refused


@dataclasses.dataclass(frozen=True)
class Unregistered:
    mu: float = 0.0


Impostor = dataclasses.make_dataclass("Plan", [("mu", float, 0.0)])


@pytest.mark.parametrize(
    "value",
    [Unregistered(), Impostor(), {1}, b"bytes", 1j, Path("x"), torch.float32, Plan, lambda: 0],
    ids=lambda value: type(value).__name__,
)
def test_other_types_can_not_be_written(value: Any) -> None:
    for place in (value, ClientState(slots={"c_i": {"w": value}})):
        with pytest.raises(TypeError, match="can't cross between server and client"):
            encode(place)


def refused(data: bytes) -> None:
    with pytest.raises(
        InputError, match=f"^message=<{len(data)} bytes>: .*; allowed is a message written by flt$"
    ) as error:
        decode(data)
    assert "\n" not in str(error.value)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    refused(trap)
    refused(len(trap).to_bytes(8, "little") + trap)
    assert not (tmp_path / "sprung").exists()


def test_no_class_outside_the_list_is_ever_called(tmp_path: Path) -> None:
    made = str(tmp_path / "sprung")
    for name in ("os.mkdir", "mkdir", "Path", "Unregistered", "eval", "Job", "__class__", ""):
        refused(message_of({"c": name, "f": {"path": made}}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "tree",
    [
        {"c": "Plan", "f": {"mu": 0.0, "extra": 1}},
        {"c": "Payload", "f": {}},
        {"c": "Plan", "f": [1]},
        {"c": "Plan"},
        {},
        {"t": "0"},
        {"d": [[1, 2, 3]]},
        {"d": [[{"d": []}, 1]]},
        {"n": "many"},
    ],
    ids=str,
)
def test_a_tree_that_is_no_message_is_refused(tree: Any) -> None:
    refused(message_of(tree))


def test_a_tree_too_deep_for_python_is_refused() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    refused(safetensors.torch.save({}, metadata={"flt": deep}))
    refused(safetensors.torch.save({}, metadata={"flt": '{"d":[[1,' * 5_000 + "1" + "]]}" * 5_000}))


def test_safetensors_of_another_program_are_refused() -> None:
    refused(safetensors.torch.save({"w": ROWS}))
    refused(safetensors.torch.save({"w": ROWS}, metadata={"format": "pt"}))


def test_bytes_that_were_cut_off_are_refused() -> None:
    data = encode(EXAMPLES[5])
    for length in [*range(0, 60), *range(60, len(data), 37), len(data) - 1]:
        refused(data[:length])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    refused(data)


def outcome(data: bytes) -> Any:
    try:
        return decode(data)
    except InputError as error:
        return str(error)


@given(st.integers(4, 6), st.integers(0), st.integers(0, 255))
@settings(max_examples=300)
def test_a_changed_byte_gives_a_registered_value_or_one_line(example: int, at: int, byte: int) -> None:
    whole = bytearray(encode(EXAMPLES[example]))
    whole[at % len(whole)] = byte
    found = outcome(bytes(whole))
    if isinstance(found, str):
        assert found.startswith("message=<")
        assert "\n" not in found
    else:
        assert codec._MESSAGES.get(codec._name(type(found))) is type(found)


def test_only_names_numbers_and_ids_are_in_the_header() -> None:
    """Nothing of the process that wrote it: no path, no module, no time."""
    data = encode(Update((3, 1), 7, {"w": ROWS}, LORA_FACTORS, 0, 120, 10))
    assert set(header(data)) == {"__metadata__", "0"}
    assert set(header(data)["__metadata__"]) == {"flt"}
    assert json.loads(header(data)["__metadata__"]["flt"])["c"] == "Update"
