"""How many evaluations a run takes: a model that was measured isn't measured again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from received import CENTRAL, OTHER, counted, federated, losses, private_b
from toys import Planned, toy_clients

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.truncate import Truncate
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.evaluation_memo import Memo, fingerprint
from flt.protocol.messages import Plan


@pytest.mark.slow
@pytest.mark.parametrize(("by", "models"), [("first", 3), ("random", 4)])
def test_jobs_with_equal_sets_share_an_evaluation_and_the_full_model_is_the_global_one(by: str, models: int) -> None:
    """Ranks 1, 2, 2 and 4: the last is the global model of the round before, which is known after round 1."""
    federator = federated(Recipe(Mean(), selection=Truncate(by)), rounds=3, cohort=None)
    counts = counted(federator)
    federator.fit()
    assert counts[id(CENTRAL)] == models + (models - 1) * 2 + 3


def test_private_tensors_make_models_of_their_own_once_they_differ() -> None:
    federator = federated(Recipe(Mean(), plan=Planned(make=private_b)), rounds=3, cohort=None, clients=toy_clients(3))
    counts = counted(federator)
    federator.fit()
    assert counts[id(CENTRAL)] == 1 + 3 + 3  # and no global model
    assert len(set(losses(federator))) == 3


def test_private_pairs_that_were_never_trained_are_told_apart_by_their_ids() -> None:
    plan = Plan(train=("A", "B", "head"), private=("A", "B"))
    recipe = Recipe(Mean(), plan=Planned(make=lambda round: plan), selection=Truncate("random"))
    federator = federated(recipe, rounds=1, cohort=None)
    for name, tensor in federator.engine.local_trainer.initial.items():
        federator.engine.local_trainer.initial[name] = torch.randn(
            tensor.shape, generator=torch.Generator().manual_seed(1)
        )
    counts = counted(federator)
    federator.fit()
    held = {str(sorted(payload.held.items())) for payload, _ in federator.callbacks[-1].rounds[0]}  # type: ignore[attr-defined]
    assert counts[id(CENTRAL)] == len(held) > 1


def test_a_global_model_that_stays_and_an_equal_test_split_are_not_evaluated_again() -> None:
    federator = federated(Recipe(Mean()), rounds=4, test={"task0": CENTRAL, "task1": CENTRAL})
    counts = counted(federator)
    federator.sampler = lambda clients, seed, round: [] if round in (1, 2) else clients
    federator.fit()
    assert counts[id(CENTRAL)] == 1 + 2
    assert len({*losses(federator, "round/val_loss")}) == 2
    assert federator.history[-1]["test/loss"] == federator.history[-1]["round/val_loss"]


def test_what_the_last_round_did_not_ask_for_is_forgotten() -> None:
    memo, asked = Memo(), []
    models = ["a", "a", "b", "c", "a"]
    for model in models:
        memo.turn()
        for _ in range(2):
            assert memo(model, CENTRAL, lambda m=model: asked.append(m) or {"x": ord(m)}) == {"x": ord(model)}
        memo("always", CENTRAL, lambda: asked.append("always") or {})
        assert len(memo) <= 3
    assert asked == ["a", "always", "b", "c", "a"]


def test_the_same_model_on_other_data_is_another_thing() -> None:
    memo = Memo()
    assert [memo("a", data, lambda d=data: {"x": len(d)})["x"] for data in (CENTRAL, OTHER)] == [80, 60]


def test_fingerprints_tell_names_shapes_types_bits_versions_and_pairs() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    others = [
        (0, {"y": x}, None), (1, {"x": x}, None), (0, {"x": x.T}, None), (0, {"x": x.reshape(4)}, None),
        (0, {"x": x.double()}, None), (0, {"x": x.bfloat16()}, None), (0, {"x": x, "y": x}, None), (0, {}, None),
        (0, {"x": torch.nextafter(x, x + 1)}, None), (0, {"x": x}, {"l": (0,)}), (0, {"x": x}, {"l": (1,)}),
    ]  # fmt: skip
    found = [fingerprint(*other) for other in others]
    assert len({*found, fingerprint(0, {"x": x})}) == len(others) + 1
    assert fingerprint(0, {"x": x, "y": x[0, 0]}) == fingerprint(0, {"y": x[0, 0].clone(), "x": x.T.contiguous().T})


def test_the_same_adapter_on_another_base_is_another_model() -> None:
    federator = federated(Recipe(Stacking()), rounds=1)
    evaluate: Evaluate = federator.callbacks[0]  # type: ignore[assignment]
    first = evaluate.of_group(federator, 0, CENTRAL)
    name = "fc1.base_layer.weight"
    initial = federator.server.base
    changed = federator.state.base.advance({name: (initial[name] + 1.0,)}, initial)
    federator.state = dataclasses.replace(federator.state, base=changed)
    assert evaluate.of_group(federator, 0, CENTRAL)["val_loss"] != first["val_loss"]
