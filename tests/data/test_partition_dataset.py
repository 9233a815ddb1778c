"""Labels of a user's data set, counted for each client."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

import flt
from flt.core.errors import InputError
from flt.data.deal import kept_shares
from flt.data.job_data import job_data

ROWS = {"text": list("abcdefghij"), "author": list("xxyyzzxyzx"), "label": [0, 2, 2, 0, 2, 0, 0, 2, 2, 0]}
TABLE = datasets.Dataset.from_dict(ROWS)
DICTS = [{key: values[i] for key, values in ROWS.items()} for i in range(10)]
LORA_FACTORS = list(zip(ROWS["text"], ROWS["label"], strict=True))


@pytest.mark.parametrize(
    ("dataset", "by"),
    [(TABLE, "label"), (TABLE, "author"), (TABLE, None), (DICTS, "label"), (LORA_FACTORS, "label")],
    ids=["table by label", "table by author", "table iid", "dicts by label", "pairs by label"],
)
def test_labels_are_counted_whatever_the_data_are_dealt_by(dataset: Any, by: str | None) -> None:
    for client in flt.partition(dataset, by=by, clients=2, shards=2 if by == "label" else None, held_out=0.2):
        data = client.data[0]
        own = np.array(ROWS["label"])[data.train]
        assert data.label_counts == ((own == 0).sum(), 0, (own == 2).sum())  # class 1 keeps its place


@pytest.mark.parametrize(
    ("dataset", "given"),
    [
        (LORA_FACTORS, {"by": None}),
        (TABLE, {"by": "author", "label": "text"}),
        (TABLE, {"by": "author", "label": "topic"}),
        (TABLE.map(lambda row: {"label": row["label"] - 1}), {"by": None}),
        (DICTS, {"by": "author"}),
        (TABLE.map(lambda row: {"label": row["label"] + 2**60}), {"by": "label", "shards": 1}),
        (TABLE.add_column("tags", [[0] * n for n in range(10)]), {"by": "author", "label": "tags"}),
        (TABLE.add_column("share", [0.5] * 10), {"by": None, "label": "share"}),
    ],
    ids=["pairs unread", "texts", "no such column", "below 0", "dicts unread", "ids", "lists", "shares"],
)
def test_what_is_no_class_is_not_counted(dataset: Any, given: dict[str, Any]) -> None:
    assert {client.data[0].label_counts for client in flt.partition(dataset, clients=2, **given)} == {()}


def test_yes_and_no_are_two_classes() -> None:
    table = datasets.Dataset.from_dict({"label": [True, False, True, True]})
    (client,) = flt.partition(table, by=None, clients=1, held_out=0.0)
    assert client.data[0].label_counts == (1, 3)


def test_a_column_of_lists_is_no_column_to_deal_by() -> None:
    table = TABLE.add_column("tags", [[0] * n for n in range(10)])
    with pytest.raises(InputError, match=r"^by=tags: .*; allowed is a column of single values$"):
        flt.partition(table, by="tags", clients=2)


def test_two_keys_give_each_client_one_author_and_dirichlet_shares_of_the_labels() -> None:
    rows = {"text": ["t"] * 200, "author": ["x", "y"] * 100, "label": [0, 0, 1, 1] * 50}
    clients = flt.partition(datasets.Dataset.from_dict(rows), by="label", alpha=0.1, clients=4, within="author", seed=1)
    authors, labels = np.array(rows["author"]), np.array(rows["label"])
    shares = [np.concatenate([c.data[0].train, c.data[0].held_out]) for c in clients]
    assert [set(authors[share].tolist()) for share in shares] == [{"x"}, {"x"}, {"y"}, {"y"}]
    assert sorted(np.concatenate(shares).tolist()) == list(range(200))
    assert max(labels[share].mean() for share in shares) - min(labels[share].mean() for share in shares) > 0.3


@pytest.mark.parametrize(
    "given",
    [{"by": "label", "shards": 1}, {"by": "author"}, {"by": None, "alpha": 0.5}, {"by": "author", "clients": None}],
    ids=str,
)
def test_a_second_key_without_dirichlet_shares_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^within=author: allowed is None, or a column beside by= and alpha="):
        flt.partition(TABLE, within="author", **{"clients": 2, **given})


def test_a_column_within_which_clients_are_divided_is_named_if_it_is_missing() -> None:
    with pytest.raises(InputError, match=r"^within=nobody: there is no such column; allowed is "):
        flt.partition(TABLE, by="label", alpha=1.0, clients=2, within="nobody")


def test_a_job_keeps_a_share_of_its_training_examples_and_all_that_it_holds_out() -> None:
    labels = np.arange(200) % 3
    whole, much, little = (
        job_data([], labels, labels, np.arange(20, 180), 0.2, 7, kept=kept)
        for kept in (1.0, 0.5, 0.05)  # type: ignore[arg-type]  # never read
    )
    assert [job.examples for job in (whole, much, little)] == [128, 64, 6]
    assert [len(job.train) for job in (whole, much, little)] == [128, 64, 6]
    assert set(little.train) < set(much.train) < set(whole.train)
    assert sum(little.label_counts) == 6
    for job in (much, little):
        np.testing.assert_array_equal(job.held_out, whole.held_out)


def test_a_job_keeps_at_least_one_example() -> None:
    labels = np.zeros(5, dtype=np.int64)
    assert job_data([], labels, labels, np.arange(5), 0.2, 0, kept=0.01).examples == 1  # type: ignore[arg-type]  # never read


@pytest.mark.parametrize(
    ("share", "said"),
    [({"c": 0.5}, "^data.share=c: there is no such task"), ({"a": 0}, r"^data.share.a=0: allowed is a number in \(0"),
     ({"a": 1.5}, r"^data.share.a=1.5")],
)  # fmt: skip
def test_shares_without_meaning_are_refused(share: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        kept_shares(SimpleNamespace(data={"share": share}), ["a", "b"])  # type: ignore[arg-type]  # reads nothing else
