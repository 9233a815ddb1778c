"""Where models lie: a folder of an installed package goes before a hub id, and the package isn't imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

from flt.core.errors import InputError
from flt.models import backbones, location
from flt.models.config import ModelConfig


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that must not be imported, with a model in a folder of it."""
    folder = tmp_path / "site" / "has_a_model"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError")
    tiny.save_bert(folder / "weights")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "has_a_model/weights"


def offline(path: str) -> bool:
    return False


def test_an_installed_package_goes_before_the_hub(package: str) -> None:
    found, local = location.locate("org/name", package)
    assert local
    assert Path(found, "config.json").is_file()
    assert "has_a_model" not in sys.modules


@pytest.mark.parametrize("missing", ["not_installed/weights", "has_a_model/elsewhere", "../has_a_model/weights", None])
def test_without_the_package_the_path_counts(
    missing: str | None, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "_on_the_hub", offline)
    assert location.locate("org/name", missing) == ("org/name", True)
    assert location.locate(str(tmp_path), missing) == (str(tmp_path), True)


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused() -> None:
    with pytest.raises(InputError, match="model.path=a/b/c.*no such folder"):
        location.locate("a/b/c", "not_installed/weights")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("head", ["linear", "label_names"])
def test_attention_is_computed_as_chosen(attention: str, head: str, tmp_path: Path) -> None:
    path = tiny.save_bert(tmp_path / "bert")
    cfg = ModelConfig("hub", str(path), max_length=16, attention=attention, head=head)
    model = backbones.load(cfg, "text", 2, 0, ["good", "bad"]).model
    assert model.config._attn_implementation == attention


def test_gradient_checkpointing_is_on_in_every_block_only_where_asked_for(tmp_path: Path) -> None:
    path = tiny.save_bert(tmp_path / "bert")
    for wanted in (False, True):
        cfg = ModelConfig("hub", str(path), max_length=16, gradient_checkpointing=wanted)
        model = backbones.load(cfg, "text", 2, 0).model
        assert [layer.gradient_checkpointing for layer in model.bert.encoder.layer] == [wanted] * tiny.LAYERS


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [("head", "cosine", "linear"), ("attention", "flash", "eager"), ("label_scale", 0.0, "a number > 0")],
)
def test_a_choice_that_is_not_there_is_one_line(field: str, value: object, allowed: str) -> None:
    with pytest.raises(InputError, match=f"model.{field}={value}.*{allowed}"):
        backbones.load(ModelConfig("hub", "somewhere", **{field: value}), "text", 2, 0)
