"""What every method must equal in its trivial case, through whole federations; a new method adds a line to a table."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from methods import CHANGES, FEDIT, MEASURED, METHODS, SGD, UNIFORM, clients_of, job_seed, proximal_fit, run
from torch import Tensor
from torch.utils.data import DataLoader
from toys import Toy, assert_same, toy_batches, toy_federator, toy_module, updates_of, weights_of

from flt.algorithm.compression.methods import Quantised
from flt.algorithm.grouping.agglomerative import AgglomerativeGrouping
from flt.algorithm.grouping.density import DbscanGrouping
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.plan import AdapterPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.schedule import Annealed
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.algorithm.selection.truncate import Truncate
from flt.data.clients import ClientSpec, JobData
from flt.server.federator import Federator

methods = pytest.mark.parametrize("name", METHODS)


# ---------------------------------------------------------------------------------------------- equal to FedIT

ONE_CLUSTER = DbscanGrouping(eps=1e9)
UNBOUNDED = Quantised(down=True, budget=None, ratio=None)
SGD_ONCE = {**SGD, "rounds": 1}
TRIVIAL: dict[str, tuple[Recipe, Recipe, dict[str, Any]]] = {
    **{name: (METHODS[name][0], FEDIT, {}) for name in METHODS if name.startswith("hafl ")},
    "HAFLQ, no budget": (dataclasses.replace(METHODS["haflq"][0], compression=UNBOUNDED), FEDIT, {}),
    "FedIT, no budget": (Recipe(Mean(), compression=UNBOUNDED), FEDIT, {}),
    "HAFL with uncertainty": (
        Recipe(Mean(), selection=Freeze(), importance=GradientSensitivity(uncertainty=True)), FEDIT, {},
    ),
    "random sets": (METHODS["random sets"][0], FEDIT, {}),
    "padding the parameter": (METHODS["zero-pad"][0], FEDIT, {}),
    "padding the update": (METHODS["pad the update"][0], FEDIT, {}),
    "HetLoRA, n_k weights, no penalty": (Recipe(Mean(pad="sent"), selection=SelfPruning(1.0, 0.0)), FEDIT, {}),
    "FL-TAC, one task": (Recipe(Mean("uniform"), grouping=KMeansGrouping(1)), UNIFORM, {}),
    "FL-TAC, one task, found": (Recipe(Mean("uniform"), grouping=ONE_CLUSTER), UNIFORM, {}),
    "SA-FedLoRA, T0 = 0 and b_0 = b_T": (
        Recipe(
            Mean(), plan=Stages(0, rounds=3), importance=MEASURED, schedule=Annealed(4, initiating=0, rounds=3)
        ), FEDIT, {},
    ),
    "FL-TAC unlocked, one task": (
        Recipe(Mean("uniform"), grouping=KMeansGrouping(1, cannot_link=True, **CHANGES)), UNIFORM, {},
    ),
    "FL-TAC with a memory, one task": (
        Recipe(Mean("uniform"), grouping=KMeansGrouping(1, memory="side_by_side", **CHANGES)), UNIFORM, {},
    ),
    "FL-TAC agglomerative, one task": (Recipe(Mean("uniform"), grouping=AgglomerativeGrouping(1)), UNIFORM, {}),
    "FL-TAC by oracle, one task": (
        Recipe(Mean("uniform"), grouping=OracleGrouping().with_tasks({(0, 0): "only"})), UNIFORM, {},
    ),
    "FedProx, mu 0": (Recipe(Mean(), plan=AdapterPlan(mu=0.0)), FEDIT, {}),
    "SCAFFOLD, round 1": (Recipe(Scaffold()), FEDIT, SGD_ONCE),
    "SCAFFOLD, round 1, uniform": (Recipe(Scaffold("uniform")), UNIFORM, SGD_ONCE),
}  # fmt: skip
"""Method -> its recipe, what it equals when all clients have the full rank, settings."""
_references: dict[str, dict[str, Tensor]] = {}


def of_four_clients(recipe: Recipe, cohort: int | None, settings: dict[str, Any]) -> Federator:
    federator = toy_federator(recipe, clients_of(4), **{"cohort": cohort, "rounds": 3, "clip": 0.5, **settings})
    federator.fit()
    return federator


def reference(recipe: Recipe, cohort: int | None, settings: dict[str, Any]) -> dict[str, Tensor]:
    key = repr((recipe.rule, cohort, settings))
    if key not in _references:
        _references[key] = weights_of(of_four_clients(recipe, cohort, settings))
    return _references[key]


@pytest.mark.parametrize("cohort", [None, 2], ids=["all", "partial cohorts"])
@pytest.mark.parametrize("name", TRIVIAL)
def test_at_full_rank_the_model_is_fedits_bit_for_bit(name: str, cohort: int | None) -> None:
    recipe, equal, settings = TRIVIAL[name]
    found = of_four_clients(recipe, cohort, settings)
    start = weights_of(toy_federator())
    (only,) = found.state.clusters
    assert_same(weights_of(found, only), reference(equal, cohort, settings))
    assert all(not torch.equal(start[key], tensor) for key, tensor in weights_of(found, only).items())


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"fedit", "flora"}))
def test_outside_of_its_trivial_case_the_model_is_another(name: str) -> None:
    """Without this, a selection that selects nothing would pass the test above."""
    given = {"clients": clients_of(3, ranks=[1, 2, 4]), "rounds": 2, "cohort": 2}
    found = run(name, **given)
    fedit = toy_federator(FEDIT, **{**given, **METHODS[name][1]})
    fedit.fit()
    b = "fc2.lora_B.default.weight"
    assert not torch.equal(weights_of(found, max(found.state.groups))[b], weights_of(fedit)[b])


def test_fedit_is_the_mean_of_what_the_clients_train_alone() -> None:
    """Against NumPy; and not the plain mean, nor the first client's."""
    federator = run("fedit")
    alone = [trained(toy_module()[0], clients, 1)[0] for clients in clients_of(3).values()]
    n = np.array([12, 16, 20])
    for key, tensor in weights_of(federator).items():
        stacked = np.stack([weights[key].double().numpy() for weights in alone])
        np.testing.assert_allclose(tensor, np.tensordot(n / n.sum(), stacked, axes=1), rtol=1e-6, atol=1e-7)
        assert not np.allclose(tensor, stacked.mean(0), rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------- one client

ALONE = [*(name for name in METHODS if name.startswith(("hafl ", "fl_tac"))), "fedit", "pad the update"]
ALONE += ["random sets", "scaffold", "zero-pad"]


class BatchNotifier(torch.utils.data.IterableDataset):
    """The examples of one fit in its order."""

    def __init__(self, data: JobData, seed: int) -> None:
        self.data, self.seed = data, seed

    def __iter__(self) -> Any:
        return itertools.islice(toy_batches(self.data, self.seed), 3)


def trained(module: Toy, client: ClientSpec, rounds: int) -> list[dict[str, Tensor]]:
    """What a plain Trainer makes of a module in each round: flt is not in it."""
    found = []
    for number in range(rounds):
        trainer = pl.Trainer(
            max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        with warnings.catch_warnings(action="ignore"):
            trainer.fit(module, DataLoader(BatchNotifier(client.data[0], job_seed(number, client.id)), batch_size=None))
        found.append({key: p.detach().clone() for key, p in module.named_parameters() if p.requires_grad})
    return found


@pytest.mark.parametrize("name", ALONE)
def test_one_client_trains_as_a_plain_trainer_does_bit_for_bit(name: str) -> None:
    federator = run(name, clients=clients_of(1), rounds=3)
    last = trained(toy_module(**METHODS[name][1])[0], federator.clients[0], 3)[-1]
    assert_same(weights_of(federator, max(federator.state.groups)), last)


def test_jobs_of_one_client_with_the_same_examples_see_them_in_orders_of_their_own() -> None:
    client = clients_of(1)[0]
    federator = run("fedit", clients={0: dataclasses.replace(client, data=client.data * 2)})
    first, second = updates_of(federator)
    assert not torch.equal(first.tensors["head.weight"], second.tensors["head.weight"])


def test_one_client_of_flora_has_the_product_of_a_plain_trainer_in_its_base() -> None:
    federator = run("flora", clients=clients_of(1))
    (last,) = trained(toy_module()[0], federator.clients[0], 1)
    for layer, about in federator.server.layout.layers.items():
        initial = federator.server.base[about.base]
        found = federator.state.base.value(about.base, federator.server.base) - initial
        product = 2.0 * last[about.b].double() @ last[about.a].double()
        torch.testing.assert_close(found.double(), product, rtol=1e-4, atol=1e-6, msg=layer)
    assert torch.equal(weights_of(federator)["head.weight"], last["head.weight"])


# ---------------------------------------------------------------------------------------------- FedProx


@pytest.mark.parametrize("mu", [0.5, 5.0])
def test_fedprox_is_the_hand_written_penalty_around_what_each_round_sent(
    monkeypatch: pytest.MonkeyPatch, mu: float
) -> None:
    federator = toy_federator(Recipe(Mean(), plan=AdapterPlan(mu=mu)), clients_of(1), rounds=3, **SGD)
    federator.fit()
    module, _ = toy_module(**SGD)
    monkeypatch.setattr(Toy, "log", lambda *_: None)
    for number in range(3):
        proximal_fit(module, federator.clients[0].data[0], job_seed(number, 0), mu)
    expected = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    assert_same(weights_of(federator), expected, tolerance=1e-5)
    plain = toy_federator(FEDIT, clients_of(1), rounds=3, **SGD)
    plain.fit()
    assert not torch.allclose(weights_of(plain)["head.weight"], expected["head.weight"], atol=1e-4)


# ---------------------------------------------------------------------------------------------- FLoRA


def test_flora_adds_the_dense_weighted_mean_of_products_in_every_round() -> None:
    """Ranks 1, 2 and 4; from the updates alone, in float64."""
    recipe = Recipe(Stacking(), selection=Truncate("first"))
    federator = toy_federator(recipe, clients_of(3, ranks=[1, 2, 4]), rounds=3, lr=0.05)
    layers, initial = federator.server.layout.layers.values(), federator.server.base
    dense = {name: value.double() for name, value in initial.items()}
    while federator.state.rounds < 3:
        federator._round()
        total = sum(update.examples for update in updates_of(federator))
        for update, layer in itertools.product(updates_of(federator), layers):
            product = update.tensors[layer.b].double() @ update.tensors[layer.a].double()
            dense[layer.base] += update.examples / total * 2.0 * product
        for layer in layers:
            found = federator.state.base.value(layer.base, initial).double()
            torch.testing.assert_close(found, dense[layer.base], rtol=1e-6, atol=1e-6)
