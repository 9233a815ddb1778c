"""Whole federations of C2A and of bottleneck adapters: what travels, how it is averaged, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import QUICK, in_empty_folder, metrics, train
from slowly import slowly

from flt.api import Result, fit
from flt.models.adapters.c2a import HyperNetwork
from flt.models.adapters.client_context import client_aware_modules
from flt.models.module import ClientModule
from flt.protocol.messages import Update
from flt.run.compose import load_config
from flt.run.workload import federation
from flt.server.callback import FedCallback
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs and fits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def texts(folder: Path, kind: str) -> list[str]:
    model, data = tiny.save_bert(folder / kind, kind=kind), tiny.save_reviews(folder / "reviews.csv")
    return [f"model={model}", f"data={data}", "model.max_length=16", "batch_size=4"]


class Keep(FedCallback):
    """Each round's updates, and the global model after it."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Any, dict[str, Any]]] = []

    def on_round_start(self, federator: Federator) -> None:
        self.updates: list[Update] = []

    def on_update(self, federator: Federator, update: Update) -> None:
        self.updates.append(update)

    def on_round_end(self, federator: Federator) -> None:
        self.rounds.append((self.updates, federator.state.groups[0].weights))


def federated(*overrides: str) -> tuple[Result, Keep]:
    given = {key.partition("=")[0] for key in overrides}
    quick = [f"{key}={value}" for key, value in QUICK.items() if key not in given]
    cfg, keep = load_config([*quick, *overrides]), Keep()
    made = federation(cfg)
    result = fit(
        made.module, made.clients, cfg, validation=made.validation, test=made.test, collate_fn=made.collate,
        source=made.source, callbacks=[keep], progress=False,
    )  # fmt: skip
    return result, keep


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "adapter"),
    [("vit", "houlsby"), ("bert", "c2a"), *slowly(("vit", "c2a"), ("distilbert", "c2a"), ("bert", "houlsby"))],
)
def test_adapter_and_head_travel_and_are_averaged_by_the_numbers_of_examples(
    kind: str, adapter: str, folder: Path
) -> None:
    data = [] if kind == "vit" else texts(folder, kind)
    _, keep = federated("algo=c2a", f"adapter={adapter}", "rounds=2", "local.steps=2", *data)
    assert len(keep.rounds) == 2
    for updates, weights in keep.rounds:
        n = np.array([update.examples for update in updates])
        assert len(set(n)) > 1
        for name, tensor in weights.items():
            stacked = np.stack([update.tensors[name].double().numpy() for update in updates])
            np.testing.assert_allclose(tensor, np.tensordot(n / n.sum(), stacked, axes=1), rtol=1e-5, atol=1e-7)
            assert not np.array_equal(stacked[0], stacked[1])
    heads = {name.split(".")[1] for name in keep.rounds[0][1] if adapter not in name}
    assert heads == ({"pre_classifier", "classifier"} if kind == "distilbert" else {"classifier"})


@pytest.mark.slow
@pytest.mark.parametrize("source", ["batch", "client"])
def test_a_client_computes_with_its_own_labels_and_the_global_evaluation_with_none(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, tuple[float, ...]]] = []
    distribution = HyperNetwork.distribution

    def watched(self: HyperNetwork) -> Any:
        found = distribution(self)
        seen.append((self.training, tuple(np.round(found.tolist(), 4))))
        return found

    monkeypatch.setattr(HyperNetwork, "distribution", watched)
    cfg = [f"adapter.label_source={source}", "algo=c2a", "local.steps=2", "clients=2", "batch_size=8"]
    federated(*cfg)
    jobs = [client.data[0] for client in federation(load_config([*cfg])).clients]
    own = {tuple(np.round(np.array(job.label_counts) / sum(job.label_counts), 4)) for job in jobs}
    uniform = (0.2,) * 5
    at_test = {shares for training, shares in seen if not training}
    trained = {shares for training, shares in seen if training}
    assert seen[-1] == (False, uniform)
    assert at_test == ({uniform} if source == "batch" else {uniform, *own})
    assert trained == own if source == "client" else len(trained) == 4


@pytest.mark.slow
def test_at_test_the_classes_of_the_job_s_own_head_weigh_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, tuple[float, ...]]] = set()
    forward = ClientModule.forward

    def watched(self: ClientModule, **inputs: Any) -> Any:
        logits = forward(self, **inputs)
        if not self.training:
            (network,) = client_aware_modules(self)
            seen.add((logits.shape[1], tuple(np.round(network.distribution().tolist(), 4))))  # type: ignore[attr-defined]
        return logits

    monkeypatch.setattr(ClientModule, "forward", watched)
    assert train("algo=c2a", "data=digits_two", "jobs=per_task", "partition.kind=iid") == 0
    assert seen == {(2, (0.5, 0.5, 0, 0, 0)), (5, (0.2,) * 5)}


@pytest.mark.slow
def test_evaluations_of_one_model_in_fixed_batches_agree_to_the_bit(folder: Path) -> None:
    _, keep = federated("algo=c2a", *texts(folder, "bert"), "eval.batch_size=7")
    again, _ = federated("algo=c2a", *texts(folder, "bert"), "eval.batch_size=7", "eval.client_examples=0")
    other, _ = federated("algo=c2a", *texts(folder, "bert"), "eval.batch_size=3")
    first = metrics(folder / "lightning_logs/c2a/version_0")[-1]
    assert float(first["round/val_loss"]) == again.metrics["round/val_loss"]
    assert again.metrics["round/val_loss"] != other.metrics["round/val_loss"]
    assert len(keep.rounds) == 1


@pytest.mark.slow
def test_below_the_lowest_adapted_block_activations_come_from_the_cache(folder: Path) -> None:
    found = []
    for name in ("off", "on"):
        arguments = [*texts(folder, "bert"), "model.adapt_layers=top1", f"prefix_cache={name}", f"name={name}"]
        assert train("algo=c2a", "rounds=2", "local.steps=2", *arguments) == 0
        found.append([float(row["round/val_loss"]) for row in metrics(folder / f"lightning_logs/{name}/version_0")])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("algo=hafl", "selection=Freeze: it works on rank-1 components, and the adapter has no A and no B"),
        ("algo=fedit importance=delta", "importance=DeltaSensitivity: it works on rank-1 components"),
        ("algo=flora", "rule=Stacking: it works on rank-1 components"),
        ("algo=fedit ranks=[2,4]", "ranks=[2, 4]: the adapter has no components to go without"),
        ("algo=fedit adapter.alpha=3", "adapter.alpha=3: there is no such key"),
        ("algo=fedit prefix_cache=on", "prefix_cache=on: the adapter begins in the first block"),
        ("algo=fedit plan.train=[A,B]", "plan.train=('A', 'B'): the module has nothing else to train"),
    ],
)
@pytest.mark.parametrize("adapter", ["c2a", "houlsby"])
def test_what_has_no_meaning_is_refused_in_one_line_before_anything_is_written(
    overrides: str, message: str, adapter: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"adapter={adapter}", *overrides.split()) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "allowed is" in line]
    assert message in line
    assert not (folder / "lightning_logs").exists()
