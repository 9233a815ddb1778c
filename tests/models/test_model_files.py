"""Folders of models whose files don't belong together: one line that names the parts, before anything is trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from commands import in_empty_folder, train
from safetensors.torch import load_file, save_file

from flt.core.errors import InputError
from flt.models.backbones import Backbone, load
from flt.models.config import ModelConfig
from flt.models.model_files import check_ids


def changed_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def changed_weights(change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: change(name, value) for name, value in load_file(path).items()}
        save_file({name: v for name, v in tensors.items() if v is not None}, path, metadata={"format": "pt"})

    return changed


def without(part: str) -> Callable[[Path], None]:
    return changed_weights(lambda name, value: None if part in name else value)


def of_another_model(folder: Path) -> None:
    shutil.copy(tiny.save_decoder(folder.parent / "other") / "model.safetensors", folder)


def renamed(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({f"module.{name}": value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})


def with_an_adapter(folder: Path) -> None:
    base = transformers.AutoModel.from_pretrained(tiny.save_bert(folder.parent / "another", seed=5))
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query"])).save_pretrained(folder)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a wider config": (changed_config(hidden_size=32), r"its weights have bert\..* of shape .*config.json says"),
    "a wider layer": (
        changed_config(intermediate_size=24),
        r"intermediate.dense.bias of shape \(16,\).*\(24,\)",
    ),
    "more words": (changed_config(vocab_size=40), r"word_embeddings.weight of shape \(12, 16\).*\(40, 16\)"),
    "fewer positions": (changed_config(max_position_embeddings=64), r"position_embeddings.weight of shape \(512, 16\)"),
    "more blocks": (changed_config(num_hidden_layers=5), r"its weights lack bert.encoder.layer.3\."),
    "another type": (
        changed_config(model_type="distilbert", dim=16, n_layers=3, n_heads=2, hidden_dim=16),
        "its weights lack distilbert.transformer.layer.0",
    ),
    "weights of another model": (of_another_model, "its weights lack bert.embeddings.LayerNorm.bias"),
    "other names": (renamed, "its weights lack bert.embeddings.LayerNorm.bias"),
    "no query": (without("layer.1.attention.self.query"), "its weights lack bert.encoder.layer.1.attention.self.query"),
    "no embedding": (without("word_embeddings"), "its weights lack bert.embeddings.word_embeddings.weight"),
    "integers": (changed_weights(lambda _, value: value.to(torch.int8)), "of type I8"),
    "an adapter beside it": (with_an_adapter, "it holds an adapter_config.json beside config.json"),
    "no vocabulary": (lambda folder: (folder / "vocab.txt").unlink(), "it holds no vocabulary"),
    "a pad token more": (
        lambda folder: tiny.word_tokenizer(pad_token="[FILL]").save_pretrained(folder),
        "makes input_ids up to 12, and the model's embedding has 12 rows",
    ),
    "generation settings alone": (
        lambda folder: (folder / "config.json").rename(folder / "generation_config.json") and None,
        "Unrecognized model",
    ),
}


def loaded(folder: Path, **settings: Any) -> Backbone:
    return load(ModelConfig(name="hub", path=str(folder), max_length=8, **settings), "text", 3, 0)


@pytest.mark.parametrize("case", REFUSED)
def test_parts_of_different_models_are_refused_in_one_line_that_names_them(case: str, tmp_path: Path) -> None:
    change, why = REFUSED[case]
    change(tiny.save_bert(tmp_path / "bert"))
    with pytest.raises(InputError, match=rf"^model\.path=[^\n]*{why}[^\n]*$"):
        loaded(tmp_path / "bert")


def labelled(folder: Path) -> None:
    transformers.BertForSequenceClassification(tiny.config("bert", num_labels=5)).save_pretrained(folder)
    changed_config(num_labels=2, id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})(folder)


TAKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no pooler": (without("pooler"), "has no weights for bert.pooler.dense.bias"),
    "labels of another width than the head": (labelled, ""),
    "half precision": (changed_weights(lambda _, value: value.to(torch.bfloat16)), ""),
    "fewer blocks": (changed_config(num_hidden_layers=1), "weights that its config.json doesn't use: encoder.layer.1."),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_fits_or_is_drawn_anew_is_taken(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change, warning = TAKEN[case]
    change(tiny.save_bert(tmp_path / "bert"))
    with caplog.at_level(logging.WARNING):
        model: Any = loaded(tmp_path / "bert").model
    assert model.config.num_labels == 3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert warning in caplog.text


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    model: Any = loaded(tiny.save_bert(tmp_path / "bert")).model
    rows = len(tiny.WORDS)
    check_ids(model, "bert", {"input_ids": np.array([0, rows - 1]), "token_type_ids": np.array([0, 1])})
    check_ids(model, "bert", {"input_ids": np.array([], dtype=np.int32)})
    for name, largest, most in (("input_ids", rows, rows), ("token_type_ids", 2, 2)):
        with pytest.raises(InputError, match=f"makes {name} up to {largest}, and .* has {most} rows"):
            check_ids(model, "bert", {name: np.array([0, largest])})


def test_an_input_that_the_model_does_not_read_is_refused() -> None:
    class Plain(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> None: ...

    with pytest.raises(InputError, match="makes token_type_ids, which Plain doesn't read"):
        check_ids(Plain(), "plain", {"token_type_ids": np.array([0])})


@pytest.mark.parametrize("words", [("good",), ("good", "unheard")])
def test_a_larger_tokenizer_is_refused_if_the_data_need_it(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    folder = tiny.save_bert(tmp_path / "bert")
    (folder / "vocab.txt").write_text("\n".join([*tiny.WORDS, "unheard"]))
    rows = [f"{words[i % len(words)]} film {i},{i % 2}" for i in range(40)]
    (tmp_path / "r.csv").write_text("\n".join(["text,label", *rows]))
    code = train("algo=fedit", "data=r.csv", "model=./bert", "model.max_length=8", "clients=2")
    assert code == (2 if "unheard" in words else 0)
    if code:
        assert "makes input_ids up to 12, and the model's embedding has 12 rows" in capsys.readouterr().err
