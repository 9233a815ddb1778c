"""Tokens without padding, one behind another: they compute what each text computes alone."""

from __future__ import annotations

import pytest
import torch
from slowly import slowly
from stacks import assert_equal, assignments_of, batched, compared, federator_of
from torch import Tensor
from torch.nn import functional as F

from flt.data.stores import IGNORED
from flt.engines.batched.batches import JointBatch
from flt.engines.batched.token_packing import Packing, TokenPacker
from flt.engines.batched.verify import _with_padding

pytestmark = pytest.mark.slow  # whole runs and fits


LENGTHS = (3, 6, 1, 2)
MASK = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()


def packing(mask: Tensor = MASK, jobs: int = 2) -> Packing:
    found = Packing.of(mask, jobs)
    assert found is not None
    return found


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), requires_grad=True)


def begun(one_query: bool = False, packed: bool = True) -> TokenPacker:
    tokens = TokenPacker()
    tokens.begin(MASK if packed else None, 2)
    tokens.packed, tokens.one_query = packed, one_query
    return tokens


# ---------------------------------------------------------------------------------------------- packing


def test_packed_tokens_are_the_real_ones_row_by_row() -> None:
    x = values(4, 6, 5)
    expected = torch.cat([row[:length] for row, length in zip(x, LENGTHS, strict=True)])
    assert torch.equal(packing().pack(x), expected[None])
    assert torch.equal(packing().unpack(packing().pack(x))[MASK.bool()], expected)
    assert packing().counts == (9, 3)


def test_gradients_pass_as_through_plain_indexing_and_padding_gets_none() -> None:
    x, weight = values(4, 6, 5), torch.randn(4, 6, 5)
    there = packing()
    (found,) = torch.autograd.grad((there.unpack(there.pack(x) * 2) * weight).sum(), x)
    assert torch.equal(found, 2 * weight * MASK[..., None])


def test_what_is_spread_comes_back_by_the_first_token() -> None:
    x, there = values(4, 5), packing()
    out = there.spread(x)
    assert torch.equal(out[0], x.repeat_interleave(torch.tensor(LENGTHS), 0))
    (found,) = torch.autograd.grad(out[0, there.starts].square().sum(), x)
    assert torch.equal(found, 2 * x)


@pytest.mark.parametrize(
    "mask",
    [None, torch.ones(4, 6), MASK.flip(1), MASK[:, None].expand(4, 6, 6)],
    ids=["none", "no padding", "padding in front", "of pairs"],
)
def test_rows_stay_where_nothing_is_saved_or_the_first_place_is_padding(mask: Tensor | None) -> None:
    assert Packing.of(mask, 2) is None


# ---------------------------------------------------------------------------------------------- attention


def heads(x: Tensor) -> Tensor:
    """(rows, length, 2 * n) -> (rows, 2, length, n)."""
    return x.unflatten(2, (2, -1)).transpose(1, 2)


def each_alone(x: Tensor) -> list[Tensor]:
    """Attention of each text to itself, (length, width), by the textbook."""
    found = []
    for row, length in zip(x, LENGTHS, strict=True):
        own = heads(row[None, :length])
        weights = torch.softmax(own @ own.transpose(2, 3) / own.shape[-1] ** 0.5, 3)
        found.append((weights @ own).transpose(1, 2).flatten(2)[0])
    return found


@pytest.mark.parametrize("per_query", [True, False])
def test_packed_attention_is_that_of_each_text_alone(per_query: bool) -> None:
    x, there = values(4, 6, 8), packing()
    mask = MASK.bool()[:, None, None].expand(4, 1, 6 if per_query else 1, 6)
    with begun():
        own = heads(there.pack(x))
        out = F.scaled_dot_product_attention(own, own, own, attn_mask=mask).transpose(1, 2).flatten(2)
    expected = torch.cat(each_alone(x))
    torch.testing.assert_close(out[0], expected)
    for found, other in zip(*(torch.autograd.grad(its.square().sum(), x) for its in (out, expected)), strict=True):
        torch.testing.assert_close(found, other)


@pytest.mark.parametrize("packed", [True, False])
def test_one_query_is_that_of_the_first_token_for_all_of_them(packed: bool) -> None:
    x, there, mask = values(4, 6, 8), packing(), MASK.bool()[:, None, None].expand(4, 1, 6, 6)
    with begun(one_query=True, packed=packed):
        own = heads(there.pack(x) if packed else x)
        out = F.scaled_dot_product_attention(own, own, own, mask).transpose(1, 2).flatten(2)
    first = torch.stack([row[0] for row in each_alone(x)])
    found = out[0, there.starts] if packed else out[:, 0]
    torch.testing.assert_close(found, first)
    assert out.shape[:2] == ((1, 12) if packed else (4, 6))
    for one, other in zip(*(torch.autograd.grad(its.square().sum(), x) for its in (found, first)), strict=True):
        torch.testing.assert_close(one, other)


def test_attention_outside_of_the_blocks_is_left_alone() -> None:
    x, tokens = heads(values(4, 6, 8)), TokenPacker()
    tokens.begin(MASK, 2)
    with tokens:
        assert torch.equal(F.scaled_dot_product_attention(x, x, x), F.scaled_dot_product_attention(x, x, x))


# ---------------------------------------------------------------------------------------------- in the engine


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "gpt2", *slowly("roberta", "electra", "llama")])
def test_no_block_sees_padding_whatever_the_encoder(kind: str) -> None:
    _, _, engine = compared(federator_of(kind=kind, sizes=(11, 6, 17, 3)))
    assert not engine._refused
    (shortcut,) = engine._verified.values()
    assert shortcut.packed
    assert (shortcut.cut_after is not None) == (kind in {"bert", "roberta", "distilbert", "electra"})


def test_a_block_computes_real_tokens_alone() -> None:
    federator = federator_of()
    model, seen, real = federator.engine.local_trainer.module.model, [], []
    hooks = [
        model.register_forward_pre_hook(
            lambda module, args, kwargs: real.append(int(kwargs["attention_mask"].sum())), with_kwargs=True
        ),
        model.bert.encoder.layer[0].intermediate.register_forward_hook(
            lambda module, args, output: seen.append(tuple(output.shape[:2]))
        ),
    ]
    list(batched(federator).run(assignments_of(federator)))
    for hook in hooks:
        hook.remove()
    packed = [(tokens, all_of) for (rows, tokens), all_of in zip(seen, real, strict=True) if rows == 1]
    assert len(packed) >= 3
    assert all(tokens == all_of for tokens, all_of in packed)


def test_where_a_block_mixes_neighbours_padding_stays() -> None:
    federator = federator_of()
    output = federator.engine.local_trainer.module.model.bert.encoder.layer[0].output
    forward = output.forward
    output.forward = lambda x, y: forward(x, y) + F.pad(y, (0, 0, 1, 0))[:, :-1]
    _, _, engine = compared(federator)
    (shortcut,) = engine._verified.values()
    assert not shortcut.packed


@pytest.mark.parametrize("jobs", [None, 4])
def test_texts_one_by_one_are_not_taken_for_what_several_would_do(jobs: int | None) -> None:
    """ModernBERT's residual adds the first token alone to all tokens: right for one text, wrong for several."""
    federator = federator_of(kind="modernbert", sizes=(5, 6, 7, 4), batch_size=1)
    _, _, engine = compared(federator, jobs)
    (shortcut,) = engine._verified.values()
    assert shortcut.cut_after is None


def test_one_job_alone_proves_nothing_of_several() -> None:
    federator = federator_of(kind="modernbert", sizes=(5, 6, 7, 4), batch_size=1)
    assignments = assignments_of(federator)
    engine = batched(federator, 4)
    list(engine.run(assignments[:1]))
    assert_equal(list(engine.run(assignments)), list(federator.engine.run(assignments)))


def frame(rows: int = 4, labels: Tensor | None = None) -> JointBatch:
    ids = torch.arange(rows * 6).view(rows, 6) + 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones(rows, 6).long()}
    return JointBatch((0, 1), inputs, torch.zeros(2, rows // 2) if labels is None else labels, (2, 2))


def test_the_proof_sees_padding_that_no_text_is_cut_for() -> None:
    found = _with_padding(frame(), 0)
    assert found.inputs["attention_mask"].sum(1).tolist() == [6, 6, 6, 6]
    assert Packing.of(found.inputs["attention_mask"], 2) is not None
    assert torch.equal(found.inputs["input_ids"][:, :6], frame().inputs["input_ids"])
    assert torch.equal(found.labels, frame().labels)
    tokens = _with_padding(frame(labels=torch.ones(2, 2, 6).long()), 0).labels
    assert (tokens[..., 6:] == IGNORED).all()


def test_an_engine_without_a_fused_attention_keeps_its_padding() -> None:
    federator = federator_of()
    federator.engine.local_trainer.module.model.set_attn_implementation("eager")
    _, _, engine = compared(federator)
    (shortcut,) = engine._verified.values()
    assert not shortcut.packed
