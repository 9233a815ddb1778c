"""The base of an export: where it lies, which of its files are read, and what its card may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from flt.core.errors import InputError
from flt.export.base import INDEX_FILE, base_of, merged_model, place_of, weight_files
from flt.export.weights import Header
from flt.models.provenance import origin_of

NOTHING = Header((), {}, {})


def export(folder: Path, /, **card: Any) -> Path:
    """A folder with a card of a base."""
    (folder / "adapter").mkdir()
    (folder / "adapter/flt_base.json").write_text(json.dumps({"architecture": "BertModel", "config": {}, **card}))
    return folder / "adapter"


def test_a_given_model_is_the_base_and_learns_which_tensors_were_drawn(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert base_of(export(tmp_path, drawn=["weight"]), None, model, (), NOTHING) is model
    assert tuple(origin_of(model).drawn) == ("weight",)


@pytest.mark.parametrize(
    ("card", "why"),
    [
        ({}, "model=None: the folder doesn't say what its base is"),
        ({"folder": "bert"}, "base=None: its base was the folder bert"),
        ({"trust_remote_code": True}, "flt_base.json=trust_remote_code"),
        ({"config": {"auto_map": {}}}, "flt_base.json: config=auto_map"),
        ({"random": {"seed": -1, "classes": None, "source": ""}}, "random: seed=-1"),
        ({"random": {"seed": 1}}, "classes is missing"),
        ({"drawn": "weight"}, "flt_base.json: drawn=weight"),
        ({"package": "../evil"}, "package=../evil"),
    ],
)
def test_a_card_that_describes_no_base_is_refused(card: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=why):
        base_of(export(tmp_path, **card), None, None, (), NOTHING)


def test_a_user_gives_the_base_of_a_folder_without_a_card(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert base_of(tmp_path, None, model, (), NOTHING) is model
    with pytest.raises(InputError, match="model=None: the folder doesn't say what its base is"):
        base_of(tmp_path, "org/model", None, (), NOTHING)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ("model: {path: /data/bert}", "/data/bert"),
        ("model: {path: /data/other}", None),
        ("- /data/bert", None),
    ],
)
def test_only_a_plain_configuration_of_the_run_says_where_a_base_lies(
    config: str, found: str | None, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text(config)
    assert place_of(tmp_path / "adapter", "bert") == found


@pytest.mark.parametrize(
    "config",
    [
        "a: &a 1\nmodel: {path: /data/bert, x: *a}",
        "model: !!python/name:os.system {path: /data/bert}",
        "model: {path: /data/bert}" + " " * 2**22,
        "{{{: bad",
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(config: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(InputError, match=r"^run=.*: .*; allowed is a run with the config.yaml that flt wrote$"):
        place_of(tmp_path / "adapter", "bert")


@pytest.mark.parametrize("name", ["../model.safetensors", "a/b.safetensors", "model.bin", "/etc/x.safetensors"])
def test_an_index_names_safetensors_files_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(InputError, match=f"{INDEX_FILE}={name}: allowed is names of safetensors files beside it"):
        weight_files(str(tmp_path), True)


def test_weights_may_be_missing_only_where_they_are_not_needed(tmp_path: Path) -> None:
    assert weight_files(str(tmp_path), True, needed=False) == []
    with pytest.raises(OSError, match="model.safetensors"):
        weight_files(str(tmp_path), True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"architectures": "BertModel"}, "architectures=BertModel"),
        ({"architectures": ["BertModel", "ViTModel"]}, "architectures="),
        ({"architectures": ["Evil"]}, "architecture=Evil"),
        ({"hidden_size": 20}, "size mismatch"),
        ({"num_hidden_layers": 4}, "is missing"),
        ({"num_hidden_layers": 2}, "is none"),
    ],
)
def test_a_merged_model_has_exactly_the_tensors_of_its_card(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "bert")
    assert not any(parameter.isnan().any() for parameter in merged_model(folder).parameters())
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **change}))
    with pytest.raises(InputError, match=why):
        merged_model(folder)


def test_a_merged_models_file_is_read_without_changing_the_global_generator(tmp_path: Path) -> None:
    folder = tiny.save_bert(tmp_path / "bert")
    before = torch.get_rng_state()
    merged_model(folder)
    assert torch.equal(torch.get_rng_state(), before)
