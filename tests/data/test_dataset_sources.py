"""Sources: one form for digits, files and the hub, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.digits import digits
from flt.run.compose import load_choice
from flt.run.conf_groups import choices

CONF = Path(__file__).parents[2] / "conf" / "data"
ROWS = {
    "text": ["one", "", "three", "four", "five", "six"],
    "label": ["dog", "cat", "dog", "cat", "dog", "cat"],
    "split": ["train", "train", "train", "train", "test", "train_dev"],
    "author": ["a", "a", "b", "b", "c", "c"],
}


def file_config(path: Path, **fields: Any) -> DataConfig:
    return DataConfig(**{"name": "file", "path": str(path), "validation": 0.0, **fields})


def write(folder: Path, rows: dict[str, list], suffix: str = ".parquet") -> Path:
    path, frame = folder / f"rows{suffix}", pandas.DataFrame(rows)
    if suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


def load_rows(folder: Path, rows: dict[str, list], **fields: Any) -> RawData:
    return load(file_config(write(folder, rows), **fields))


def pick(*names: str) -> dict[str, list]:
    return {name: ROWS[name] for name in names}


# ---------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", choices("data"))
def test_yaml_has_exactly_the_fields_of_the_config(name: str) -> None:
    given, path = load_choice("data", name), CONF / f"{name}.yaml"
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), given))
    assert isinstance(merged, DataConfig)
    assert list(given) == list(DataConfig.__dataclass_fields__)
    assert path.read_text().startswith("# ")
    assert "make train ALGO=" in path.read_text()


# ---------------------------------------------------------------------------------------------- digits


def test_digits_yaml_loads_five_to_nine_as_zero_to_four() -> None:
    cfg = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), load_choice("data", "digits")))
    raw = load(cfg)
    assert raw.label_names == ("5", "6", "7", "8", "9")
    assert sum(map(len, raw.splits.values())) == len(digits([5, 6, 7, 8, 9])[1])
    assert [len(raw.splits[name]) for name in ("train", "validation", "test")] == [627, 90, 179]


def test_held_out_splits_are_disjoint_stratified_and_move_with_the_seed_only() -> None:
    cfg = DataConfig(validation=0.2, test=0.3)
    raw, again, other = load(cfg, seed=1), load(cfg, seed=1), load(cfg, seed=2)
    images = [raw.splits[name].with_format("numpy")["image"][:].reshape(-1, 64) for name in raw.splits]
    total = np.sort(np.concatenate(images).sum(axis=1))
    np.testing.assert_allclose(total, np.sort(digits(range(10))[0].sum(axis=(1, 2, 3))))
    shares = [np.bincount(raw.values(name, "label")) / len(raw.splits[name]) for name in raw.splits]
    assert np.abs(shares[0] - shares[1]).max() < 0.01
    assert np.abs(shares[0] - shares[2]).max() < 0.01
    assert (raw.values("test", "label") == again.values("test", "label")).all()
    assert (raw.values("test", "label") != other.values("test", "label")).any()


# ---------------------------------------------------------------------------------------------- rows and classes


def test_rows_are_chosen_by_the_values_of_columns(tmp_path: Path) -> None:
    rows = {**ROWS, "label": ["dog", "cat", "cat", "cat", "dog", "cat"], "year": [1, 2, 1, 2, 1, 2]}
    raw = load_rows(tmp_path, rows, where={"author": ["a", "b"], "year": ["1"]})
    assert {name: split["text"][:] for name, split in raw.splits.items()} == {"train": ["one", "three"]}
    assert raw.values("train", "label").tolist() == [1, 0]


def test_merged_classes_are_named_and_numbered_by_their_group_and_the_rest_is_left_out() -> None:
    plain = load(DataConfig(validation=0.2, test=0.1), seed=3)
    raw = load(DataConfig(validation=0.2, test=0.1, merge={"round": ["0", "8"], "straight": ["1", "7"]}), seed=3)
    assert raw.label_names == ("round", "straight")
    for split in plain.splits:
        labels = plain.values(split, "label")
        kept = np.isin(labels, [0, 1, 7, 8])
        np.testing.assert_array_equal(raw.values(split, "label"), np.isin(labels[kept], [1, 7]))
        images = [np.asarray(one.splits[split].with_format("numpy")["image"][:]) for one in (plain, raw)]
        np.testing.assert_array_equal(images[0][kept], images[1])


@pytest.mark.parametrize(("most", "size"), [(50, 50), (None, 896), (5000, 896)])
def test_training_examples_are_capped_by_a_stratified_sample_and_no_other_split_is(most: int | None, size: int) -> None:
    given: dict[str, Any] = {"classes": [5, 6, 7, 8, 9], "test": 0.0, "validation": 0.0}
    whole, raw, again = load(DataConfig(**given)), *(load(DataConfig(**given, train_examples=most)) for _ in range(2))
    labels = raw.values("train", "label")
    assert len(labels) == size
    assert max(np.bincount(labels)) - min(np.bincount(labels)) <= max(2, size // 50)
    assert raw.splits["train"]["image"][:] == again.splits["train"]["image"][:]
    held = load(DataConfig(**{**given, "test": 0.5}, train_examples=most))
    assert len(held.splits["test"]) == len(whole.splits["train"]) // 2


# ---------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl"])
def test_file_formats_give_the_same_data(tmp_path: Path, suffix: str) -> None:
    raw = load(file_config(write(tmp_path, ROWS, suffix), column="author"))
    assert (raw.kind, raw.inputs, raw.label, raw.label_names) == ("text", ("text",), "label", ("cat", "dog"))
    assert raw.splits["train"]["text"][:] == ["one", "", "three", "four"]  # rows with empty text stay
    assert raw.values("train", "label").tolist() == [1, 0, 1, 0]
    assert raw.values("train", "author").tolist() == ["a", "a", "b", "b"]
    assert raw.splits["test"]["text"][:] == ["five"]
    assert raw.splits["validation"]["text"][:] == ["six"]


def test_train_dev_gives_way_to_a_validation_split(tmp_path: Path) -> None:
    raw = load_rows(tmp_path, {**ROWS, "split": ["train", "train", "train", "train", "validation", "train_dev"]})
    assert raw.splits["validation"]["text"][:] == ["five"]


def test_hidden_test_labels_drop_the_split(tmp_path: Path) -> None:
    raw = load_rows(tmp_path, {**ROWS, "label": [0, 1, 1, 0, -1, 1]})
    assert sorted(raw.splits) == ["train", "validation"]


def test_integer_labels_take_names_from_their_column_and_gaps_close(tmp_path: Path) -> None:
    rows = {**pick("text"), "label": [4, 9, 4, 9, 2, 2], "label_name": list("abab") + ["c", "c"]}
    raw = load_rows(tmp_path, rows)
    assert raw.label_names == ("c", "a", "b")
    assert raw.values("train", "label").tolist() == [1, 2, 1, 2, 0, 0]


def test_classes_keep_and_renumber_in_their_order(tmp_path: Path) -> None:
    raw = load_rows(tmp_path, {**pick("text"), "label": [4, 9, 4, -1, 2, 2]}, classes=[9, 4])
    assert raw.label_names == ("9", "4")
    assert raw.values("train", "label").tolist() == [1, 0, 1]
    assert raw.splits["train"]["text"][:] == ["one", "", "three"]


def test_text_without_headers_is_preferred_and_pairs_go_before_texts(tmp_path: Path) -> None:
    both = load_rows(tmp_path, {**pick("text", "label"), "text_stripped": ROWS["text"]})
    assert both.inputs == ("text_stripped",)
    pair = load_rows(tmp_path, {**pick("text", "label"), "premise": ROWS["text"], "hypothesis": ROWS["text"]})
    assert (pair.kind, pair.inputs) == ("pair", ("premise", "hypothesis"))
    given = load_rows(tmp_path, {**pick("text", "label"), "other": ROWS["text"]}, text="other", text_pair="text")
    assert (given.kind, given.inputs) == ("pair", ("other", "text"))


def test_npz_splits_keep_bytes_and_class_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    names = np.array(["cat", "dog"])
    labels = np.array([0, 1, 0, 1], dtype=np.uint8)
    np.savez(
        tmp_path / "a.npz", x_train=images[:4], y_train=labels, x_test=images[4:], y_test=labels[:2], class_names=names
    )
    raw = load(file_config(tmp_path / "a.npz"))
    assert (raw.kind, raw.inputs, raw.label_names) == ("image", ("image",), ("cat", "dog"))
    np.testing.assert_array_equal(raw.splits["test"].with_format("numpy")["image"][:], images[4:])
    assert raw.splits["train"].features["image"].dtype == "uint8"


def test_loading_writes_nothing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ROWS)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    load(file_config(path, validation=0.25, classes=[0, 1]))
    assert sorted(tmp_path.rglob("*")) == [path, tmp_path / "work"]


# ---------------------------------------------------------------------------------------------- the hub


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, datasets.Dataset]) -> list[tuple]:
    calls: list[tuple] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: calls.append(given) or datasets.DatasetDict(splits))
    return calls


def test_hub_class_labels_keep_their_names_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["negative", "absent", "positive"])
    )
    train = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [2, 0]}, features=features)
    hidden = datasets.Dataset.from_dict({"sentence": ["c"], "label": [-1]}, features=features)
    calls = hub(monkeypatch, {"train": train, "dev": train, "test": hidden, "unsupervised": hidden})
    raw = load(DataConfig(name="hub", path="org/name", subset="sst2"))
    assert calls == [("org/name", "sst2")]
    assert raw.label_names == ("negative", "absent", "positive")
    assert raw.values("train", "label").tolist() == [2, 0]
    assert sorted(raw.splits) == ["train", "validation"]


def test_hub_failure_of_any_kind_is_one_line_naming_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("no such repository\nwith a long story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"^data\.path=org/name: RuntimeError: no such repository; [^\n]*$"):
        load(DataConfig(name="hub", path="org/name"))


def test_local_mirror_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ROWS)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: pytest.fail("asked the hub"))
    raw = load(DataConfig(name="newsgroups20", path="org/name", local="rows.parquet"))
    assert raw.splits["test"]["text"][:] == ["five"]


def test_without_the_mirrors_file_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    calls = hub(monkeypatch, {"train": datasets.Dataset.from_dict(pick("text", "label"))})
    load(DataConfig(name="newsgroups20", path="org/name", local="rows.parquet"))
    assert calls == [("org/name", None)]


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("rows", "fields", "words"),
    [
        (pick("text", "label"), {"label": "klass"}, ["data.label=klass", "text, label"]),
        (pick("text", "label"), {"text": "body"}, ["data.text=body", "text, label"]),
        (pick("text", "label"), {"text_pair": "body"}, ["data.text_pair=body"]),
        (pick("text", "label"), {"image": "picture"}, ["data.image=picture"]),
        (pick("text", "label"), {"image": "text"}, ["data.image=text", "text"]),
        (pick("text", "label"), {"column": "language"}, ["data.column=language", "text, label"]),
        (pick("text", "label"), {"label_name": "names"}, ["data.label_name=names", "text, label"]),
        (pick("author", "label"), {}, ["data.text=None", "author, label"]),
        (pick("text", "author"), {}, ["data.label=None", "text, author"]),
        ({**pick("text"), "label": [0.5] * 6}, {}, ["data.label=label", "double"]),
        ({**pick("text"), "label": [0, 1, float("nan"), 0, 1, 0]}, {}, ["data.label=label", "missing"]),
        ({**pick("text"), "label": ["a", None, "b", "a", "b", ""]}, {}, ["data.label=label", "2 labels are missing"]),
        ({**pick("text"), "label": [0, 1, -1, 0, 1, 0]}, {}, ["data.label=label", "below 0"]),
        ({**pick("text"), "label": [3] * 6}, {}, ["data.label=label", "two classes"]),
        ({**pick("label"), "text": [1, 2, 3, 4, 5, 6]}, {}, ["data.text=text", "int64"]),
        ({**pick("text"), "label": [0, 1] * 3, "label_name": list("abacab")}, {}, ["data.label_name=label_name"]),
        (pick("text", "label"), {"classes": [0, 5]}, ["data.classes=[0, 5]", "0, 1"]),
        (pick("text", "label"), {"classes": [0, 0]}, ["data.classes=[0, 0]"]),
        (ROWS, {"where": {"writer": ["a"]}}, ["data.where.writer=writer", "text, label"]),
        (ROWS, {"where": {"author": ["a", "z"]}}, ["data.where.author=['a', 'z']", "a, b"]),
        (ROWS, {"where": {"author": []}}, ["data.where.author=[]"]),
        (ROWS, {"merge": {"pets": ["*"]}}, ["data.merge=['pets']", "two classes or more"]),
        (ROWS, {"merge": {"pets": ["*"], "cats": ["cat"]}}, ["data.merge.cats=cat", "no other group"]),
        (ROWS, {"merge": {"pets": ["cat"], "birds": ["hen"]}}, ["data.merge.birds=hen", "cat, dog"]),
        (pick("text", "label"), {"train_examples": 0}, ["data.train_examples=0", ">= 1"]),
        (pick("text", "label"), {"validation": 1.0}, ["data.validation=1.0"]),
        (pick("text", "label"), {"test": -0.1}, ["data.test=-0.1"]),
        (pick("text", "label"), {"validation": 0.5, "test": 0.5}, ["data.validation=0.5", "data.test=0.5"]),
        ({**ROWS, "split": ["test"] * 6}, {}, ["data.path=", "train split", "test"]),
        ({"text": [], "label": []}, {}, ["data.path=", "empty"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(
    tmp_path: Path, rows: dict[str, list], fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        load_rows(tmp_path, rows, **fields)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.jsonl", "rows.npz"])
@pytest.mark.parametrize("content", [None, b"", b"\x00\x01 not a table"])
def test_missing_and_broken_files_are_one_line_naming_the_path(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        load(file_config(tmp_path / name))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("data.path=")


QUOTED = "unmistakable"
"""Which the readers' own errors repeat."""


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("rows.csv", f"text,label\na,1\n{QUOTED},1,2\n", "CSV parse error: Row #3: Expected 2 columns, got 3"),
        ("rows.tsv", f"text\tlabel\n{QUOTED}\n", "CSV parse error: Row #2: Expected 2 columns, got 1"),
        ("rows.json", f'{{"{QUOTED}": 1}}\n{{"{QUOTED}": ""}}', "error, changed from number to string in row 1"),
        ("rows.json", f'{{"{QUOTED}": 1, "{QUOTED}": 1}}', "JSON parse error, was specified twice in row 0"),
        ("rows.jsonl", f"{QUOTED}\n", "JSON parse error: Invalid value, in row 0"),
    ],
)
def test_a_readers_error_says_what_is_wrong_and_where_and_quotes_nothing(
    name: str, content: str, why: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        load(file_config(tmp_path / name))
    assert f"{why}; allowed is a readable {Path(name).suffix} file" in str(error.value)
    assert QUOTED not in str(error.value)
    assert error.value.__suppress_context__  # a log that has the traceback quotes nothing either


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.array([{"run": "code"}], dtype=object), y_train=np.zeros(1))
    with pytest.raises(InputError, match="data.path="):
        load(file_config(tmp_path / "a.npz"))


def test_config_without_a_path_says_what_a_path_may_be() -> None:
    with pytest.raises(InputError, match=r"data\.path=None: allowed is a hub id such as org/name, or a file"):
        load(DataConfig(name="hub"))


def test_the_validation_split_may_be_the_test_and_a_share_of_train_validates(tmp_path: Path) -> None:
    rows = [
        {"text": f"{split} {i}", "label": i % 2, "split": split}
        for split in SPLIT_SIZES
        for i in range(SPLIT_SIZES[split])
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    usual = load(DataConfig(name="file", path=str(path)))
    moved = load(DataConfig(name="file", path=str(path), test_split="validation"))
    assert {name: len(split) for name, split in usual.splits.items()} == SPLIT_SIZES
    assert {name: len(split) for name, split in moved.splits.items()} == {"train": 36, "validation": 4, "test": 10}
    assert set(moved.splits["test"]["text"][:]) == {f"validation {i}" for i in range(10)}
    with pytest.raises(InputError, match="^data.test_split=train: allowed is test, validation"):
        load(DataConfig(test_split="train"))


SPLIT_SIZES = {"train": 40, "validation": 10}
