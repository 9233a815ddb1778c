"""The tests of the final models on each client's own examples, against single evaluations by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset
from toys import Planned, Toy, toy_clients, toy_data, toy_federator

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.api import train
from flt.callbacks.client_tests import ClientTests
from flt.data.clients import ClientSpec, JobData
from flt.protocol.messages import JobId, Plan
from flt.run.compose import load_config
from flt.server.federator import Federator


def own_tests(federator: Federator) -> dict[JobId, Subset]:
    whole = toy_data(90, seed=5)
    return {(client, 0): Subset(whole, range(20 * client, 20 * client + 20)) for client in federator.clients}


def finished(recipe: Recipe | None = None, labels: tuple[str, ...] = ("own",)) -> Federator:
    federator = toy_federator(recipe, toy_clients(3), rounds=2)
    federator.callbacks.append(ClientTests(own_tests(federator), labels))
    federator.fit()
    return federator


def accuracy(weights: dict[str, torch.Tensor], dataset: Dataset) -> float:
    """By hand: the layers with B A added."""
    x, y = map(torch.stack, zip(*(dataset[i] for i in range(20)), strict=True))
    for layer in ("fc1", "fc2"):
        base = TOY_BASE[layer]
        a, b = (weights[f"{layer}.lora_{factor}.default.weight"] for factor in "AB")
        x = torch.relu(x @ (base[0] + 2.0 * b @ a).T + base[1])
    logits = x @ weights["head.weight"].T + weights["head.bias"]
    return float((logits.argmax(-1) == y).float().mean())


def toy_base() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        toy = Toy()
    return {name: (getattr(toy, name).weight.detach(), getattr(toy, name).bias.detach()) for name in ("fc1", "fc2")}


TOY_BASE = toy_base()


def test_the_final_model_is_tested_on_each_clients_own_examples() -> None:
    federator = finished()
    expected = [accuracy(federator.state.groups[0].weights, dataset) for dataset in own_tests(federator).values()]
    last = federator.history[-1]
    assert last["client_test/acc"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert last["client_test/acc_worst10"] == pytest.approx(min(expected), abs=1e-6)
    assert "client_test/acc" not in federator.history[0]
    assert last["client_test/loss_worst10"] >= last["client_test/loss"]


def test_private_tensors_belong_to_the_tested_model() -> None:
    private = Plan(train=("A", "B", "head"), private=("A", "B", "head"))
    federator = finished(Recipe(Mean(), plan=Planned(make=lambda round: private)))
    states = [federator.client_states[job].tensors for job in sorted(own_tests(federator))]
    expected = [accuracy(own, data) for own, data in zip(states, own_tests(federator).values(), strict=True)]
    assert federator.history[-1]["client_test/acc"] == pytest.approx(np.mean(expected), abs=1e-6)


class Aware:
    """Writes down the label counts that it is given."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, ...]] = []

    def enter_client(self, data: JobData) -> None:
        self.counts.append(data.label_counts)

    def enter_batch(self, batch: Any) -> None: ...

    def leave_client(self) -> None: ...


def test_the_models_are_tested_with_each_of_the_label_counts() -> None:
    labels = ("own", "uniform", "wrong")
    aware = Aware()
    federator = toy_federator(rounds=1, clients={k: _counted(c) for k, c in toy_clients(2).items()})
    federator.callbacks.append(ClientTests(own_tests(federator), labels))
    federator.engine.local_trainer.client_aware = [aware]
    federator.fit()
    assert aware.counts[-6:] == [(3, 0, 1)] * 2 + [(1, 1, 1)] * 2 + [(0, 1, 3)] * 2
    suffixes = {"", "_worst10", "_uniform", "_wrong"}
    assert {key for key in federator.history[-1] if key.startswith("client_test/acc")} == {
        f"client_test/acc{s}" for s in suffixes
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "suffixes"),
    [
        (["algo=fedit"], ["", "_worst10"]),
        (["algo=c2a"], ["", "_worst10"]),  # evaluated with the uniform distribution
        (["algo=c2a", "adapter.label_source=client", "adapter.histogram=uniform"], ["", "_worst10"]),
        (["algo=c2a", "adapter.label_source=client"], ["", "_worst10", "_wrong"]),
        (["algo=c2a", "adapter.histogram=own"], ["", "_worst10", "_wrong"]),
    ],
    ids=str,
)
def test_only_an_adapter_that_is_evaluated_with_label_counts_is_tested_with_other_counts(
    overrides: list[str], suffixes: list[str], tmp_path: Path
) -> None:
    small = ["data=digits", "clients=2", "rounds=1", "local.steps=1", "eval.client_test_examples=5", "logger=[]"]
    cfg = load_config([*small, "eval.client_labels=[own,wrong]", f"root={tmp_path}", *overrides])
    found = {key for key in train(cfg).metrics if key.startswith("client_test/acc")}
    assert found == {f"client_test/acc{suffix}" for suffix in suffixes}


def _counted(client: ClientSpec) -> ClientSpec:
    return dataclasses.replace(client, data=tuple(job.but(label_counts=(3, 0, 1)) for job in client.data))
