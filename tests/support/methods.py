"""Every method with a small federation to run it on; a new method adds a line to METHODS."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from toys import Toy, toy_batches, toy_clients, toy_federator

from flt.algorithm.compression.methods import Channel, Quantised
from flt.algorithm.grouping.agglomerative import AgglomerativeGrouping
from flt.algorithm.grouping.bandit import BanditGrouping
from flt.algorithm.grouping.base import Clustering
from flt.algorithm.grouping.density import DbscanGrouping, HdbscanGrouping
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.online import OnlineGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.importance import Ablation, DeltaSensitivity, GradientSensitivity, Magnitude
from flt.algorithm.plan import AdapterPlan, Alternating, FullPlan, Stages
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.residual import Residual
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.rule.svd import Svd
from flt.algorithm.schedule import Annealed
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.self_pruning import SelfPruning
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.server_optimizer import Adagrad, Adam, Momentum, Yogi
from flt.algorithm.transfer import CosineTransfer
from flt.data.clients import ClientSpec, JobData
from flt.server.federator import Federator

SGD = {"optimizer": "sgd", "lr": 0.1}


MEASURED = GradientSensitivity()


FEDIT = Recipe(Mean())


CHANGES: dict[str, Any] = {"features": "changes", "tensors": "lora"}


TASKS = {(client, index): f"task{index}" for client in range(5) for index in range(2)}


GROUPINGS: dict[str, Clustering] = {
    "": KMeansGrouping(2),
    ", unlocked": KMeansGrouping(2, cannot_link=True, memory=True, **CHANGES),
    ", silhouette": KMeansGrouping("silhouette", newcomers="nearest"),
    ", agglomerative": AgglomerativeGrouping(2, cannot_link=True, memory="side_by_side", **CHANGES),
    ", dbscan": DbscanGrouping(1.4, memory="side_by_side", memory_rounds=2, memory_width=None, **CHANGES),
    ", hdbscan": HdbscanGrouping(2, **CHANGES, newcomers="nearest"),
    ", bandit": BanditGrouping(ks=(2,), weights=(0.0,)),
    ", online": OnlineGrouping(memory=True),
    ", oracle": OracleGrouping().with_tasks(TASKS),
}
"""Name after ``fl_tac`` -> a clustering of toys with two tasks."""


CHANNEL = Channel(down=True, tau=0.027, distances=[1100.0, 1120.0])  # 2.4 kB: two jobs of a toy at few bits


METHODS: dict[str, tuple[Recipe, dict[str, Any]]] = {
    "fedit": (FEDIT, {}),
    "fedprox": (Recipe(Mean(), plan=AdapterPlan(mu=0.5)), {}),
    "ffa_lora": (Recipe(Mean(), plan=AdapterPlan(train=["B", "head"], private=["A"])), {}),
    "fedsa_lora": (Recipe(Mean(), plan=AdapterPlan(private=["B", "head"])), {}),
    "fedavgm": (Recipe(Mean(), server_optimizer=Momentum()), {}),
    "fedadagrad": (Recipe(Mean(), server_optimizer=Adagrad()), {}),
    "fedadam": (Recipe(Mean(), server_optimizer=Adam()), {}),
    "fedyogi": (Recipe(Mean(), server_optimizer=Yogi()), {}),
    "rolora": (Recipe(Mean(), plan=Alternating()), {}),
    "local": (Recipe(Mean(), plan=AdapterPlan(private=["A", "B", "adapter", "head"])), {}),
    "hafl freeze": (Recipe(Mean(), selection=Freeze(), importance=MEASURED), {}),
    "hafl truncate": (Recipe(Mean(), selection=Truncate(), importance=MEASURED), {}),
    "hafl carry": (Recipe(Mean(), selection=Truncate(), importance=GradientSensitivity(carry=True)), {}),
    "hafl ablation": (Recipe(Mean(), selection=Freeze(), importance=Ablation(examples=4)), {}),
    "hafl delta": (Recipe(Mean(), selection=Freeze(), importance=DeltaSensitivity()), {}),
    "hafl explore": (Recipe(Mean(), selection=Truncate(explore=0.5), importance=MEASURED), {}),
    "hafl global": (Recipe(Mean(), selection=Truncate(explore=0.2, scope="global"), importance=MEASURED), {}),
    "hafl own scores": (Recipe(Mean(), selection=Freeze(scores="client"), importance=MEASURED), {}),
    "hafl magnitude": (Recipe(Mean(), selection=Freeze(scope="global"), importance=Magnitude()), {}),
    "haflq": (Recipe(Mean(), selection=Freeze(), importance=MEASURED, compression=Quantised(budget=2400)), {}),
    "haflq channel": (Recipe(Mean(), selection=Truncate("random"), compression=CHANNEL), {}),
    "random sets": (Recipe(Mean(), selection=Freeze("random")), {}),
    "zero-pad": (Recipe(Mean(pad="parameter"), selection=Truncate("first")), {}),
    "pad the update": (Recipe(Mean(pad="update"), selection=Truncate("first")), {}),
    **{f"fl_tac{name}": (Recipe(Mean("uniform"), grouping=made), {}) for name, made in GROUPINGS.items()},
    "hetlora": (Recipe(Mean("norm", pad="sent"), selection=SelfPruning(0.6, 2.0)), SGD),  # so that ranks fall
    "flora": (Recipe(Stacking()), {}),
    "flexlora": (Recipe(Svd(), selection=Truncate("first")), {}),
    "fedex_lora": (Recipe(Residual()), {}),
    "scaffold": (Recipe(Scaffold()), SGD),
    "fedavg": (Recipe(Mean(), plan=FullPlan(lr_factor=1.0)), {}),
    "scaffold, whole model": (Recipe(Scaffold(), plan=FullPlan(lr_factor=1.0)), SGD),
    "sa_fedlora": (
        Recipe(
            Mean(), plan=Stages(1, lr_factor=1.0, rounds=4), importance=MEASURED,
            schedule=Annealed(2, "linear", heat=1, cool=1, initiating=1, rounds=4),
        ), {},
    ),
    "everything": (
        Recipe(
            Mean("uniform"), schedule=Annealed(2, "linear", heat=1, cool=1, initiating=0, rounds=4),
            selection=Freeze(explore=0.3), importance=MEASURED, compression=Quantised(budget=2400),
            grouping=KMeansGrouping("silhouette", memory=True, **CHANGES), transfer=CosineTransfer(),
        ), {},
    ),
}  # fmt: skip
"""Name -> recipe, settings of the toy."""


def clients_of(clients: int, **given: Any) -> dict[int, ClientSpec]:
    """Toy clients that hold nothing out: no time goes into evaluations."""
    made = toy_clients(clients, **given)
    return {
        number: dataclasses.replace(
            client, data=tuple(dataclasses.replace(d, held_out=np.arange(0)) for d in client.data)
        )
        for number, client in made.items()
    }


def run(name: str, **given: Any) -> Federator:
    recipe, settings = METHODS[name]
    federator = toy_federator(recipe, **{**settings, **given})
    federator.fit()
    return federator


UNIFORM = Recipe(Mean("uniform"))


def job_seed(round: int, client: int) -> int:
    """Of the batches of (seed 0, round, client, job 0)."""
    return int(np.random.SeedSequence([0, round, client, 0]).generate_state(1)[0])


def proximal_fit(module: Toy, data: JobData, seed: int, mu: float) -> None:
    """The penalty in the loss, by autograd."""
    trains = [p for p in module.parameters() if p.requires_grad]
    start, optimizer = [p.detach().clone() for p in trains], module.configure_optimizers()
    for batch in itertools.islice(toy_batches(data, seed), 3):
        optimizer.zero_grad()
        penalty = sum(((p - at) ** 2).sum() for p, at in zip(trains, start, strict=True))
        (module.training_step(batch, 0) + mu / 2 * penalty).backward()
        optimizer.step()
