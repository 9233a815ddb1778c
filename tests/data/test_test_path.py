"""``data.test_path``: a test split of its own, whole, with the columns and classes of train."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load

TRAIN = [(f"text {i}", ("ham", "spam")[i % 2]) for i in range(40)]
TEST = [(f"new {i}", ("ham", "spam")[i % 2]) for i in range(7)]


def save(path: Path, rows: list[tuple], names: str = "text,label") -> str:
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return save(tmp_path / "train.csv", TRAIN)


def texts(raw: RawData, split: str) -> list[str]:
    return raw.splits[split]["text"][:]


def test_the_test_file_is_the_whole_test_split_and_train_loses_nothing_to_it(train: str, tmp_path: Path) -> None:
    alone = load(DataConfig(name="file", path=train, validation=0.2, test=0.0))
    raw = load(
        DataConfig(name="file", path=train, test_path=save(tmp_path / "test.csv", TEST), validation=0.2, test=0.1)
    )
    assert texts(raw, "test") == [text for text, _ in TEST]
    assert raw.splits["test"]["label"][:] == [0, 1, 0, 1, 0, 1, 0]
    for split in ("train", "validation"):
        assert texts(raw, split) == texts(alone, split)


FORMS = {
    "jsonl": lambda rows, place: rows.to_json(f"{place}.jsonl"),
    "parquet": lambda rows, place: rows.to_parquet(f"{place}.parquet"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_test_file_may_have_another_format(form: str, train: str, tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"label": [one for _, one in TEST], "text": [text for text, _ in TEST], "x": range(7)}
    )
    FORMS[form](rows, tmp_path / "test")
    assert texts(load(DataConfig(name="file", path=train, test_path=f"test.{form}")), "test") == [t for t, _ in TEST]


def test_of_a_source_with_several_splits_the_test_split_is_used(train: str, tmp_path: Path) -> None:
    rows = [(*row, ("train", "test", "train")[i % 3]) for i, row in enumerate(TEST)]
    other = save(tmp_path / "other.csv", rows, "text,label,split")
    assert texts(load(DataConfig(name="file", path=train, test_path=other)), "test") == ["new 1", "new 4"]
    assert texts(load(DataConfig(name="file", path=other, test_path=train, validation=0.0)), "test")[0] == "text 0"


def test_a_folder_of_files_or_of_images_is_a_test_split(train: str, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    save(tmp_path / "more" / "test.csv", TEST)
    assert texts(load(DataConfig(name="file", path=train, test_path="more")), "test") == [text for text, _ in TEST]
    for top, count in (("photos", 6), ("held", 2)):
        for name in ("dark", "light"):
            for i in range(count):
                place = tmp_path / top / name / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 4, 3), 10 * i + 100 * (name == "light"), np.uint8)).save(place)
    raw = load(DataConfig(name="hub", path="photos", test_path="held", validation=0.0))
    assert {split: len(rows) for split, rows in raw.splits.items()} == {"train": 12, "test": 4}
    assert raw.splits["test"]["label"][:] == [0, 0, 1, 1]


def test_names_in_the_test_file_get_the_numbers_of_train_s_class_label(tmp_path: Path) -> None:
    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["spam", "ham"]))
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
    datasets.DatasetDict(train=rows, validation=rows).save_to_disk(tmp_path / "d")
    rows.to_parquet(tmp_path / "train.parquet")
    cfg = DataConfig(
        name="file", path=str(tmp_path / "train.parquet"), test_path=save(tmp_path / "t.csv", TEST), validation=0
    )
    assert load(cfg).splits["test"]["label"][:4] == [1, 0, 1, 0]


def test_a_causal_model_s_test_file_needs_prompts_and_responses_alone(tmp_path: Path) -> None:
    one = save(tmp_path / "a.csv", [(f"do {i}", f"done {i}") for i in range(9)], "instruction,output")
    two = save(tmp_path / "b.csv", [("do x", "done x")], "instruction,output")
    raw = load(DataConfig(name="file", path=one, test_path=two, response="output", validation=0.0))
    assert raw.splits["test"]["output"][:] == ["done x"]
    assert raw.kind == "causal"


COLUMNS = "the column label is missing; allowed is data with the columns of {train}: text, label"
CLASSES = "it has the class eggs; allowed is the classes of {train}: ham, spam"
TYPES = "its column label holds integers; allowed is texts or names of classes, as in {train}"
SPLITS = "its splits are train, validation"
BAD = {
    "no column": ([("a", "b")], "text,stars", COLUMNS),
    "another class": ([("a", "eggs")], "text,label", CLASSES),
    "another type": ([("a", 1)], "text,label", TYPES),
    "no rows": ([], "text,label", "{test}"),
    "numbers as texts": ([(3, "ham")], "text,label", "its column text holds integers; allowed is texts"),
    "no test split": ([("a", "ham", "train"), ("b", "ham", "validation")], "text,label,split", SPLITS),
}


@pytest.mark.parametrize("case", BAD)
def test_a_test_file_that_does_not_fit_is_refused_in_one_line(case: str, train: str, tmp_path: Path) -> None:
    rows, names, error = BAD[case]
    test = save(tmp_path / "test.csv", rows, names)
    with pytest.raises(InputError) as raised:
        load(DataConfig(name="file", path=train, test_path=test))
    assert str(raised.value).startswith(f"data.test_path={test}:")
    assert error.format(train=train, test=test) in str(raised.value)


@pytest.mark.parametrize("path", ["missing.csv", "org/name", "", "nul\0"])
def test_only_a_file_or_folder_that_is_there_is_a_test_file(path: str, train: str) -> None:
    with pytest.raises(InputError, match="allowed is an existing folder or file"):
        load(DataConfig(name="file", path=train, test_path=path))


def test_the_examples_of_train_are_no_test_split_but_a_test_split_beside_them_is(train: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tested on the examples of its training; allowed is other data"):
        load(DataConfig(name="file", path=train, test_path="./train.csv"))
    rows = [(*row, "train") for row in TRAIN] + [(*row, "test") for row in TEST]
    both = save(tmp_path / "both.csv", rows, "text,label,split")
    assert texts(load(DataConfig(name="file", path=both, test_path=both)), "test") == [text for text, _ in TEST]


def test_hidden_labels_are_no_test_split(tmp_path: Path) -> None:
    one = save(tmp_path / "a.csv", [(f"t{i}", i % 2) for i in range(9)])
    two = save(tmp_path / "b.csv", [("t", -1), ("u", -1)])
    with pytest.raises(InputError, match="its labels are hidden"):
        load(DataConfig(name="file", path=one, test_path=two))
