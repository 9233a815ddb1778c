"""The base's change as a part of an adapter: the weights that it leads to, and what peft makes of its file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from lora_exports import X, loaded
from toys import Toy, toy_federator

from flt.algorithm.plan import FullPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.residual import Residual
from flt.algorithm.rule.stacking import Stacking
from flt.export.base_delta import with_change
from flt.export.final_models import final_models
from flt.export.metadata import Card
from flt.export.write import export
from flt.protocol.entries import Entry, Layer
from flt.protocol.layout import Layout
from flt.protocol.state import BaseState
from flt.server.federator import Federator

OUT, IN, SCALE = 5, 7, 0.6


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer(transposed: bool) -> tuple[Layer, Layout, dict[str, torch.Tensor]]:
    made = Layer(2, SCALE, "w", "a", "b", transposed)
    entries = {"a": Entry("A", (2, IN), "fc", 0), "b": Entry("B", (OUT, 2), "fc", 1), "w": Entry("base", (OUT, IN))}
    return made, Layout(entries, {"fc": made}), {"a": normal(2, IN), "b": normal(OUT, 2)}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ranks", [(1,), (1, 1), (3, 2)], ids=["one version", "two", "more than the weight's numbers"])
def test_pairs_and_replaced_weights_lead_to_the_weight_of_the_last_version(
    ranks: tuple[int, ...], transposed: bool
) -> None:
    fc, layout, tensors = layer(transposed)
    initial = {"w": normal(IN, OUT) if transposed else normal(OUT, IN)}
    base = BaseState()
    for rank in ranks:
        base = base.advance({"w": fc.stored(normal(OUT, rank), normal(rank, IN))}, initial)
    wider, replaced = with_change(layout, base, tensors)
    folded = sum(ranks) * (OUT + IN) > OUT * IN
    assert replaced == (["w"] if folded else [])
    assert wider["a"].shape == (2 if folded else 2 + sum(ranks), IN)

    def product(of: dict[str, torch.Tensor]) -> torch.Tensor:
        whole = SCALE * of["b"].double() @ of["a"].double()
        return whole.T if transposed else whole

    now = base.value("w", initial).double()
    start = now if folded else initial["w"].double()
    torch.testing.assert_close(start + product(wider), now + product(tensors), rtol=0, atol=1e-5)


def test_without_a_change_the_adapter_is_as_it_was() -> None:
    _, layout, tensors = layer(False)
    wider, replaced = with_change(layout, BaseState(), tensors)
    assert replaced == []
    assert all(torch.equal(wider[name], tensors[name]) for name in tensors)


RECIPES = {
    "factors of one round": (Recipe(Stacking()), 1, 1),
    "folded factors": (Recipe(Stacking()), 1, 4),
    "one layer folded": (Recipe(Stacking()), 2, 1),
    "residuals": (Recipe(Residual()), 2, 1),
    "whole weights": (Recipe(Mean(), plan=FullPlan(lr_factor=1.0)), 2, 2),
}


@pytest.mark.parametrize("case", RECIPES)
def test_peft_loads_a_delta_on_a_module_of_the_user_s_with_equal_logits(case: str, tmp_path: Path) -> None:
    recipe, rounds, rank = RECIPES[case]
    federator = toy_federator(recipe, rounds=rounds, rank=rank)
    base = untrained(federator)
    before = base(X)
    federator.fit()
    federator.engine.local_trainer.load(federator.state, 0)
    module, layout = federator.engine.local_trainer.module.eval(), federator.server.layout
    folder = export(module, layout, federator.state, tmp_path, Card(), final_models(federator), "delta")
    model = loaded(base, folder).eval()
    torch.testing.assert_close(model(X), module(X), rtol=0, atol=1e-6)
    assert not torch.allclose(model(X), before, atol=1e-3)


def untrained(federator: Federator) -> Toy:
    """The toy as it is before a federation, without its adapters."""
    toy, state = Toy(), federator.engine.local_trainer.module.state_dict()
    toy.load_state_dict({n.replace("base_layer.", ""): value for n, value in state.items() if "lora" not in n})
    return toy


def test_a_layer_without_living_pairs_still_brings_its_base_s_change(tmp_path: Path) -> None:
    federator = toy_federator(Recipe(Mean(), plan=FullPlan(lr_factor=1.0)))
    base = untrained(federator)
    federator.fit()
    state = dataclasses.replace(federator.state, alive={"fc1": (), "fc2": (0, 1)})
    federator.engine.local_trainer.load(state, 0)
    module = federator.engine.local_trainer.module.eval()
    folder = export(module, federator.server.layout, state, tmp_path, Card(), None, "delta")
    torch.testing.assert_close(loaded(base, folder).eval()(X), module(X), rtol=0, atol=1e-6)
