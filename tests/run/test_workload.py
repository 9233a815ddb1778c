"""What a configuration federates: clients and their jobs, and what is sampled of the evaluation splits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from commands import in_empty_folder

from flt.data.clients import JobData
from flt.data.templates import Template
from flt.run.compose import load_config
from flt.run.federation import Federation
from flt.run.workload import _preprocessor, federation

pytestmark = pytest.mark.slow  # whole runs and fits


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


def built(*overrides: str) -> Federation:
    return federation(load_config(["clients=4", *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards", "by_column", "by_column_dirichlet"])
def test_clients_share_the_training_split_without_overlap(kind: str) -> None:
    few = ["data.classes=[0,1,2]"] if kind == "by_column_dirichlet" else []  # each class has a client
    made = built(f"partition.kind={kind}", "data.column=label", *few)
    shares = [np.concatenate([job.train, job.held_out]) for client in made.clients for job in client.data]
    together = np.concatenate(shares)
    assert len(made.clients) == 4
    assert np.array_equal(np.sort(together), np.arange(len(made.clients[0].data[0].dataset)))  # type: ignore[arg-type]


def test_each_task_is_dealt_on_its_own_and_has_labels_of_its_own() -> None:
    made = built("algo=fl_tac", "clients=6")
    assert set(made.tasks().values()) == {"low", "high"} == set(made.validation) == set(made.test)
    for job in (job for client in made.clients for job in client.data):
        assert len(job.label_counts) <= 2
        assert {int(job.training_set[i]["labels"]) for i in range(len(job.train))} <= {0, 1}
    assert made.module.model.config.num_labels == 2


def test_every_client_has_a_job_though_small_shares_are_dropped() -> None:
    made = built("algo=fl_tac", "clients=10")
    counts = [len(client.data) for client in made.clients]
    assert min(counts) >= 1
    assert max(counts) == 2
    assert any(count == 1 for count in counts)


@pytest.mark.parametrize(("examples", "size"), [("20", 20), ("null", 90), ("5000", 90)])
def test_the_global_model_is_evaluated_on_a_sample(examples: str, size: int) -> None:
    (validation,) = built("algo=fedit", f"eval.examples={examples}").validation.values()
    assert len(validation) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(("examples", "size"), [("20", 20), ("null", 179), ("5000", 179)])
def test_the_test_split_is_sampled_on_its_own(examples: str, size: int) -> None:
    made, again = (built("algo=fedit", f"eval.test_examples={examples}", "eval.examples=30") for _ in range(2))
    (test,), (same,), (validation,) = made.test.values(), again.test.values(), made.validation.values()
    assert (len(test), len(validation)) == (size, 30)  # type: ignore[arg-type]
    labels = [int(test[i]["labels"]) for i in range(size)]
    assert labels == [int(same[i]["labels"]) for i in range(size)]
    assert max(np.bincount(labels)) - min(np.bincount(labels)) <= 3


def parts_of(made: Federation) -> list[list[int]]:
    return [job.train.tolist() for client in made.clients for job in client.data]


@pytest.mark.slow
def test_the_deal_depends_on_the_seed_alone() -> None:
    first, again, other = (parts_of(built("algo=fedit", f"seed={seed}")) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_each_client_is_held_out(share: float) -> None:
    jobs: list[JobData] = [client.data[0] for client in built("algo=fedit", f"partition.held_out={share}").clients]
    for job in jobs:
        total = len(job.train) + len(job.held_out)
        assert abs(len(job.held_out) - share * total) <= 1
        assert sum(job.label_counts) == len(job.train)


def test_data_sets_with_different_prompts_have_no_chat_template() -> None:
    tokenizer = tiny.word_tokenizer(eos_token="[SEP]", chat_template="{{ 'film' }}")
    backbone: Any = SimpleNamespace(tokenizer=tokenizer, preprocessor=tokenizer)
    one, other = ((Template.parse(text, ["a"]),) for text in ("{a} good", "bad {a}"))
    assert _preprocessor(backbone, {one: None, other: None}).chat_template is None
    assert "good" in _preprocessor(backbone, {one: None}).chat_template
    assert _preprocessor(backbone, {}).chat_template == "{{ 'film' }}"
