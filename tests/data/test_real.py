"""Sources on real data, where FLT_DATA names a folder of it: published sizes, no settings needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.partition import by_column
from flt.data.tasks import load_all
from flt.data.templates import choose_template
from flt.run.compose import load_choice, load_config
from flt.run.schema import TrainConfig

CONF = Path(__file__).parents[2] / "conf" / "data"


def sizes(raw: RawData) -> dict[str, int]:
    return {name: len(split) for name, split in raw.splits.items()}


def load_yaml(name: str, **fields: Any) -> RawData:
    return load(DataConfig(**{**OmegaConf.to_object(load_choice("data", name)), **fields}))


def load_file(path: Path, **fields: Any) -> RawData:
    return load(DataConfig(name="file", path=str(path), validation=0.0, **fields))


@pytest.mark.slow
@pytest.mark.usefixtures("flt_data")
def test_newsgroups_have_their_published_sizes_and_empty_texts() -> None:
    raw = load_yaml("newsgroups20", validation=0.0)
    assert sizes(raw) == {"train": 11_314, "test": 7_532}
    assert raw.inputs == ("text_stripped",)
    assert raw.label_names[:2] == ("alt.atheism", "comp.graphics")
    assert len(raw.label_names) == 20
    texts = [text for split in raw.splits.values() for text in split["text_stripped"][:]]
    assert sum(not text.strip() for text in texts) == 515


@pytest.mark.usefixtures("flt_data")
def test_dolly_has_its_categories_and_a_context_in_some_rows() -> None:
    raw = load_yaml("dolly", validation=0.0)
    assert sizes(raw) == {"train": 14_931, "test": 80}
    assert (raw.kind, raw.inputs, raw.response) == ("causal", ("instruction", "context"), "response")
    assert len(raw.label_names) == 8
    rows = [row for split in raw.splits.values() for row in split.select_columns(list(raw.inputs))]
    assert sum(choose_template(raw.templates, row) is raw.templates[1] for row in rows) == 10_544


@pytest.mark.parametrize(
    ("name", "expected", "kind", "classes"),
    [
        ("glue_mrpc", {"train": 3_668, "validation": 408}, "pair", 2),  # its test labels are hidden
        ("glue_rte", {"train": 2_490, "validation": 277}, "pair", 2),
        ("glue_qnli", {"train": 8_999, "validation": 5_463}, "pair", 2),
        ("glue_qqp", {"train": 8_999, "validation": 1_000}, "pair", 2),  # train_dev, for want of a validation split
        ("glue_sst2", {"train": 67_349, "validation": 872}, "text", 2),
        ("dolly15k", {"train": 14_931, "test": 80}, "text", 8),
        ("multilingual_sib200", {"train": 16_824, "validation": 2_376, "test": 4_896}, "text", 7),
    ],
)
def test_tables_load_without_settings(
    flt_data: Path, name: str, expected: dict[str, int], kind: str, classes: int
) -> None:
    raw = load_file(flt_data / f"{name}.parquet")
    assert sizes(raw) == expected
    assert (raw.kind, len(raw.label_names)) == (kind, classes)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label", "classes"), [("cifar10", None, 10), ("cifar100", "coarse", 20)])
def test_images_load_with_names_for_fine_and_coarse_classes(
    flt_data: Path, name: str, label: str | None, classes: int
) -> None:
    raw = load_file(flt_data / f"{name}.npz", label=label)
    assert (raw.kind, len(raw.label_names)) == ("image", classes)
    assert sizes(raw) == {"train": 10_000, "test": 2_000}


def configured(*overrides: str) -> TrainConfig:
    return load_config(["algo=fl_tac", *overrides])


@pytest.mark.slow
@pytest.mark.usefixtures("flt_data")
def test_glue_is_five_tasks_of_two_classes_with_capped_training_sets() -> None:
    sets = {found.name.removeprefix("glue "): found for found in load_all(configured("data=glue"))}
    test = {"sst2": 872, "mrpc": 408, "rte": 277, "qnli": 5_463, "qqp": 1_000}  # the official validation splits
    validation = {"sst2": 6_735, "mrpc": 367, "rte": 249, "qnli": 900, "qqp": 900}  # a tenth of train
    assert {name: sizes(one.raw) for name, one in sets.items()} == {
        name: {"train": 2_000, "validation": validation[name], "test": size} for name, size in test.items()
    }
    assert {name: one.raw.kind for name, one in sets.items()} == {
        name: "text" if name == "sst2" else "pair" for name in test
    }
    assert all(one.classes == {name: 2} for name, one in sets.items())
    (chosen,) = load_all(load_config(["algo=fedit", "data=glue", "data.use=[qqp]", "data.train_examples=null"]))
    assert sizes(chosen.raw) == {"train": 8_099, "validation": 900, "test": 1_000}


@pytest.mark.slow
def test_one_language_per_client_and_no_translation_of_a_test_sentence_in_train(flt_data: Path) -> None:
    (found,) = load_all(load_config(["algo=fedit", "data=sib200", "experiment=languages"]))
    assert sizes(found.raw) == {"train": 11 * 701, "validation": 11 * 99, "test": 11 * 204}
    (numbered,) = load_all(load_config(["algo=fedit", "data=sib200", "data.column=index_id"]))
    assert sizes(numbered.raw) == sizes(found.raw)
    sentences = {name: set(numbered.raw.values(name, "index_id")) for name in numbered.raw.splits}
    assert not sentences["train"] & (sentences["test"] | sentences["validation"])
    languages = found.raw.values("train", "language")
    parts = by_column(languages, clients=11, seed=0)
    assert [set(languages[part]) for part in parts] == [{language} for language in sorted(set(languages))]
    assert all(language.endswith("_Latn") for language in languages)


@pytest.mark.slow
def test_cifar_is_two_tasks_whose_heads_differ_in_shape(flt_data: Path) -> None:
    found = load_all(configured("data=cifar"))
    assert [(one.classes, one.raw.kind, sizes(one.raw)) for one in found] == [
        ({name: classes}, "image", {"train": 9_000, "validation": 1_000, "test": 2_000})
        for name, classes in (("cifar10", 10), ("cifar100", 100))
    ]
