"""Heads of jobs whose tasks differ: who shares one, what crosses, what is averaged, where it is evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from several_heads import several, toy_heads
from tiny import classifier
from torch import Tensor
from toys import Planned, toy_federator, toy_module

from flt.algorithm.grouping import features
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.callbacks.evaluate import Evaluate
from flt.callbacks.received_models import ReceivedModels
from flt.core.errors import InputError
from flt.data.clients import JobData
from flt.models.heads import draw_head, head_names, redraw_head
from flt.protocol.messages import Payload, Plan, Update, encode
from flt.server.callback import FedCallback
from flt.server.federator import Federator

# ---------------------------------------------------------------------------------------------- who shares one

CLASSES = st.dictionaries(st.sampled_from("abcdef"), st.integers(2, 5), min_size=1)


@given(CLASSES)
def test_tasks_share_a_head_exactly_where_their_shapes_agree(classes: dict[str, int]) -> None:
    found = head_names("shape", classes)
    assert all((found[a] == found[b]) == (classes[a] == classes[b]) for a in classes for b in classes)
    assert ("" in found.values()) == (len(set(classes.values())) == 1)


@given(CLASSES)
def test_heads_of_their_own_and_a_shared_one(classes: dict[str, int]) -> None:
    assert len(set(head_names("task", classes).values())) == len(classes)
    assert set(head_names("shared", classes).values()) == {""}


@pytest.mark.parametrize("name", ["a/b", "", "a#b"])
def test_a_task_that_is_called_like_no_folder_has_no_head_of_its_own(name: str) -> None:
    assert head_names("shape", {name: 2, "b": 3})[name] == "2"
    with pytest.raises(InputError, match="^heads=task: a task is called"):
        head_names("task", {name: 2, "b": 3})


# ---------------------------------------------------------------------------------------------- what they begin with


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "modernbert", "vit"])
def test_a_head_of_another_shape_is_the_one_that_a_model_of_that_shape_begins_with(kind: str) -> None:
    wide, narrow = classifier(kind, 5), classifier(kind, 2)
    redraw_head(narrow, seed=3)
    own, found, other = dict(narrow.named_parameters()), draw_head(wide, 3, 2), draw_head(wide, 4, 2)
    assert all(torch.equal(value, own[name]) for name, value in found.items())
    assert any(not torch.equal(value, other[name]) for name, value in found.items())


def test_a_head_of_several_layers_changes_shape_in_the_last_one_only() -> None:
    config = transformers.RobertaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=12, num_labels=4
    )
    values = draw_head(transformers.RobertaForSequenceClassification(config), 0, 2)
    assert {name: tuple(value.shape) for name, value in values.items()} == {
        "classifier.dense.weight": (16, 16),
        "classifier.dense.bias": (16,),
        "classifier.out_proj.weight": (2, 16),
        "classifier.out_proj.bias": (2,),
    }


# ---------------------------------------------------------------------------------------------- federations


class Watch(FedCallback):
    """Keeps what was sent down, and each round's updates and weights."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []
        self.rounds: list[tuple[list[Any], dict[str, Tensor]]] = []
        self.sent: list[Any] = []

    def on_job_start(self, federator: Federator, payload: Payload) -> None:
        self.payloads.append(payload)

    def on_round_start(self, federator: Federator) -> None:
        self.sent = []

    def on_update(self, federator: Federator, update: Update) -> None:
        self.sent.append(update)

    def on_round_end(self, federator: Federator) -> None:
        self.rounds.append((self.sent, federator.state.groups[0].weights))


def federated(recipe: Recipe | None = None, widths: Sequence[int] = (2, 4), **settings: Any) -> tuple[Federator, Watch]:
    names = [f"sst{width}" for width in widths]
    watch, heads = Watch(), toy_heads(dict(zip(names, widths, strict=True)))
    callbacks = [watch, *settings.pop("callbacks", ())]
    clients = settings.pop("clients", several(3, widths, names))
    federator = toy_federator(recipe, clients, callbacks=callbacks, heads=heads, **settings)
    federator.fit()
    return federator, watch


def weighted(updates: Sequence[Any], name: str) -> np.ndarray:
    total = sum(update.examples for update in updates)
    return sum(u.examples * u.tensors[name].double().numpy() for u in updates) / total


@settings(max_examples=3)
@given(st.lists(st.integers(2, 5), min_size=2, max_size=3, unique=True))
def test_each_head_is_the_mean_of_its_own_jobs_and_the_adapter_that_of_all(widths: list[int]) -> None:
    federator, watch = federated(widths=widths, rounds=2)
    for updates, weights in watch.rounds:
        for name in ("fc1.lora_A.default.weight", "fc2.lora_B.default.weight"):
            np.testing.assert_allclose(weights[name], weighted(updates, name), rtol=1e-6, atol=1e-7)
        for width in widths:
            of_task = [u for u in updates if u.tensors["head.bias"].shape == (width,)]
            assert 0 < len(of_task) < len(updates)
            for name in ("head.weight", "head.bias"):
                expected = weighted(of_task, name)
                np.testing.assert_allclose(weights[f"{name}#sst{width}"], expected, rtol=1e-6, atol=1e-7)
    assert "head.weight" not in federator.state.groups[0].weights


def test_a_job_is_sent_its_own_head_alone_as_it_was_last_averaged() -> None:
    federator, watch = federated(rounds=2)
    jobs = {job.id: job for client in federator.clients.values() for job in client.jobs(4)}
    later = [payload for payload in watch.payloads if payload.round == 1]
    for payload in later:
        expected = watch.rounds[0][1][f"head.weight#{jobs[payload.job].head}"]
        assert torch.equal(payload.tensors["head.weight"], expected)
    assert {payload.tensors["head.weight"].shape[0] for payload in later} == {2, 4}


@pytest.mark.parametrize("grouping", [None, KMeansGrouping(2)], ids=["one group", "k-means"])
def test_nothing_that_crosses_names_a_head_or_a_task(grouping: KMeansGrouping | None) -> None:
    recipe = Recipe(Mean("uniform"), grouping=grouping) if grouping else Recipe(Mean())
    federator, watch = federated(recipe, rounds=2)
    tasks = {job.task for client in federator.clients.values() for job in client.data}
    crossed = [encode(message) for message in (*watch.payloads, *(u for its, _ in watch.rounds for u in its))]
    assert len(tasks) == 2
    for message in crossed:
        header = message[8 : 8 + int.from_bytes(message[:8], "little")]  # what follows are the numbers
        assert b"head.weight" in header
        assert not any(word in header for word in (b"#", b"sst", *(task.encode() for task in tasks)))


@pytest.mark.filterwarnings("ignore:.*Number of distinct clusters.*")
def test_heads_that_differ_in_shape_are_no_feature_of_a_cluster() -> None:
    """All that tells these jobs apart is their heads: k-means then finds one point."""
    federator, _ = federated(Recipe(Mean("uniform"), grouping=KMeansGrouping(2)), optimizer="sgd", lr=0.0)
    updates = federator.updates
    view = federator.server.view(federator.state)
    for round in (updates, [u for u in updates if "head.weight#sst2" in u.tensors]):
        names = features.names(view.layout, "all")
        assert names == [name for name in sorted(view.layout.entries) if "lora" in name]
        assert len(set(map(bytes, features.weights(view, round, names)))) == 1


def test_a_private_head_begins_with_the_values_of_its_own_shape_and_stays_on_its_client() -> None:
    federator, watch = federated(
        Recipe(Mean(), plan=Planned(make=lambda round: Plan(private=("head",)))), optimizer="sgd", lr=0.0
    )
    heads = toy_heads({"sst2": 2, "sst4": 4})
    for client in federator.clients.values():
        for job, data in zip(client.jobs(4), client.data, strict=True):
            own = federator.client_states[job.id].tensors
            assert torch.equal(own["head.weight"], heads[data.head]["head.weight"])
    assert not any("head.weight" in payload.tensors for payload in watch.payloads)


def test_scaffolds_c_of_a_head_is_the_mean_over_the_jobs_that_have_it() -> None:
    """In round 1 all control variates are zero, so c = (1 / N) sum c_i over the N jobs that share the tensor."""
    federator, _ = federated(Recipe(Scaffold()), optimizer="sgd", lr=0.1)
    c = federator.state.groups[0].slots["c"]
    for width in (2, 4):
        own = [s.slots["c_i"]["head.weight"] for s in federator.client_states.values()]
        own = [value.double() for value in own if value.shape == (width, 10)]
        np.testing.assert_allclose(c[f"head.weight#sst{width}"], sum(own) / len(own), rtol=1e-4, atol=1e-6)
    assert "head.weight" not in c


def by_hand(federator: Federator, task: JobData) -> float:
    """Accuracy on the held-out examples of one job's set, by the global adapter and its task's head."""
    weights = dict(federator.state.groups[0].weights)
    module, _ = toy_module()
    module.head = torch.nn.Linear(10, weights[f"head.bias#{task.head}"].shape[0])
    own = {name.partition("#")[0]: value for name, value in weights.items() if name.endswith(f"#{task.head}")}
    module.load_state_dict(own | {name: value for name, value in weights.items() if "#" not in name}, strict=False)
    x, y = (column[task.held_out] for column in task.dataset.tensors)  # type: ignore[attr-defined]  # a TensorDataset
    with torch.no_grad():
        return float((module(x).argmax(-1) == y).float().mean())


@pytest.mark.slow
def test_each_task_is_evaluated_with_its_own_head() -> None:
    names, widths = ["sst2", "sst4"], (2, 4)
    clients = several(3, widths, names)
    jobs = {data.task: data for data in clients[0].data}
    sets = {task: data.validation_set(None) for task, data in jobs.items()}
    tasks = {(c.id, i): data.task for c in clients.values() for i, data in enumerate(c.data)}
    evaluate = Evaluate(sets, tasks, heads={task: data.head for task, data in jobs.items()})
    callbacks = [evaluate, ReceivedModels(evaluate)]
    federator, _ = federated(clients=clients, rounds=3, steps=12, lr=0.1, callbacks=callbacks)
    for task, data in jobs.items():
        assert federator.metrics[f"task/{task}/val_acc"] == pytest.approx(by_hand(federator, data))
    assert federator.metrics["distributed/rise_loss"] == 0


def test_a_head_that_does_not_travel_can_not_be_one_of_several() -> None:
    _, layout = toy_module()
    headless = dataclasses.replace(
        layout, entries={n: dataclasses.replace(e, role="base") for n, e in layout.entries.items()}
    )
    with pytest.raises(InputError, match=r"^adapter.head=none.*heads=shared"):
        headless.with_heads(toy_heads({"2": 2, "4": 4}))


def test_one_head_leaves_every_name_as_it_is() -> None:
    _, layout = toy_module()
    assert layout.with_heads({}) == layout
    assert layout.for_head("2") is layout
