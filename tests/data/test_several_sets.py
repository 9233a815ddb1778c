"""Several data sets in a run: each a task, of its own classes, dealt on its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from commands import in_empty_folder
from tiny import save_bert

from flt.core.errors import InputError
from flt.data.tasks import DataSet, kind_of, load_all
from flt.run.compose import load_config
from flt.run.federation import Federation
from flt.run.schema import TrainConfig
from flt.run.workload import federation


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.delenv("FLT_DATA", raising=False)
    return tmp_path


def configured(*overrides: str, **data: Any) -> TrainConfig:
    cfg = load_config(["clients=3", *overrides])
    cfg.data.update(data)
    return cfg


def of(sets: list[DataSet]) -> dict[str, DataSet]:
    return {found.name.rpartition(" ")[2]: found for found in sets}


DIGITS = ("algo=fl_tac", "data=digits_two")


def test_sets_of_one_source_hold_out_the_same_images() -> None:
    found = of(load_all(configured(*DIGITS)))
    for split in ("train", "validation", "test"):
        first, second = (np.asarray(one.raw.splits[split]["image"][:]) for one in found.values())
        assert np.array_equal(first, second)
    labels = {name: np.asarray(one.raw.splits["test"]["label"][:]) for name, one in found.items()}
    assert np.array_equal(labels["parity"], labels["digit"] % 2)  # 0 is the digit 5, which is odd
    assert found["parity"].raw.label_names == ("odd", "even")
    assert {name: one.classes for name, one in found.items()} == {"digit": {"digit": 5}, "parity": {"parity": 2}}


@pytest.mark.slow
def test_each_set_is_dealt_on_its_own_with_labels_and_a_head_of_its_own() -> None:
    made = federation(configured(*DIGITS, "clients=5"))
    assert set(made.tasks().values()) == {"digit", "parity"} == set(made.validation) == set(made.test)
    assert made.task_heads() == {"digit": "5", "parity": "2"}
    assert {head: own["model.classifier.weight"].shape[0] for head, own in made.heads.items()} == {"5": 5, "2": 2}
    for task, width in (("digit", 5), ("parity", 2)):
        jobs = [job for client in made.clients for job in client.data if job.task == task]
        rows = np.concatenate([np.concatenate([job.train, job.held_out]) for job in jobs])
        assert np.array_equal(np.sort(rows), np.arange(len(jobs[0].dataset)))  # type: ignore[arg-type]
        assert {len(job.label_counts) for job in jobs} == {width}


@pytest.mark.slow
def test_a_set_that_is_used_alone_is_a_data_set_as_any_other() -> None:
    chosen = (("data=digits_two", "data.use=[digit]"), ("data=digits",))
    alone, single = (federation(configured("algo=fedit", *data)) for data in chosen)
    assert parts_of(alone) == parts_of(single)
    assert alone.heads == {} == single.heads
    assert set(alone.tasks().values()) == set(single.tasks().values())
    for first, second in zip(alone.module.parameters(), single.module.parameters(), strict=True):
        assert np.array_equal(first.detach(), second.detach())


def parts_of(made: Federation) -> list[list[int]]:
    return [job.train.tolist() for client in made.clients for job in client.data]


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["shape", "task", "shared"])
def test_heads_are_shared_as_the_config_says(heads: str) -> None:
    made = federation(configured(*DIGITS, f"heads={heads}"))
    expected = {"shape": {"5", "2"}, "task": {"digit", "parity"}, "shared": set()}[heads]
    assert set(made.heads) == expected
    assert made.module.model.config.num_labels == 5


def reviews(folder: Path) -> dict[str, dict[str, Any]]:
    """A set of texts in two classes and a set of pairs in three."""
    texts = {"text": [f"good film {i}" for i in range(40)], "label": [i % 2 for i in range(40)]}
    pairs = {
        "sentence1": ["a book"] * 60,
        "sentence2": ["very good", "very bad", "not a book"] * 20,
        "label": [0, 1, 2] * 20,
    }
    datasets.Dataset.from_dict(texts).to_parquet(folder / "texts.parquet")
    datasets.Dataset.from_dict(pairs).to_parquet(folder / "pairs.parquet")
    return {name: {"path": str(folder / f"{name}.parquet")} for name in ("texts", "pairs")}


def test_texts_and_pairs_go_together(folder: Path) -> None:
    cfg = configured(
        "algo=fl_tac", "data=file", f"model={save_bert(folder / 'bert')}", "model.max_length=16", sets=reviews(folder)
    )
    assert kind_of(load_all(cfg)) == "pair"
    made = federation(cfg)
    assert made.task_heads() == {"texts": "2", "pairs": "3"}
    (item, pair) = (next(job for c in made.clients for job in c.data if job.task == t) for t in ("texts", "pairs"))
    separators = [int((one.training_set[0]["input_ids"] == 3).sum()) for one in (item, pair)]
    assert separators == [1, 2]


def test_what_a_set_does_not_say_it_takes_from_the_whole(folder: Path) -> None:
    sets = reviews(folder)
    sets["pairs"] |= {"train_examples": 30, "validation": 0.0}
    cfg = configured(
        "algo=fl_tac", "data=file", "data.train_examples=10", "data.validation=0.5", "data.test=0.0", sets=sets
    )
    sizes = {name: {s: len(rows) for s, rows in one.raw.splits.items()} for name, one in of(load_all(cfg)).items()}
    assert sizes == {"texts": {"train": 10, "validation": 20}, "pairs": {"train": 30}}


@pytest.mark.parametrize(
    ("overrides", "data", "words"),
    [
        (["algo=fl_tac", "data.use=[digit,nope]"], {}, r"^data.use=\['digit', 'nope'\].*digit, parity"),
        (["algo=fl_tac", "data.use=[]"], {}, r"^data.use=\[\]"),
        (["algo=fl_tac", "data.use=[digit,digit]"], {}, "^data.use=.*different"),
        (["algo=fl_tac"], {"tasks": {"low": ["5"]}}, "^data.tasks=.*each of data.sets is a task"),
        (["algo=fl_tac"], {"sets": {"a": {"name": "digits", "sets": {}}}}, "^data.sets.a.sets="),
        (["algo=fl_tac"], {"sets": {"a": {"name": "digits", "lable": "x"}}}, "^data.sets.a.lable=x"),
        (["algo=fl_tac"], {"sets": {"a": {"path": "no.csv"}}}, "^data.sets.a: data.path=no.csv.*an existing file"),
        (["algo=fl_tac"], {"sets": {"a": {"name": "digits", "label": "x"}}}, "^data.sets.a: data.label=x"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value)[:40],
)
def test_sets_that_make_no_sense_are_refused_in_one_line(
    overrides: list[str], data: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_all(configured("data=digits_two", *overrides, **data))
    assert "\n" not in str(caught.value)


def test_images_and_texts_do_not_go_together(folder: Path) -> None:
    sets = {"digit": {"name": "digits"}, "texts": {**reviews(folder)["texts"], "image": None, "classes": None}}
    with pytest.raises(InputError, match=r"^data.use=.*sets of one kind"):
        load_all(configured(*DIGITS, sets=sets))


def test_a_data_set_without_sets_has_none_to_use() -> None:
    with pytest.raises(InputError, match=r"^data.use=\['digit'\]: data=digits is one data set; allowed is null"):
        load_all(configured("algo=fedit", "data.use=[digit]"))
