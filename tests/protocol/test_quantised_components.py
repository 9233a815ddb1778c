"""Packed messages: what the receiver reads, against vectors quantised one by one; and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import jobs_of, layout_of, random_weights, update_of, view_of

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.freeze import Freeze
from flt.core.errors import InputError
from flt.protocol.messages import Packed, PackedUpdate, Payload, Plan, Update, decode, encode
from flt.protocol.quantise import BITS, dequantise, quantise
from flt.protocol.quantised_components import pack_payload, pack_update, unpack_payload, unpack_update
from flt.server.aggregation import ServerAggregation

LAYOUT = layout_of(6)
PLAN = Plan()
KEPT = {"x": (0, 2, 5), "y": (1,)}
SOME = {("x", 0): 2, ("x", 1): 32, ("x", 2): 16, ("y", 0): 4}
pairs_of = st.fixed_dictionaries(
    {name: st.sets(st.integers(0, 5)).map(lambda ids: tuple(sorted(ids))) for name in "xy"}
)


def update(kept: dict[str, tuple[int, ...]] | None = None) -> Update:
    return update_of(view_of(LAYOUT), (0, 0), KEPT if kept is None else kept)


def close_to(vector: torch.Tensor, bits: int) -> list[float]:
    return vector.tolist() if bits == 32 else dequantise(*quantise(vector.numpy(), bits)).tolist()


@settings(max_examples=40, deadline=None)
@given(pairs_of, st.randoms(use_true_random=False))
def test_each_vector_comes_out_as_it_is_quantised_at_its_pairs_precision(kept: dict, random: object) -> None:
    sent = update(kept)
    bits = {(layer, at): random.choice((0, *BITS)) for layer, ids in kept.items() for at in range(len(ids))}  # type: ignore[attr-defined]  # hypothesis' random
    arrived = unpack_update(decode(encode(pack_update(sent, LAYOUT, bits))), LAYOUT, PLAN)
    assert type(arrived) is Update
    assert torch.equal(arrived.tensors["head"], sent.tensors["head"])
    assert sorted(arrived.tensors) == sorted(sent.tensors)
    for layer, ids in kept.items():
        left = [at for at in range(len(ids)) if bits[layer, at]]
        assert arrived.kept[layer] == tuple(ids[at] for at in left)
        assert arrived.tensors[f"{layer}.A"].shape == LAYOUT.shape(f"{layer}.A", arrived.kept)
        assert arrived.tensors[f"{layer}.B"].shape == LAYOUT.shape(f"{layer}.B", arrived.kept)
        for new, at in enumerate(left):
            a, b = sent.tensors[f"{layer}.A"][at], sent.tensors[f"{layer}.B"][:, at]
            assert arrived.tensors[f"{layer}.A"][new].tolist() == close_to(a, bits[layer, at])
            assert arrived.tensors[f"{layer}.B"][:, new].tolist() == close_to(b, bits[layer, at])
    rest = {f.name for f in dataclasses.fields(Update)} - {"tensors", "kept"}
    assert all(getattr(arrived, name) == getattr(sent, name) for name in rest)


def test_the_packed_numbers_are_those_of_their_bits_and_no_more() -> None:
    """x has vectors of 4 (a) and 5 (b) numbers, y of 6 and 3."""
    packed = pack_update(update(), LAYOUT, SOME).packed
    assert packed.bits.tolist() == [2, 32, 16, 4]
    assert packed.codes.numel() == (1 + 2) + (16 + 20) + (8 + 10) + (3 + 2)
    assert packed.scales.numel() == 3 * 2


def test_the_order_in_which_precisions_are_listed_does_not_matter() -> None:
    listed = dict(reversed(SOME.items()))
    assert encode(pack_update(update(), LAYOUT, listed)) == encode(pack_update(update(), LAYOUT, SOME))


def test_only_what_travels_is_packed() -> None:
    plan = Plan(private=("A",))
    sent = dataclasses.replace(update(), tensors={n: t for n, t in update().tensors.items() if not n.endswith("A")})
    closed = pack_update(sent, LAYOUT, dict.fromkeys(SOME, 32))
    assert closed.packed.codes.numel() == 4 * (3 * 5 + 3)
    arrived = unpack_update(closed, LAYOUT, plan)
    assert all(torch.equal(arrived.tensors[name], sent.tensors[name]) for name in ("x.B", "y.B", "head"))
    assert sorted(arrived.tensors) == ["head", "x.B", "y.B"]


def test_a_payload_loses_dropped_pairs_from_what_is_held_and_from_what_trains() -> None:
    weights = random_weights(LAYOUT, 0)
    held = {"x": (0, 2, 5), "y": (1, 4)}
    tensors = {name: LAYOUT.take(name, tensor, held) for name, tensor in weights.items()}
    payload = Payload((1, 0), 0, PLAN, tensors, held, {"x": (2, 5), "y": (1,)})
    bits = {("x", 0): 32, ("x", 1): 0, ("x", 2): 32, ("y", 0): 0, ("y", 1): 32}
    arrived = unpack_payload(decode(encode(pack_payload(payload, LAYOUT, bits))), LAYOUT)
    assert (arrived.held, arrived.kept) == ({"x": (0, 5), "y": (4,)}, {"x": (5,), "y": ()})
    for name in tensors:
        assert torch.equal(arrived.tensors[name], LAYOUT.take(name, weights[name], arrived.held))
    assert unpack_payload(payload, LAYOUT) is payload


def test_what_is_not_packed_stays_as_it_is() -> None:
    plain = update()
    assert unpack_update(plain, LAYOUT, PLAN) is plain


# ---------------------------------------------------------------------------------------------- refused

BAD: dict[str, tuple[Callable[[Packed], Packed], str]] = {
    "a precision that isn't one": (lambda p: dataclasses.replace(p, bits=p.bits + 1), "job 0: bits=.*4 precisions"),
    "too few precisions": (lambda p: dataclasses.replace(p, bits=p.bits[1:]), "job 0: bits=.*allowed is 4"),
    "too few scales": (lambda p: dataclasses.replace(p, scales=p.scales[1:]), "job 0: scales=5: .*allowed is 6"),
    "too many codes": (
        lambda p: dataclasses.replace(p, codes=torch.cat([p.codes, p.codes])), "job 0: codes=124: .*allowed is 62",
    ),
    "codes of a lower precision": (
        lambda p: dataclasses.replace(p, bits=torch.tensor([2, 2, 16, 4], dtype=torch.uint8)), "job 0: scales=6",
    ),
    "a scale that isn't finite": (
        lambda p: dataclasses.replace(p, scales=torch.full_like(p.scales, float("inf"))), "job 0: x.A=.*not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_update_is_refused_naming_the_client(name: str) -> None:
    change, message = BAD[name]
    server = ServerAggregation(Recipe(Mean(), selection=Freeze()), LAYOUT, 1, 0, {})
    state = server.initial(random_weights(LAYOUT, 0))
    good = pack_update(update(), LAYOUT, SOME)
    assert server.validated(state, jobs_of(4)[0], good).kept == KEPT
    bad = PackedUpdate(**{**vars(good), "packed": change(good.packed)})
    with pytest.raises(InputError, match=f"^update of client 0, {message}") as error:
        server.validated(state, jobs_of(4)[0], bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bits", BITS)
def test_a_number_that_is_not_finite_is_found_at_every_precision(bits: int) -> None:
    sent = update()
    sent.tensors["y.B"][1, 0] = float("nan")
    server = ServerAggregation(Recipe(Mean(), selection=Freeze()), LAYOUT, 1, 0, {})
    state, closed = server.initial(random_weights(LAYOUT, 0)), pack_update(sent, LAYOUT, dict.fromkeys(SOME, bits))
    with pytest.raises(InputError, match="^update of client 0, job 0: y.B=.* not finite"):
        server.validated(state, jobs_of(4)[0], closed)


@pytest.mark.parametrize(
    "field",
    [
        {"bits": torch.ones(2)},
        {"scales": torch.ones(1, dtype=torch.float64)},
        {"codes": torch.ones((2, 2), dtype=torch.uint8)},
        {"codes": None},
    ],
    ids=lambda field: next(iter(field)),
)
def test_tensors_of_another_kind_are_refused_by_the_codec(field: dict) -> None:
    good = Packed(torch.zeros(0, dtype=torch.uint8), torch.zeros(0), torch.zeros(0, dtype=torch.uint8))
    data = encode(PackedUpdate(**vars(update()), packed=good))
    bad = object.__new__(Packed)
    for name, value in {**vars(good), **field}.items():
        object.__setattr__(bad, name, value)
    hostile = encode(PackedUpdate(**vars(update()), packed=bad))
    assert isinstance(decode(data), PackedUpdate)
    with pytest.raises(InputError, match=f"a message written by flt$|{next(iter(field))}"):
        decode(hostile)
