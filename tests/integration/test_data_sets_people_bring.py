"""Data sets and arguments that people bring from Python, and the names of classes, which stay with the model."""

from __future__ import annotations

import dataclasses
import json
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
import torch
import transformers
from commands import QUICK, in_empty_folder
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from toys import FEATURES, Toy, toy_data

import flt
from flt.api import Result
from flt.api import train as train_cfg
from flt.core.errors import InputError
from flt.run.compose import load_config


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


LABELS = [2, 0, 1, 0, 2, 1, 1]
NAMES = ("zebra", "ant", "cow")
X = torch.arange(7.0)
Example = namedtuple("Example", ["label", "x"])


@dataclasses.dataclass
class Record:
    x: float
    label: int


class Items(torch.utils.data.Dataset):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


def pairs(labels: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(X, labels, strict=True))


def table(labels: Sequence[Any] = LABELS, feature: Any = None, column: str = "label") -> datasets.Dataset:
    features = datasets.Features(x=datasets.Value("float32"), **{column: feature}) if feature else None
    return datasets.Dataset.from_dict({"x": X.tolist(), column: list(labels)}, features=features)


def without_label(batch: dict[str, list]) -> dict[str, Any]:
    return {"x": torch.tensor(batch["x"])}


def in_place(change: Callable[[datasets.Dataset], None]) -> datasets.Dataset:
    made = table()
    change(made)
    return made


RIGHT: dict[str, tuple[Any, dict[str, Any], Sequence[Any]]] = {
    "a table": (table(), {}, LABELS),
    "a table whose transform drops the label": (table().with_transform(without_label), {}, LABELS),
    "set_transform": (in_place(lambda d: d.set_transform(without_label)), {}, LABELS),
    "set_format of torch": (in_place(lambda d: d.set_format("torch")), {}, LABELS),
    "set_format of numpy": (in_place(lambda d: d.set_format("numpy")), {}, LABELS),
    "a format of some columns": (in_place(lambda d: d.set_format("torch", columns=["x"])), {}, LABELS),
    "selected rows": (table().select([6, 0, 3, 5]), {}, [1, 2, 0, 1]),
    "shuffled rows": (table().shuffle(seed=1), {}, table().shuffle(seed=1)["label"][:]),
    "selected rows with a transform": (
        table().select([6, 0, 3, 5]).with_transform(without_label), {}, [1, 2, 0, 1],
    ),
    "another column": (table(column="labels"), {"by": "labels"}, LABELS),
    "a subset of a table with a transform": (
        Subset(table().with_transform(without_label), [6, 0, 3, 5]), {}, [1, 2, 0, 1],
    ),
    "two tables joined": (ConcatDataset([table().with_transform(without_label), table()]), {}, LABELS * 2),
    "class labels": (table(LABELS, datasets.ClassLabel(names=list(NAMES))), {}, LABELS),
    "tensors": (TensorDataset(X, torch.tensor(LABELS)), {}, LABELS),
    "tensors with labels (n, 1)": (TensorDataset(X, torch.tensor(LABELS)[:, None]), {}, LABELS),
    "a subset of tensors": (Subset(TensorDataset(X, torch.tensor(LABELS)), [6, 0, 3]), {}, [1, 2, 0]),
    "pairs in a list": (pairs(LABELS), {}, LABELS),
    "pairs in a tuple": (tuple(pairs(LABELS)), {}, LABELS),
    "lists of two": ([list(pair) for pair in pairs(LABELS)], {}, LABELS),
    "scalars of torch": (pairs(list(torch.tensor(LABELS))), {}, LABELS),
    "scalars of numpy": (pairs(list(np.array(LABELS, dtype=np.int16))), {}, LABELS),
    "booleans": (pairs([label > 0 for label in LABELS]), {}, [label > 0 for label in LABELS]),
    "booleans of numpy": (pairs(list(np.array(LABELS) > 0)), {}, [label > 0 for label in LABELS]),
    "texts": (pairs([NAMES[k] for k in LABELS]), {}, [NAMES[k] for k in LABELS]),
    "texts that NumPy made": (pairs(list(np.array(NAMES)[LABELS])), {}, [NAMES[k] for k in LABELS]),
    "whole fractions": (pairs([float(label) for label in LABELS]), {}, LABELS),
    "labels below 0": (pairs([label - 1 for label in LABELS]), {}, LABELS),
    "dicts": ([{"x": x, "label": label} for x, label in pairs(LABELS)], {}, LABELS),
    "dicts by another key": ([{"x": x, "who": who} for x, who in pairs(LABELS)], {"by": "who"}, LABELS),
    "named tuples, label first": ([Example(label, x) for x, label in pairs(LABELS)], {}, LABELS),
    "dataclasses": ([Record(float(x), label) for x, label in pairs(LABELS)], {}, LABELS),
    "input, label and index": ([(x, label, 5) for x, label in pairs(LABELS)], {}, LABELS),
    "a Dataset class": (Items(pairs(LABELS)), {}, LABELS),
    "one class only": (pairs([3] * 7), {}, [3] * 7),
}  # fmt: skip
"""What is brought -> data set, arguments, and the label of each example."""


@pytest.mark.parametrize(("dataset", "given", "labels"), RIGHT.values(), ids=RIGHT)
def test_examples_are_dealt_by_their_labels(dataset: Any, given: dict[str, Any], labels: Sequence[Any]) -> None:
    shares = flt.partition(dataset, **{"by": "label", "clients": None, "held_out": 0.0, **given})
    expected = [[i for i, label in enumerate(labels) if label == value] for value in sorted(set(labels))]
    assert [client.data[0].train.tolist() for client in shares] == expected


def test_a_table_is_dealt_at_random_whatever_its_transform_leaves_out() -> None:
    shares = flt.partition(table().with_transform(without_label), by=None, clients=2, held_out=0.0)
    counts = np.sum([client.data[0].label_counts for client in shares], axis=0)
    assert counts.tolist() == np.bincount(LABELS).tolist()


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(pairs(LABELS))


class WithoutLength(torch.utils.data.Dataset):
    def __getitem__(self, i: int) -> Any:
        return X[i], 0


def vectors(key: str = "") -> list[Any]:
    return [{key: torch.zeros(12)} if key else (x, torch.zeros(12)) for x in X]


ONCE: dict[str, tuple[Any, dict[str, Any], str]] = {
    "vector labels": (vectors(), {}, "by=label: .*Tensor of shape .12,.*allowed is a column of single values"),
    "vector labels in dicts": (vectors("labels"), {"by": "labels"}, "by=labels: .*Tensor of shape .12,"),
    "arrays of labels": (pairs([np.zeros(3)] * 7), {}, "ndarray of shape .3,"),
    "lists of tags": ([{"tags": [0] * n} for n in range(7)], {"by": "tags"}, "by=tags: .*a list,.*single values"),
    "lists of tags in a table": (table([[0]] * 7), {}, "by=label: .*a list,.*single values"),
    "dicts as labels": (pairs([{"a": 1}] * 7), {}, "by=label: .*a dict,.*single values"),
    "ids, mask and label": ([(x, torch.ones(5), 1) for x in X], {}, "by=label: .*3 parts; .*by=None"),
    "two texts and a label": ([("a", "b", 1) for _ in X], {}, "by=label: .*3 parts"),
    "texts without labels": (["a text"] * 7, {}, "by=label: .*of type str; .*by=None"),
    "rows of a tensor": (torch.zeros(7, 2), {}, "by=label: .*of type Tensor"),
    "numbers": (list(range(7)), {}, "by=label: .*of type int"),
    "no label": (pairs([0, None, 1, 0, 1, 0, 1]), {}, "by=label: 1 values are missing"),
    "no label in a table": (table([0, None, 1, 0, 1, 0, 1]), {}, "by=label: 1 values are missing"),
    "NaN": (pairs([0.0, float("nan"), 1.0, 0.0, 1.0, 0.0, 1.0]), {}, "by=label: 1 values are missing"),
    "1 and '1'": (pairs([1, "1", 0, 1, 0, 1, 0]), {}, "by=label: .*numbers and texts; allowed is values of one type"),
    "True and 'True'": (pairs([True, "True"] * 3 + [False]), {}, "by=label: .*booleans and texts"),
    "True and 1": (pairs([True, 1] * 3 + [0]), {}, "by=label: .*booleans and numbers"),
    "values without order": (pairs([object()] * 7), {}, "by=label: values of type object have no order"),
    "no such column": (table(), {"by": "labels"}, "^by=labels: there is no such column; allowed is x, label$"),
    "no such key": ([{"x": 1}] * 7, {}, "^by=label: there is no such key; allowed is x$"),
    "no such field": ([Record(0.0, 1)] * 7, {"by": "who"}, "^by=who: there is no such field; allowed is x, label$"),
    "a dict of splits": (datasets.DatasetDict(train=table()), {}, r"dataset=DatasetDict: .*dataset\['train'\]"),
    "a dict of columns": ({"x": X, "label": X}, {}, "dataset=dict: .*Dataset.from_dict"),
    "a pair of tensors": ((X, X), {}, r"dataset=tuple: .*TensorDataset\(\*dataset\)"),
    "a list of data sets": ([toy_data(9), toy_data(9)], {}, "dataset=list: .*ConcatDataset"),
    "streaming data": (table().to_iterable_dataset(), {}, r"dataset=IterableDataset: .*list\(dataset\)"),
    "an IterableDataset": (Endless(), {}, r"dataset=Endless: .*list\(dataset\)"),
    "a generator": ((pair for pair in pairs(LABELS)), {}, r"dataset=generator: .*list\(dataset\)"),
    "data without a length": (WithoutLength(), {}, "dataset=WithoutLength: allowed is a data set with a length"),
    "a DataLoader": (DataLoader(toy_data(9)), {}, "dataset=DataLoader: .*loader.dataset"),
    "a data module": (pl.LightningDataModule(), {}, "dataset=LightningDataModule: .*not a data module"),
    "a data frame": (pd.DataFrame({"x": [1]}), {}, r"datasets.Dataset.from_pandas\(dataset\)"),
    "an arrow table": (pa.table({"x": [1]}), {}, r"datasets.Dataset\(dataset\)"),
    "a path": ("reviews.csv", {}, "dataset='reviews.csv': allowed is a data set"),
    "a path object": (Path("reviews.csv"), {}, "dataset=PosixPath: allowed is a data set"),
    "nothing": (None, {}, "dataset=None: allowed is a data set"),
    "a class": (Items, {}, "dataset=the class Items: allowed is a data set"),
    "by a number": (pairs(LABELS), {"by": 1}, "by=1: allowed is the name of a column"),
    "by a list": (table(), {"by": ["label"]}, "by=list: allowed is the name of a column"),
    "alpha as a text": (pairs(LABELS), {"alpha": "0.5"}, "alpha='0.5': allowed is a number"),
    "alpha of 0": (pairs(LABELS), {"alpha": 0}, "alpha=0: allowed is a number in"),
    "no clients": (pairs(LABELS), {"clients": 0}, "clients=0: allowed is an integer >= 1"),
    "clients as a text": (pairs(LABELS), {"clients": "3"}, "clients='3': allowed is an integer >= 1"),
    "clients True": (pairs(LABELS), {"clients": True}, "clients=True: allowed is an integer >= 1"),
    "clients of a fraction": (pairs(LABELS), {"clients": 1.5}, "clients=1.5: allowed is an integer >= 1"),
    "one client per value, and alpha": (pairs(LABELS), {"clients": None, "alpha": 1.0}, "clients=None: only a column"),
    "one client per value of nothing": (pairs(LABELS), {"clients": None, "by": None}, "clients=None: only a column"),
    "shards as a text": (pairs(LABELS), {"shards": "2"}, "shards='2': allowed is an integer >= 1"),
    "a seed below 0": (pairs(LABELS), {"seed": -1}, "seed=-1: allowed is an integer >= 0"),
    "no seed": (pairs(LABELS), {"seed": None}, "seed=None: allowed is an integer >= 0"),
    "held_out as a text": (pairs(LABELS), {"held_out": "0.2"}, "held_out='0.2': allowed is a number"),
}
"""What is brought -> data set, arguments, and the line that refuses them."""


@pytest.mark.parametrize(("dataset", "given", "line"), ONCE.values(), ids=ONCE)
def test_what_cannot_be_dealt_is_refused_in_one_line(dataset: Any, given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as error:
        flt.partition(dataset, **{"by": "label", "clients": 2, **given})
    assert str(error.value).count("allowed is") == 1
    assert "\n" not in str(error.value)


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "a module of torch": ({"module": nn.Linear(2, 2)}, "module=Linear: .*no training_step.*LightningModule"),
    "a class": ({"module": Toy}, r"module=the class Toy: allowed is an instance: Toy\(...\)"),
    "no module": ({"module": None}, "module=None: .*LightningModule"),
    "a list of data sets": ({"clients": [toy_data(9), toy_data(9)]}, r"a list with TensorDataset: .*flt.partition"),
    "a dict of clients": ({"clients": {0: 1}}, "clients=dict: .*flt.partition"),
    "a number of clients": ({"clients": 3}, "clients=3: .*flt.partition"),
    "a data set": ({"clients": table()}, r"clients=.*flt.partition"),
    "a client": ({"clients": flt.partition(toy_data(9), clients=1)[0]}, r"clients=ClientSpec: .*\[client\]"),
    "no clients": ({"clients": []}, "clients=.*at least one client"),
    "no recipe": ({"algo": None}, "algo=None: allowed is the name of a recipe"),
    "a dict as recipe": ({"algo": {}}, "algo=dict: allowed is the name of a recipe"),
    "rounds as a text": ({"rounds": "3"}, "rounds='3': allowed is an integer >= 1"),
    "no rounds": ({"rounds": 0}, "rounds=0: allowed is an integer >= 1"),
    "rounds True": ({"rounds": True}, "rounds=True: allowed is an integer >= 1"),
    "rounds of a fraction": ({"rounds": 1.5}, "rounds=1.5: allowed is an integer >= 1"),
    "rounds None": ({"rounds": None}, "rounds=None: allowed is an integer >= 1"),
    "a batch of 0": ({"batch_size": 0}, "batch_size=0: allowed is an integer >= 1"),
    "a batch of -1": ({"batch_size": -1}, "batch_size=-1: allowed is an integer >= 1"),
    "a batch as a text": ({"batch_size": "16"}, "batch_size='16': allowed is an integer >= 1"),
    "a seed below 0": ({"seed": -1}, "seed=-1: allowed is an integer >= 0"),
    "no seed": ({"seed": None}, "seed=None: allowed is an integer >= 0"),
    "one callback": ({"callbacks": EarlyStopping("val_loss")}, r"callbacks=EarlyStopping: .*\[callback\]"),
    "a class of callbacks": ({"callbacks": [EarlyStopping]}, r"instances: \[EarlyStopping\(...\)\]"),
    "a function as callback": ({"callbacks": [print]}, "callbacks=a list with builtin_function_or_method"),
    "callbacks None": ({"callbacks": None}, "callbacks=None: allowed is a list of callbacks"),
    "logger True": ({"logger": True}, "logger=True: .*None for TensorBoard"),
    "logger False": ({"logger": False}, "logger=False: .*None for TensorBoard"),
    "logger by name": ({"logger": "csv"}, "logger='csv': .*None for TensorBoard"),
    "loggers by name": ({"logger": ["csv"]}, "logger='csv': .*None for TensorBoard"),
    "a DataLoader to validate": ({"validation": DataLoader(toy_data(9))}, "validation=DataLoader: .*loader.dataset"),
    "data sets to validate": ({"validation": [toy_data(9)]}, "validation=list: .*ConcatDataset"),
    "no examples to validate": ({"validation": []}, "validation=no examples: allowed is at least one"),
    "splits to validate": ({"validation": datasets.DatasetDict(test=table())}, r"validation\['test'\]"),
    "columns to validate": ({"validation": {"x": X, "label": X}}, r"validation=dict: validation\['x'\] is a column"),
    "a stream to test": ({"test": Endless()}, r"test=Endless: .*list\(test\)"),
    "a DataLoader to test": ({"test": {"one": DataLoader(toy_data(9))}}, r"test\['one'\]=DataLoader: .*loader.dataset"),
    "True to test": ({"test": True}, "test=True: allowed is a data set"),
    "a text to collate": ({"collate_fn": "pad"}, "collate_fn='pad': allowed is a function"),
    "a class to collate": (
        {"collate_fn": transformers.DataCollatorWithPadding},
        r"an instance: DataCollatorWithPadding\(...\)",
    ),
    "overrides as a text": ({"overrides": "local.steps=3"}, r'overrides=\'local.steps=3\': .*\["local.steps=3"\]'),
    "overrides as a dict": ({"overrides": {"local.steps": 3}}, "overrides=dict: allowed is a list of texts"),
    "an override that is no text": ({"overrides": [3]}, "overrides=3: allowed is a list of texts"),
    "targets as a text": ({"target_modules": "fc1"}, r'target_modules=\'fc1\': .*\["fc1"\]'),
    "targets that are layers": ({"target_modules": [nn.Linear(2, 2)]}, "target_modules=Linear: allowed is a list of"),
    "a layer as head": ({"head": nn.Linear(2, 2)}, "head=Linear: allowed is the name of a submodule"),
    "a path as source": ({"source": Path("bert")}, "source=PosixPath: allowed is a text"),
    "progress as a text": ({"progress": "no"}, "progress='no': allowed is True or False"),
}
"""What is brought -> arguments of flt.fit, and the line that refuses them."""


@pytest.mark.parametrize(("given", "line"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_wrong_argument_is_refused_in_one_line(given: dict[str, Any], line: str, folder: Path) -> None:
    clients = flt.partition(toy_data(30), clients=2)
    with pytest.raises(InputError, match=line) as error:
        flt.fit(**{"module": Toy(), "clients": clients, "algo": "fedit", "progress": False, **given})
    assert str(error.value).count("allowed is") == 1
    assert "\n" not in str(error.value)
    assert not list(folder.iterdir())


def save_texts(labels: Sequence[Any], **columns: Sequence[Any]) -> str:
    """Writes texts with these labels, in turn, to a file."""
    rows = {
        "text": ["good film", "bad book", "a film", "not bad", "a book"][: len(labels)] * 20,
        "label": list(labels) * 20,
    }
    pd.DataFrame(rows | {name: list(values) * 20 for name, values in columns.items()}).to_parquet("data.parquet")
    return "data.parquet"


def run(folder: Path, data: str, *overrides: str, tasks: dict[str, list[str]] | None = None) -> Result:
    quick = {**QUICK, "clients": 2, "eval.client_examples": 0, "model.max_length": 8}
    model = folder / "bert" if (folder / "bert").is_dir() else tiny.save_bert(folder / "bert")
    settings = [f"{key}={value}" for key, value in quick.items()]
    cfg = load_config([*settings, f"data={data}", f"model={model}", *overrides])
    cfg.data["tasks"] = tasks or {}
    return train_cfg(cfg)


def names_in(result: Result, config: Any) -> list[str]:
    """The names in a config, which are those that the run's folder and its export state, too."""
    (written,) = json.loads((result.path / "classes.json").read_text()).values()
    (exported,) = json.loads((result.exported / "classes.json").read_text()).values()
    names = [config.id2label[i] for i in range(config.num_labels)]
    assert names == written == exported
    assert config.label2id == {name: i for i, name in enumerate(names)}
    return names


KINDS: dict[str, tuple[Sequence[Any], list[str]]] = {
    "texts": (NAMES, ["ant", "cow", "zebra"]),
    "1 to 3": ([3, 1, 2], ["1", "2", "3"]),
    "booleans": ([True, False], ["False", "True"]),
    "unicode, long and with line breaks": (["chat\n", "猫", "x" * 900], ["chat\n", "x" * 900, "猫"]),
    "names of settings": (["_private", "num_hidden_layers", "dtype"], ["_private", "dtype", "num_hidden_layers"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "flora", "c2a"])
@pytest.mark.parametrize(("labels", "names"), KINDS.values(), ids=KINDS)
def test_labels_stay_what_they_were(labels: Sequence[Any], names: list[str], algo: str, folder: Path) -> None:
    result = run(folder, save_texts(labels), f"algo={algo}")
    assert names_in(result, result.module.model.config) == names  # type: ignore[union-attr]  # flt's own module
    assert names_in(result, flt.load(result.exported).config) == names
    if algo == "flora":
        plain = transformers.AutoModelForSequenceClassification.from_pretrained(result.exported)
        assert names_in(result, plain.config) == names


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["algo=flora", "export.base=delta"],
        ["algo=fedit", "model.head=label_names"],
        ["algo=flora", "model.head=label_names"],
    ],
    ids=["delta", "label names", "label names, merged"],
)
def test_every_kind_of_export_names_the_classes(overrides: list[str], folder: Path) -> None:
    result = run(folder, save_texts(NAMES), *overrides)
    assert names_in(result, flt.load(result.exported).config) == ["ant", "cow", "zebra"]


@pytest.mark.slow
def test_the_names_are_those_of_the_data_and_not_those_of_the_base(folder: Path) -> None:
    settings = tiny.config("bert", id2label={0: "NEGATIVE", 1: "POSITIVE", 2: "NEUTRAL"})
    with torch.random.fork_rng():
        transformers.AutoModelForSequenceClassification.from_config(settings).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(tiny.WORDS))
    result = run(folder, save_texts(NAMES), "algo=fedit")
    assert names_in(result, result.module.model.config) == ["ant", "cow", "zebra"]  # type: ignore[union-attr]
    assert names_in(result, flt.load(result.exported).config) == ["ant", "cow", "zebra"]


@pytest.mark.slow
def test_each_head_and_group_has_the_names_of_its_tasks(folder: Path) -> None:
    data, tasks = save_texts(["a", "b", "c", "d", "e"]), {"one": ["a", "b"], "two": ["c", "d", "e"]}
    each = run(folder, data, "algo=fl_tac", "heads=task", "name=each", tasks=tasks)
    found = list(each.exported.rglob("classes.json"))
    assert {path.parent.name for path in found} == {"head_one", "head_two"}
    for path in found:
        task = path.parent.name.removeprefix("head_")
        assert json.loads(path.read_text()) == {task: tasks[task]}
        assert flt.load(path.parent).config.id2label == dict(enumerate(tasks[task]))
    shared = run(folder, data, "algo=fedit", "jobs=per_task", "heads=shared", "name=shared", tasks=tasks)
    assert json.loads((shared.path / "classes.json").read_text()) == tasks
    both = {0: "a / c", 1: "b / d", 2: "e"}
    assert shared.module.model.config.id2label == flt.load(shared.exported).config.id2label == both  # type: ignore[union-attr]
    merged = run(folder, data, "algo=flora", "jobs=per_task", "heads=shared", "name=merged", tasks=tasks)
    assert transformers.AutoConfig.from_pretrained(merged.exported).id2label == both


@pytest.mark.slow
def test_each_client_s_own_model_has_the_names_of_its_task(folder: Path) -> None:
    data, tasks = save_texts(["a", "b", "c", "d"]), {"one": ["a", "b"], "two": ["c", "d"]}
    result = run(folder, data, "algo=local", "jobs=per_task", tasks=tasks)
    found = {path.parent: json.loads(path.read_text()) for path in result.exported.rglob("classes.json")}
    assert len(found) == 4
    for path, names in found.items():
        (own,) = names.values()
        assert flt.load(path).config.id2label == dict(enumerate(own))
    assert sorted(map(str, found.values())) == sorted(2 * [str({task: tasks[task]}) for task in tasks])


@pytest.mark.slow
def test_ten_thousand_classes_have_names(folder: Path) -> None:
    labels = [f"class {i:05}" for i in range(10_000)]
    pd.DataFrame({"text": ["good film"] * 20_000, "label": labels * 2}).to_parquet("data.parquet")
    result = run(folder, "data.parquet", "algo=flora")
    assert names_in(result, flt.load(result.exported).config) == labels


@pytest.mark.slow
def test_a_causal_model_has_no_classes(folder: Path) -> None:
    model, data = tiny.save_decoder(folder / "gpt2"), tiny.save_instructions(folder / "dolly.parquet")
    result = run(folder, str(data), "algo=fedit", f"model={model}", "data.response=response", "data.label=category")
    assert not list(result.path.rglob("classes.json"))


class Pixels(pl.LightningModule):
    """A user's module around a model of transformers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.vit = transformers.ViTForImageClassification(tiny.config("vit", **settings))

    def training_step(self, batch: Any, i: int) -> Any:
        return self.vit(pixel_values=batch["pixels"], labels=batch["label"]).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def images() -> datasets.Dataset:
    features = datasets.Features(
        pixels=datasets.Array3D((1, 8, 8), "float32"), label=datasets.ClassLabel(names=list(NAMES))
    )
    rows = {"pixels": np.zeros((12, 1, 8, 8), dtype=np.float32), "label": [0, 1, 2] * 4}
    return datasets.Dataset.from_dict(rows, features=features).with_format("torch")


def fit(module: pl.LightningModule, dataset: Any, algo: str = "fedit", **given: Any) -> Result:
    clients = flt.partition(dataset, **{"by": None, "clients": 2, **given})
    return flt.fit(module, clients, algo, 1, progress=False, overrides=["local.steps=1"])


@pytest.mark.parametrize("algo", ["fedit", pytest.param("flora", marks=pytest.mark.slow)])
def test_a_user_s_own_model_gets_the_names_of_its_data(algo: str) -> None:
    result = fit(Pixels(num_labels=3), images(), algo)
    assert names_in(result, result.module.vit.config) == list(NAMES)  # type: ignore[union-attr]  # the user's own
    loaded: Any = flt.load(result.exported, Pixels(num_labels=3))
    config = (loaded.base_model.model if algo == "fedit" else loaded).vit.config
    assert names_in(result, config) == list(NAMES)


def test_clients_that_call_their_classes_differently_name_none() -> None:
    one, other = images(), images().cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    first, second = (flt.partition(dataset, by=None, clients=1)[0] for dataset in (one, other))
    clients = [first, dataclasses.replace(second, id=1)]
    result = flt.fit(Pixels(num_labels=3), clients, "fedit", 1, progress=False, overrides=["local.steps=1"])
    assert not list(result.path.rglob("classes.json"))


def reordered() -> datasets.Dataset:
    return images().cast_column("label", datasets.ClassLabel(names=["ant", "cow", "zebra"]))


@pytest.mark.parametrize("where", ["clients", "validation", "test"])
def test_the_same_classes_with_other_numbers_are_refused(where: str) -> None:
    clients = [flt.partition(dataset, by=None, clients=1)[0] for dataset in (images(), reordered())]
    why = rf"^{where}=the same classes in another order: zebra, ant, cow and ant, cow, zebra; allowed is"
    given = {"clients": clients} if where == "clients" else {"clients": clients[:1], where: reordered()}
    with pytest.raises(InputError, match=why):
        flt.fit(Pixels(num_labels=3), **given, algo="fedit", rounds=1, progress=False)
    assert not list(Path().iterdir())


def test_joined_data_sets_of_the_same_classes_with_other_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="^dataset=the same classes in another order"):
        flt.partition(ConcatDataset([images(), reordered()]), by=None, clients=1)


class ByNumber(Items):
    """A data set that needs integers of Python, as ``sqlite3`` and ``torch.Generator`` do."""

    def __getitem__(self, i: Any) -> Any:
        assert type(i) is int
        return self.items[i]


class Together(ByNumber):
    def __getitems__(self, positions: list[Any]) -> list[Any]:
        return [self[i] for i in positions]


@pytest.mark.parametrize("kind", [ByNumber, Together])
def test_a_data_set_is_asked_for_integers_of_python(kind: type[Items]) -> None:
    result = fit(Toy(), kind([(x, int(y)) for x, y in toy_data(30)]), by="label")
    assert result.metrics["round/val_acc"] >= 0


def test_names_that_a_user_has_given_stay() -> None:
    result = fit(Pixels(id2label={0: "z", 1: "a", 2: "c"}), images())
    assert result.module.vit.config.id2label == {0: "z", 1: "a", 2: "c"}  # type: ignore[union-attr]  # the user's own


class Folder(Items):
    """As torchvision's data sets, it lists the names of its classes."""

    classes = list(NAMES)


NAMED: dict[str, tuple[Any, dict[str, Any], tuple[str, ...]]] = {
    "class labels": (images(), {}, NAMES),
    "class labels of selected rows": (images().select([0, 1, 2]), {}, NAMES),
    "class labels that a transform drops": (images().with_transform(lambda batch: {}), {}, NAMES),
    "a subset": (Subset(images(), [0, 1]), {}, NAMES),
    "two tables joined": (ConcatDataset([images(), images()]), {}, NAMES),
    "tables of other classes": (
        ConcatDataset([images(), images().cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))]), {}, (),
    ),
    "tags of tokens": (
        table([[0, 1]] * 7, datasets.List(datasets.ClassLabel(names=["O", "B"])), "ner_tags"),
        {"label": "ner_tags"}, ("O", "B"),
    ),
    "a list of classes": (Folder(pairs(LABELS)), {}, NAMES),
    "a subset with a list of classes": (Subset(Folder(pairs(LABELS)), [0, 1]), {}, NAMES),
    "booleans": (pairs([label > 0 for label in LABELS]), {"by": "label"}, ("False", "True")),
    "integers": (pairs(LABELS), {"by": "label"}, ()),
    "class labels in the column labels": (images().rename_column("label", "labels"), {}, NAMES),
    "a class of each example": (type("Each", (Items,), {"classes": ["a", "b", "a"]})(pairs(LABELS)), {}, ()),
    "a number of classes": (type("Counted", (Items,), {"classes": 3})(pairs(LABELS)), {}, ()),
}  # fmt: skip
"""What is brought -> data set, arguments, and the names of the classes."""


@pytest.mark.parametrize(("dataset", "given", "names"), NAMED.values(), ids=NAMED)
def test_a_data_set_s_classes_keep_their_names(dataset: Any, given: dict[str, Any], names: tuple[str, ...]) -> None:
    clients = flt.partition(dataset, **{"by": None, "clients": 1, **given})
    assert clients[0].data[0].label_names == names


def test_a_module_without_a_model_of_transformers_is_exported_with_names() -> None:
    result = fit(Toy(), Folder([(x, int(y)) for x, y in toy_data(30)]))
    assert json.loads((result.exported / "classes.json").read_text()) == {"all": list(NAMES)}
    assert flt.load(result.exported, Toy())(torch.zeros(1, FEATURES)).shape == (1, 3)


def test_an_export_without_names_still_loads() -> None:
    result = fit(Pixels(num_labels=3), images())
    (result.exported / "classes.json").unlink()
    loaded: Any = flt.load(result.exported, Pixels(num_labels=3))
    assert loaded.base_model.model.vit.config.id2label[0] == "LABEL_0"


@pytest.mark.parametrize("content", ['{"all": [1]}', '{"all": "ant"}', "[]", '{"all": ["' + "x" * 1001 + '"]}'])
def test_names_that_are_no_texts_are_refused(content: str) -> None:
    result = fit(Pixels(num_labels=3), images())
    (result.exported / "classes.json").write_text(content)
    with pytest.raises(InputError, match=r"^classes\.json="):
        flt.load(result.exported, Pixels(num_labels=3))
