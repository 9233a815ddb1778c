"""Test examples of each client, against counts of its own classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flt.core.errors import InputError
from flt.data.client_tests import client_tests, with_labels
from flt.data.clients import ClientSpec, JobData
from flt.data.deal import TaskData
from flt.data.examples import Examples
from flt.data.stores import ImageStore


def examples(labels: list[int]) -> Examples:
    return Examples(ImageStore(torch.zeros(len(labels), 1, 1, 1), None, None), labels)


def task(columns: dict[str, list[str]] | None = None, splits: tuple[str, ...] = ("train", "test")) -> TaskData:
    labels = {"train": [0, 0, 0, 1, 1, 2, 2, 2], "test": [0, 1, 2] * 40}
    made = {split: examples(labels[split]) for split in splits}
    return TaskData("t", made, {split: np.array(values) for split, values in (columns or {}).items()})


def client(number: int, train: list[int], counts: tuple[int, ...], of: TaskData) -> ClientSpec:
    nobody = np.arange(0)
    return ClientSpec(number, (JobData(of.splits["train"], np.array(train), nobody, "t", counts),))


def drawn(of: TaskData, clients: list[ClientSpec], kind: str = "dirichlet", **given: Any) -> dict[Any, Examples]:
    settings = {"client_test_examples": 20, "client_labels": ["own"], **given}
    changes = settings.pop("task_changes", None)
    cfg: Any = SimpleNamespace(
        seed=3, eval=SimpleNamespace(**settings), partition=SimpleNamespace(kind=kind), task_changes=changes
    )
    return client_tests(cfg, [of], clients)


def test_each_client_is_tested_in_the_shares_of_its_own_classes() -> None:
    of = task()
    clients = [client(0, [0, 1, 2, 3], (3, 1, 0), of), client(7, [5, 6], (0, 0, 2), of)]
    found = drawn(of, clients)
    assert {job: np.bincount(view.labels, minlength=3).tolist() for job, view in found.items()} == {
        (0, 0): [15, 5, 0],
        (7, 0): [0, 0, 20],
    }
    for view in found.values():
        assert len(np.unique(view.rows)) == 20
    again = drawn(of, clients)
    assert all(np.array_equal(found[job].rows, again[job].rows) for job in found)


def test_a_client_gets_no_example_twice() -> None:
    of = task()
    (view,) = drawn(of, [client(0, [5], (0, 0, 1), of)], client_test_examples=100).values()
    assert sorted(view.rows.tolist()) == list(range(2, 120, 3))


@pytest.mark.parametrize(
    ("kind", "languages"), [("by_column_dirichlet", {"de"}), ("by_column", {"de"}), ("dirichlet", {"de", "fr"})]
)
def test_a_client_is_tested_in_its_own_language_if_languages_divide_the_clients(kind: str, languages: set[str]) -> None:
    columns = {"train": ["de"] * 4 + ["fr"] * 4, "test": ["de", "de", "de", "fr", "fr", "fr"] * 20}
    of = task(columns)
    (view,) = drawn(of, [client(0, [0, 3], (1, 1, 0), of)], kind).values()
    assert set(np.array(columns["test"])[view.rows]) == languages


def test_without_examples_nothing_is_drawn() -> None:
    of = task()
    assert drawn(of, [client(0, [0], (1, 0, 0), of)], client_test_examples=0) == {}


def test_label_counts_are_own_uniform_or_those_of_other_classes() -> None:
    job = JobData(examples([0]), np.arange(1), np.arange(0), label_counts=(5, 1, 0, 2, 0))
    assert with_labels(job, "own").label_counts == (5, 1, 0, 2, 0)
    assert with_labels(job, "uniform").label_counts == (1, 1, 1, 1, 1)
    assert with_labels(job, "wrong").label_counts == (0, 2, 0, 5, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"client_test_examples": -1}, "eval.client_test_examples=-1: allowed is an integer >= 0"),
        ({"client_labels": ["mine"]}, "eval.client_labels=mine: allowed is own, uniform, wrong"),
        ({"client_labels": []}, r"eval.client_labels=\[\]: allowed is a list of own, uniform, wrong, at least one"),
        (
            {"client_labels": ["wrong"], "client_test_examples": 0},
            r"eval.client_labels=\['wrong'\]: no client is tested",
        ),
        ({"task_changes": {"t": ["u", 2]}}, "eval.client_test_examples=20: the classes of a job change during the run"),
        ({"splits": ("train",)}, "eval.client_test_examples=20: the data have no test split"),
        ({"kind": "by_column"}, "eval.client_test_examples=20: the test split has no data.column"),
        ({"counts": (0, 0, 0, 5)}, "eval.client_test_examples=20: client 0 has classes of which the test split has no"),
        ({"counts": ()}, "eval.client_test_examples=20: client 0 has no label counts"),
    ],
    ids=str,
)
def test_tests_that_cannot_be_drawn_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    of = task({"train": ["de"] * 8}, given.pop("splits", ("train", "test")))
    with pytest.raises(InputError, match=f"^{message}"):
        drawn(of, [client(0, [0], given.pop("counts", (1, 0, 0)), of)], **given)
