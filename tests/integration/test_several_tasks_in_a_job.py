"""Whole runs whose clients train one job with all their tasks: every engine and recipe, aggregation, bytes, exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import launched
import numpy as np
import pytest
import torch
from commands import in_empty_folder

import flt
from flt.export.places import exported_models
from flt.protocol.messages import Update
from flt.run.compose import load_config
from flt.run.run import Run
from flt.run.workload import federation
from flt.server.callback import FedCallback
from flt.server.federator import Federator

pytestmark = pytest.mark.slow  # whole runs
WEIGHTS = "adapter_model.safetensors"
SHORT = ["data=digits_two", "clients=4", "rounds=2", "local.steps=3", "batch_size=8", "threads=1", "logger=[]"]
LACKING = ["partition.kind=quantity", "partition.min_share=0.05", "partition.alpha=0.3"]
"""Some clients lack a task."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class Watch(FedCallback):
    """Keeps the updates as the clients sent them, and the federator."""

    federator: Federator
    updates: list[list[Update]]
    before: dict[str, torch.Tensor]

    def on_fit_start(self, federator: Federator) -> None:
        self.federator, self.updates = federator, []

    def on_round_start(self, federator: Federator) -> None:
        self.before = dict(federator.state.groups[federator.state.home].weights)

    def on_round_end(self, federator: Federator) -> None:
        self.updates.append(list(federator.updates))


def run(*overrides: str) -> tuple[Watch, list[dict[str, float]], Path]:
    cfg = load_config([*SHORT, *overrides])
    watch = Watch()
    done = Run(cfg, federation(cfg), own=[watch], show=False)()
    return watch, done.history, Path(done.path)


def weights_of(watch: Watch) -> dict[str, torch.Tensor]:
    state = watch.federator.state
    return state.groups[state.home].weights


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_clients_with_one_task_each_have_the_bits_of_a_job_per_task() -> None:
    alone = ["algo=fedit", "heads=task", "clients=2", "partition.kind=quantity", "partition.alpha=0.01"]
    found = [
        run(*alone, "partition.min_share=0.3", f"jobs={jobs}", f"name={jobs}")[0] for jobs in ("per_task", "per_client")
    ]
    for watch in found:
        assert [len(client.data) for client in watch.federator.clients.values()] == [1, 1]
        assert {client.data[0].task for client in watch.federator.clients.values()} == {"digit", "parity"}
    assert_equal(weights_of(found[0]), weights_of(found[1]))


def test_a_head_is_averaged_over_the_jobs_that_have_its_task() -> None:
    watch, history, _ = run("algo=fedit", "heads=task", *LACKING, "rule=median", "rounds=1")
    updates = watch.updates[0]
    heads = {job.id: job.head for client in watch.federator.clients.values() for job in client.jobs(8)}
    assert sorted({len(head.split("+")) for head in heads.values()}) == [1, 2]
    for task, rows in (("digit", 5), ("parity", 2)):
        name = f"model.classifier.weight#{task}"
        own = [update.tensors[name].double().numpy() for update in updates if task in heads[update.job].split("+")]
        assert len(own) < len(updates) or task == "parity"
        assert all(part.shape[0] == rows for part in own)
        expected = np.sort(np.stack(own), axis=0)
        middle = (expected[(len(own) - 1) // 2] + expected[len(own) // 2]) / 2
        np.testing.assert_allclose(weights_of(watch)[name].numpy(), middle, atol=1e-6)


def test_the_mean_of_a_head_leaves_out_jobs_without_its_task() -> None:
    means, listed = (run("algo=fedit", "heads=task", *LACKING, "rounds=1", *more)[0] for more in ([], ["rule=median"]))
    heads = {job.id: job.head for client in means.federator.clients.values() for job in client.jobs(8)}
    for task in ("digit", "parity"):
        name = f"model.classifier.weight#{task}"
        own = [update for update in listed.updates[0] if task in heads[update.job].split("+")]
        sums = np.sum([update.examples * update.tensors[name].double().numpy() for update in own], axis=0)
        expected = sums / sum(update.examples for update in own)
        np.testing.assert_allclose(weights_of(means)[name].numpy(), expected, atol=1e-6)


def test_a_job_sends_the_rows_of_its_own_tasks_alone() -> None:
    watch, history, _ = run("algo=fedit", "heads=task", *LACKING, "rounds=1")
    numbers = 0
    for client in watch.federator.clients.values():
        (job,) = client.jobs(8)
        layout = watch.federator.server.layout.for_head(job.head)
        outputs = sum({"digit": 5, "parity": 2}[task] for task in job.head.split("+"))
        assert layout.entries["model.classifier.weight"].shape[0] == outputs
        numbers += sum(int(np.prod(layout.entries[name].shape)) for name in layout.names(["A", "B", "head"]))
    assert history[0]["comm/params_up"] == numbers / len(watch.federator.clients)  # the mean over jobs
    assert 0 < history[0]["comm/bytes_up"] - 4 * numbers < 40_000


def test_the_batched_engine_has_the_results_of_the_serial_one() -> None:
    serial, first, _ = run("algo=fedit", "heads=task", *LACKING, "name=serial")
    batched, second, _ = run("algo=fedit", "heads=task", *LACKING, "engine=batched", "engine.jobs=4", "name=batched")
    for name, value in weights_of(serial).items():
        torch.testing.assert_close(weights_of(batched)[name], value, rtol=1e-4, atol=1e-5)
    assert first[-1]["round/val_loss"] == pytest.approx(second[-1]["round/val_loss"], abs=1e-4)


def test_two_processes_have_the_bits_of_one(folder: Path) -> None:
    exports = []
    for name, engine in (("one", ["engine=serial"]), ("two", ["engine=distributed", "devices=2"])):
        process = launched.flt(folder, *SHORT, "algo=fedit", "heads=task", *LACKING, *engine, f"name={name}")
        said, _ = process.communicate(timeout=launched.LIMIT)
        assert process.returncode == 0, said
        adapter = folder / "lightning_logs" / name / "version_0" / "adapter"
        exports.append([(adapter / f"head_{task}" / WEIGHTS).read_bytes() for task in ("digit", "parity")])
    assert exports[0] == exports[1]


RECIPES = {
    "hafl": ["algo=hafl", "ranks=[2,4]", "adapter.rank=4"],
    "sa_fedlora": ["algo=sa_fedlora"],
    "clusters": ["algo=fl_tac", "jobs=per_client", "grouping.k=2"],
    "c2a by client": ["algo=c2a", "adapter.label_source=client"],
    "c2a by batch": ["algo=c2a", "adapter.label_source=batch"],
    "scaffold": ["algo=scaffold", "cohort.size=2"],
    "flora": ["algo=flora"],
    "local": ["algo=local", "eval.distributed=true"],
    "private factors": ["algo=fedsa_lora"],
    "krum": ["algo=fedit", "rule=krum", "clients=6", "faults.attack=label_flip", "faults.hostile=0.2"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_kind_of_recipe_trains_and_exports_a_model_for_each_task(name: str) -> None:
    watch, history, folder = run(*RECIPES[name], "heads=task", "rounds=3", "cohort.size=null", "local.steps=2")
    assert all(np.isfinite(value) for value in history[-1].values())
    export = next(folder / kind for kind in ("adapter", "model") if (folder / kind).is_dir())
    models = exported_models(export)
    assert {place.rpartition("head_")[2] for place in models} == {"digit", "parity"}
    for place in models.values():
        assert len(json.loads((place / "classes.json").read_text())) == 1
    tested = flt.evaluate(str(folder))
    assert {task.task for task in tested.tasks} == {"digit", "parity"}
    if "test/acc" in history[-1] and name != "clusters":
        accuracy: Any = [task.metrics["accuracy"] for task in tested.tasks]
        assert np.mean(accuracy) == pytest.approx(history[-1]["test/acc"], abs=1e-6)
