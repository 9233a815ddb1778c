"""Random damage to encoded messages, states and checkpoints: bytes, values and types of fields are changed."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from benchmarks.tools.fuzz.running import Make

from flt.callbacks.checkpoint import Snapshot
from flt.engines.distributed import Share
from flt.engines.process_group import StatusMessage
from flt.protocol.failure import Failure
from flt.protocol.messages import BaseDelta, Packed, PackedUpdate, Payload, Plan, Update, decode, encode
from flt.protocol.state import BaseState, ClientState, GroupState, ServerState

WEIGHTS = {"A": torch.ones(2, 4), "B": torch.zeros(4, 2), "n": torch.tensor([1, 2])}
IDS = {"layer": (0, 1)}
GROUP = GroupState(WEIGHTS, {"layer": torch.ones(2, dtype=torch.float64)}, {"c": WEIGHTS})
BASE = BaseState(2, {"W": (1, torch.ones(2, 2))}, (BaseDelta(2, {"W": (torch.ones(2, 2),)}),), {0: 1})
SERVER = ServerState(3, {0: GROUP, 1: GROUP}, IDS, {(0, 0): 1}, BASE, 0, {(0, 0): {"layer": torch.ones(2)}})
UPDATE = Update((0, 0), 3, WEIGHTS, IDS, 0, 12, 10, {"layer": ((0, 1), torch.ones(2))}, {"lr": 0.1}, {"loss": 0.5})
PACKED = Packed(torch.tensor([2], dtype=torch.uint8), torch.ones(2), torch.ones(3, dtype=torch.uint8))
EXAMPLES: list[Any] = [
    Plan(), Payload((0, 0), 3, Plan(), WEIGHTS, IDS, IDS, {"c": WEIGHTS}, 2, BASE.recent), UPDATE,
    PackedUpdate(**vars(UPDATE), packed=PACKED), ClientState(WEIGHTS, {"c_i": WEIGHTS}), SERVER,
    Snapshot(SERVER, ({"loss": 0.1, "nan": math.nan},), {"Timer 0": {"total": 1.0, "last": {(0, 0): (1, 2)}}}),
    Share((UPDATE,), {("totals", "w", "A"): ((2, 4), 1, 1.0)}, {"bytes": 1}, {(0, 0): ("f", "c")},
          (Failure((1, 0), "why"),), 2),
    StatusMessage("said", "why", True, 15),
]  # fmt: skip
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 2**31, 2**63, -(2**63) - 1, int("9" * 400), 1e308, "", "x", "x" * 1000, "\0", [],
    [1], [[1, 2]], {}, {"d": []}, {"d": [[1, 2]]}, {"d": [[{"d": []}, 1]]}, {"d": [[1, 1], [1, 2]]}, {"n": "nan"},
    {"n": "inf"}, {"n": "x"}, {"n": 1}, {"t": "0"}, {"t": "99"}, {"t": 0}, {"c": "Plan", "f": {}},
    {"c": "os.system", "f": {}}, {"c": "Plan", "f": {"mu": {"n": "nan"}}},
    {"c": "Failure", "f": {"job": [0], "why": 1}}, {"c": ["Plan"], "f": {}}, {"f": {}}, {"c": "Plan", "f": []},
    [[]] * 50,
]  # fmt: skip
DTYPES = [torch.float64, torch.int64, torch.bool, torch.uint8, torch.bfloat16, torch.float8_e4m3fn, torch.complex64]


def split(data: bytes) -> tuple[dict[str, Any], Any, bytes]:
    """Returns the header, the JSON form of the value, and the bytes of the tensors."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["flt"]), data[8 + size :]


def joined(header: dict[str, Any], tree: Any, rest: bytes) -> bytes:
    """Builds a message from the parts that :func:`split` returned."""
    text = json.dumps({**header, "__metadata__": {"flt": json.dumps(tree)}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yields (container, key) of every value inside a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def swap(draw: random.Random, tree: Any, values: list[Any]) -> None:
    """Replaces a value inside a tree by one of ``values`` or by another value of the tree, or removes it."""
    places = list(_places(tree)) or [([0], 0)]
    (node, key), (other, its), action = draw.choice(places), draw.choice(places), draw.random()
    if action < 0.1 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = copy.deepcopy(draw.choice(values) if action < 0.7 else other[its])


def swapped(draw: random.Random, data: bytes) -> bytes:
    """Replaces some values of a message by values of other types, or by other values of the message."""
    header, tree, rest = split(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        swap(draw, tree, VALUES)
    return joined(header, tree, rest)


def retyped(draw: random.Random, data: bytes) -> bytes:
    """Gives a tensor of a message another type, shape or values."""
    _, tree, _ = split(data)
    tensors = safetensors.torch.load(data)
    retyped_tensor(draw, tensors)
    return safetensors.torch.save(tensors, metadata={"flt": json.dumps(tree)})


def retyped_tensor(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    """Gives one of some tensors another type, shape or values."""
    if not tensors:
        return
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: tensor.to(draw.choice(DTYPES)), lambda: tensor.reshape(-1), lambda: tensor[:0],
        lambda: torch.full_like(tensor.float(), draw.choice((math.nan, math.inf, 1e38, -1e38, 0.0))),
        lambda: torch.zeros(draw.choice(((), (1,), (3, 3), (0, 4), (1, 1, 1)))),
    ]  # fmt: skip
    tensors[name] = (draw.choice(changes) if tensor.dim() else changes[0])().contiguous()


def mutated(draw: random.Random, data: bytes) -> bytes:
    """Changes, removes or doubles some bytes."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 2, 8))):
        at = draw.randrange(len(found) or 1)
        found[at : at + draw.choice((0, 1, 4))] = bytes(draw.randrange(256) for _ in range(draw.choice((0, 1, 4))))
    return bytes(found[: draw.randrange(len(found) + 1)] if draw.random() < 0.1 else found)


DAMAGE = (swapped, swapped, swapped, retyped, mutated)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Damages a message in one of the ways above."""
    return draw.choice(DAMAGE)(draw, data)


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a damaged message. If it is accepted, it is encoded again: all of its types have to be right."""
    data = damaged(draw, encode(draw.choice(EXAMPLES)))
    return repr(data), lambda: encode(decode(data))


FUZZERS: dict[str, Make] = {"messages": example}
