"""The frozen prefix: what it yields, what is skipped, what it is known by."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers
from torch import Tensor, nn

from flt.core.errors import InputError
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.blocks import blocks
from flt.models.frozen_prefix import Prefix, lower_blocks
from flt.models.label_name_head import LabelNameClassifier

KINDS = ["bert", "distilbert", "gpt2", "llama", "vit"]


def batch(kind: str) -> dict[str, Tensor]:
    if kind == "vit":
        return {"pixel_values": torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))}
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def counted(model: nn.Module) -> dict[str, int]:
    """How often the first linear layer of each block has computed."""
    calls = dict.fromkeys(blocks(model), 0)
    for name in calls:
        leaf = next(sub for sub in model.get_submodule(name).modules() if not list(sub.children()))

        def count(*_: Any, block: str = name) -> None:
            calls[block] += 1

        leaf.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lower", [1, 2])
def test_a_batch_with_its_activations_has_the_same_logits_and_the_lower_blocks_do_not_compute(
    kind: str, lower: int
) -> None:
    model = tiny.classifier(kind)
    expected = model(**batch(kind)).logits
    prefix = Prefix(model, blocks(model)[:lower])
    activations = prefix.activations(batch(kind))
    calls = counted(model)
    found = model(**batch(kind), prefix=activations).logits
    assert torch.equal(found, expected)
    assert list(calls.values()) == [0] * lower + [1] * (tiny.LAYERS - lower)
    other = model(**batch(kind), prefix=activations.flip(-1)).logits
    assert not torch.allclose(other, expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_activations_takes_the_usual_way_also_after_one_with_them(kind: str) -> None:
    model = tiny.classifier(kind)
    expected = model(**batch(kind)).logits
    prefix = Prefix(model, blocks(model)[:2])
    model(**batch(kind), prefix=prefix.activations(batch(kind)))
    calls = counted(model)
    assert torch.equal(model(**batch(kind)).logits, expected)
    assert list(calls.values()) == [1] * tiny.LAYERS


def test_a_forward_pass_that_fails_leaves_no_activations_behind() -> None:
    model = tiny.classifier("bert")
    prefix = Prefix(model, blocks(model)[:2])
    with pytest.raises((AttributeError, TypeError)):
        model(**batch("bert"), prefix=torch.zeros(2, 5, 16), nonsense=object(), labels="no tensor")
    expected = tiny.classifier("bert")(**batch("bert")).logits
    assert torch.equal(model(**batch("bert")).logits, expected)
    assert prefix.current is None


def test_the_blocks_above_are_not_computed_for_the_activations() -> None:
    model = tiny.classifier("bert")
    prefix = Prefix(model, blocks(model)[:1])
    calls = counted(model)
    prefix.activations(batch("bert"))
    assert list(calls.values()) == [1, 0, 0]


@pytest.mark.parametrize("name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.bias"])
def test_the_digest_changes_with_a_weight_below(name: str) -> None:
    model = tiny.classifier("bert")
    before = Prefix(model, blocks(model)[:2]).digest()
    model.get_parameter(name).data[0] += 1e-3
    assert Prefix(model, blocks(model)[:2]).digest() != before


def test_the_digest_does_not_change_with_a_weight_above_and_does_with_the_number_of_blocks() -> None:
    model = tiny.classifier("bert")
    before = Prefix(model, blocks(model)[:2]).digest()
    model.get_parameter("bert.encoder.layer.2.output.dense.bias").data[0] += 1e-3
    assert Prefix(model, blocks(model)[:2]).digest() == before
    assert Prefix(model, blocks(model)[:1]).digest() != before


def test_another_head_has_the_same_digest_and_another_architecture_has_not() -> None:
    digests = {}
    for classes in (2, 5):
        model = tiny.classifier("bert")
        other = tiny.classifier("bert", classes)
        other.bert.load_state_dict(model.bert.state_dict())
        digests[classes] = Prefix(other, blocks(other)[:2]).digest()
    named = LabelNameClassifier(model.bert, torch.eye(3, 16), 20.0)
    digests["names"] = Prefix(named, blocks(named)[:2]).digest()
    assert len(set(digests.values())) == 1
    model.config.layer_norm_eps *= 10
    assert Prefix(model, blocks(model)[:2]).digest() not in digests.values()


@pytest.mark.parametrize(("layers", "expected"), [("top1", [0, 1]), ("top2", [0])])
def test_the_prefix_ends_below_the_lowest_adapted_block(layers: str, expected: list[int]) -> None:
    model = tiny.classifier("bert")
    layout = attach(model, LoraSettings(), 0, layers)
    assert lower_blocks(model, layout, "") == [blocks(model)[i] for i in expected]


def test_without_a_block_below_the_adapters_there_is_no_prefix() -> None:
    model = tiny.classifier("bert")
    layout = attach(model, LoraSettings(), 0, "top3")
    with pytest.raises(InputError, match="prefix_cache=on.*nothing lies below.*model.adapt_layers=top1 to top2"):
        lower_blocks(model, layout, "")


def test_a_model_whose_blocks_hand_on_more_than_activations_is_refused_and_others_are_not() -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.DebertaV2Config(**size, vocab_size=12)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(InputError, match="prefix_cache=on: the blocks of DebertaV2Model hand on more"):
        Prefix(model, blocks(model)[:1]).check(batch("bert"))
    for kind in KINDS:
        Prefix(found := tiny.classifier(kind), blocks(found)[:1]).check(batch(kind))


def test_embeddings_that_train_are_refused() -> None:
    model = tiny.classifier("bert")
    layout = attach(model, LoraSettings(head="bert.embeddings"), 0, "top1")
    with pytest.raises(InputError, match=r"bert\.embeddings\S+ trains"):
        lower_blocks(model, layout, "")
