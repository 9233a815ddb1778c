"""Joint heads in the layout: rows of several heads, put together for a job and taken apart for the server."""

from __future__ import annotations

import pytest
import torch
from several_heads import toy_heads
from toys import Toy

from flt.protocol.entries import Entry
from flt.protocol.layout import Layout

WIDTHS = {"a": 2, "b": 3, "c": 4}
HEADS = toy_heads(WIDTHS)
SERVER = {f"{name}#{head}": value for head, own in HEADS.items() for name, value in own.items()}


@pytest.fixture
def layout() -> Layout:
    return Layout.of(Toy(), ("head",)).with_heads(HEADS)


def test_a_joint_head_has_the_rows_of_its_heads_one_below_the_other(layout: Layout) -> None:
    found = layout.joined(SERVER, "a+c")
    expected = torch.cat([HEADS["a"]["head.weight"], HEADS["c"]["head.weight"]])
    assert torch.equal(found["head.weight"], expected)
    assert layout.for_head("a+c").entries["head.weight"] == Entry("head", (6, 10))
    assert layout.for_head("a+c").entries["head.bias"].shape == (6,)


def test_what_is_taken_apart_is_what_was_put_together(layout: Layout) -> None:
    for head in ("a", "b+c", "a+b+c"):
        parts = layout.split(layout.joined(SERVER, head), head)
        own = {at for at in SERVER if at.partition("#")[2] in head.split("+")}
        assert parts.keys() == own
        assert all(torch.equal(parts[at], SERVER[at]) for at in own)


def test_the_parts_of_a_joint_head_share_no_memory_and_have_its_bytes(layout: Layout) -> None:
    joint = layout.joined(SERVER, "a+b")
    parts = layout.split(joint, "a+b")
    assert len({part.untyped_storage().data_ptr() for part in parts.values()}) == len(parts)
    assert sum(part.nbytes for part in parts.values()) == sum(tensor.nbytes for tensor in joint.values())


def test_a_slot_of_a_head_that_no_job_has_trained_is_zero(layout: Layout) -> None:
    found = layout.joined({"head.bias#a": torch.ones(2)}, "a+b")
    assert found["head.bias"].tolist() == [1, 1, 0, 0, 0]
    assert layout.joined({"head.bias#a": torch.ones(2)}, "b+c") == {}


def test_the_name_of_a_head_may_contain_a_plus_where_it_is_one_head() -> None:
    heads = toy_heads({"a+b": 2, "c": 2})
    layout = Layout.of(Toy(), ("head",)).with_heads(heads)
    assert layout.heads_of("a+b") == ("a+b",)
    assert layout.joined({"head.bias#a+b": torch.ones(2)}, "a+b")["head.bias"].tolist() == [1, 1]


def test_without_heads_of_their_own_nothing_is_renamed() -> None:
    layout = Layout.of(Toy(), ("head",))
    tensors = {"head.weight": torch.ones(3, 10)}
    assert layout.heads_of("") == ()
    assert layout.joined(tensors, "") == tensors == layout.split(tensors, "")
