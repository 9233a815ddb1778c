"""Blocks: found in every type of model, and counted from the top."""

from __future__ import annotations

import pytest
import tiny
from torch import nn

from flt.core.errors import InputError
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.blocks import blocks, top_blocks


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama", "vit"])
def test_the_blocks_are_as_many_as_the_config_says_and_activations_pass_them_in_order(kind: str) -> None:
    model = tiny.classifier(kind)
    names = blocks(model)
    assert len(names) == model.config.num_hidden_layers == tiny.LAYERS
    assert len({type(model.get_submodule(name)) for name in names}) == 1
    assert [int(name.rpartition(".")[2]) for name in names] == [0, 1, 2]


@pytest.mark.parametrize("layers", ["top1", "top2"])
def test_upper_blocks_of_a_type_without_usual_targets_have_adapters_on_all_linear_layers(layers: str) -> None:
    model = tiny.classifier("modernbert")
    layout = attach(model, LoraSettings(), 0, layers)
    found = {name.partition("layers.")[2].partition(".")[0] for name in layout.layers}
    assert found == {str(i) for i in range(tiny.LAYERS - int(layers[-1]), tiny.LAYERS)}
    per_block = len([name for name in layout.layers if ".layers.2." in name])
    assert per_block > 2
    assert len(layout.layers) == per_block * int(layers[-1])


def test_adapters_that_are_there_already_stay_where_they_are() -> None:
    model = tiny.classifier("bert")
    attach(model, LoraSettings(), 0)
    with pytest.raises(InputError, match="model.adapt_layers=top1: the module holds adapters of its own"):
        attach(model, LoraSettings(), 0, "top1")


def test_lists_inside_blocks_are_not_the_blocks() -> None:
    inner = [nn.ModuleList([nn.Linear(2, 2) for _ in range(5)]) for _ in range(2)]
    assert blocks(nn.ModuleDict({"stack": nn.ModuleList(inner)})) == ["stack.0", "stack.1"]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="ModuleList of like blocks"):
        blocks(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("layers", ["top0", "top4", "top", "bottom1", "2", "top-1", "topx"])
def test_what_is_no_number_of_upper_blocks_is_refused_with_the_range(layers: str) -> None:
    with pytest.raises(InputError, match=f"model.adapt_layers={layers}: allowed is all, or top1 to top3"):
        top_blocks(tiny.classifier("bert"), layers)
