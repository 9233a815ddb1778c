"""Which models a federation has made, tensor by tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods import METHODS, clients_of
from toys import assert_same, toy_federator, weights_of

from flt.algorithm.plan import AdapterPlan
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.algorithm.selection.truncate import Truncate
from flt.export.final_models import final_models
from flt.export.places import SUBFOLDER


def test_one_group_has_one_model_at_the_living_pairs() -> None:
    federator = toy_federator(METHODS["sa_fedlora"][0], clients_of(3), rounds=4)
    federator.fit()
    (model,) = final_models(federator)
    assert (model.folder, model.gid, model.head) == ("", 0, "")
    layer = federator.server.layout.layers["fc1"]
    kept = list(federator.state.alive["fc1"])
    assert len(kept) == 2
    assert torch.equal(model.tensors[layer.a], weights_of(federator)[layer.a][kept])
    assert torch.equal(model.tensors[layer.b], weights_of(federator)[layer.b][:, kept])


def test_several_groups_have_a_model_each() -> None:
    federator = toy_federator(METHODS["fl_tac"][0], clients_of(3, jobs=2), rounds=1)
    federator.fit()
    models = final_models(federator)
    assert [model.folder for model in models] == ["group_1", "group_2"]
    for model in models:
        assert_same(model.tensors, weights_of(federator, model.gid))


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("name", ["fedsa_lora", "local"])
def test_where_a_part_is_private_each_client_that_trained_has_its_own(name: str, jobs: int) -> None:
    federator = toy_federator(METHODS[name][0], clients_of(3, jobs=jobs), rounds=1, cohort=2)
    federator.fit()
    models = {model.folder: model.tensors for model in final_models(federator)}
    trained = sorted(federator.client_states)
    assert len(trained) == 2 * jobs
    assert list(models) == [f"client_{c}" + (f"/job_{i}" if jobs > 1 else "") for c, i in trained]
    assert all(SUBFOLDER.fullmatch(name) for name in models)
    for job, tensors in zip(trained, models.values(), strict=True):
        assert_same(tensors, {**weights_of(federator), **federator.client_states[job].tensors})


def test_a_private_factor_that_nobody_trains_makes_no_model_of_its_own() -> None:
    federator = toy_federator(METHODS["ffa_lora"][0], clients_of(3), rounds=1)
    federator.fit()
    (model,) = final_models(federator)
    assert_same(model.tensors, weights_of(federator))


@pytest.mark.parametrize("selection", [Truncate("first"), SelfPruning(0.5, 5.0)], ids=["truncated", "self-pruned"])
@pytest.mark.parametrize("private", [["A", "head"], ["B", "head"]], ids=str)
def test_a_clients_own_model_has_the_logits_of_what_it_computes_with(private: list[str], selection: Any) -> None:
    """Not with pairs that it doesn't hold, though its group has them."""
    recipe = Recipe(Mean(), plan=AdapterPlan(private=private), selection=selection)
    federator = toy_federator(recipe, clients_of(3, ranks=[1, 2, 4]), rounds=3, optimizer="sgd", lr=0.1)
    federator.fit()
    x, local_trainer = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), federator.engine.local_trainer
    cohort = federator.cohort
    for job, model in zip(cohort, final_models(federator), strict=True):
        local_trainer.put(model.tensors)
        found = local_trainer.module(x)
        local_trainer.install(federator.server.broadcast(federator.state, job, cohort), federator.client_states[job.id])
        assert torch.equal(found, local_trainer.module(x))
        assert model.tensors["fc2.lora_A.default.weight"].shape[0] <= job.rank
