"""Serial adapters sit on what attention and feed-forward yield, before the residual: against NumPy, by backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from bottlenecks import SUBLAYERS, adapted_sums, array, by_hand
from torch import nn
from toys import Toy, toy_module

from flt.core.errors import InputError
from flt.models.adapters import c2a, houlsby
from flt.models.adapters.sublayers import PLACES, bottleneck, prepare
from flt.models.module import ClientModule, Optimizer


def test_a_bottleneck_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 5), (5, 2), (2, 5), (2,), (5,)]
    given = [torch.randn(shape, generator=generator) for shape in shapes]
    np.testing.assert_allclose(array(bottleneck(*given)), by_hand(*map(array, given)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("kind", SUBLAYERS)
def test_houlsbys_adapters_are_between_sub_layer_and_residual(kind: str, block: int) -> None:
    sums = adapted_sums(kind, lambda model: houlsby.attach(model, houlsby.HoulsbySettings(rank=3), 0), block)
    for (z, found, at), name in zip(sums, ("houlsby_attention", "houlsby_feed_forward"), strict=True):
        own = {key: array(value) for key, value in at.get_submodule(name).named_parameters()}
        np.testing.assert_allclose(found, by_hand(z, own["u"], own["d"], own["b1"], own["b2"]), rtol=1e-4, atol=1e-4)
        assert not np.allclose(found, z, atol=0.1)


def test_the_reference_knows_every_type_of_the_table() -> None:
    assert SUBLAYERS.keys() == PLACES.keys()


def test_the_uppermost_blocks_alone_are_adapted_where_asked_for() -> None:
    model = tiny.classifier("bert")
    layout = houlsby.attach(model, houlsby.HoulsbySettings(rank=2), 0, "top1")
    assert {name.partition(".houlsby")[0] for name in layout.names(["adapter"])} == {"bert.encoder.layer.2"}


@pytest.mark.parametrize(
    ("kind", "head", "expected"),
    [
        ("bert", None, ["classifier"]),
        ("distilbert", None, ["pre_classifier", "classifier"]),
        ("distilbert", "classifier", ["classifier"]),
        ("vit", "none", []),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_head_trains_and_with_distilbert_the_new_layer_before_it(
    kind: str, head: str | None, expected: list[str], wrapped: bool
) -> None:
    model = tiny.classifier(kind)
    module = ClientModule(model, 3, Optimizer()) if wrapped else model
    host = prepare(module, "houlsby", head, "all")
    prefix = "model." if wrapped else ""
    assert host.head == [f"{prefix}{name}" for name in expected]
    trains = {name.rpartition(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert trains == set(host.head)
    assert (host.root, host.width, host.classes, len(host.blocks)) == (model, 16, 3, tiny.LAYERS)


class Own(Toy):
    """A user's module around a model of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = tiny.classifier("bert").base_model
        self.top = nn.Linear(16, 5)


def test_a_users_module_is_adapted_in_the_model_that_it_holds() -> None:
    module = Own()
    layout = c2a.attach(module, c2a.C2ASettings(rank=2), 0)
    assert layout.names(["head"]) == ["top.bias", "top.weight"]
    assert all(name.startswith("encoder.encoder.layer.0.c2a.") for name in layout.names(["adapter"]))
    assert layout.entries["encoder.encoder.layer.0.c2a.label.weight"].shape == (8, 5)


class HeadFirst(Own):
    """A user's module that registers its head before the model."""

    def __init__(self) -> None:
        super().__init__()
        top = self.top
        del self.top
        self._modules = {"top": top, **self._modules}


@pytest.mark.parametrize("module", [Own, HeadFirst])
@pytest.mark.parametrize(("head", "classes"), [("top", 5), ("encoder.pooler.dense", 16), ("head", 3)])
def test_the_classes_are_those_of_the_chosen_head(module: type[Own], head: str, classes: int) -> None:
    made = module()
    layout = c2a.attach(made, c2a.C2ASettings(rank=2, head=head), 0)
    assert layout.entries["encoder.encoder.layer.0.c2a.label.weight"].shape == (8, classes)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (lambda: tiny.classifier("gpt2"), "of type gpt2"),
        (lambda: tiny.classifier("modernbert"), "of type modernbert"),
        (Toy, "no model of transformers"),
        (lambda: toy_module()[0], "no model of transformers"),
    ],
    ids=["gpt2", "modernbert", "a toy", "a toy with LoRA"],
)
@pytest.mark.parametrize("attach", [c2a.attach, houlsby.attach], ids=["c2a", "houlsby"])
def test_other_models_are_refused_with_the_types_that_go(
    attach: Callable[..., Any], module: Callable[[], nn.Module], why: str
) -> None:
    settings = c2a.C2ASettings() if attach is c2a.attach else houlsby.HoulsbySettings()
    with pytest.raises(InputError, match=rf"^adapter={settings.name}: .*{why}.*allowed is.*{', '.join(PLACES)}"):
        attach(module(), settings, 0)


@pytest.mark.parametrize("head", ["nope", "bert.nope"])
def test_a_head_that_isnt_there_is_refused(head: str) -> None:
    with pytest.raises(InputError, match=rf"^adapter.head={head}: allowed is none, or .*classifier"):
        houlsby.attach(tiny.classifier("bert"), houlsby.HoulsbySettings(head=head), 0)


def test_lora_of_the_users_own_is_not_mixed_with_another_adapter() -> None:
    from flt.models.adapters.lora import LoraSettings, attach

    model = tiny.classifier("bert")
    attach(model, LoraSettings(), 0)
    with pytest.raises(InputError, match="^adapter=houlsby: the module holds LoRA layers of its own; allowed is lora"):
        houlsby.attach(model, houlsby.HoulsbySettings(), 0)
