"""The label-name head: cosine of frozen embeddings, nothing of it trains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from commands import in_empty_folder
from peft import PeftModel

from flt.api import train
from flt.core.errors import InputError
from flt.models import backbones
from flt.models.config import ModelConfig
from flt.models.label_name_head import LabelNameClassifier, embed, label_name_classifier, label_texts
from flt.run.compose import load_config


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return tiny.save_bert(tmp_path / "bert")


def parts(encoder: Path) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    return transformers.AutoModel.from_pretrained(encoder).eval(), transformers.AutoTokenizer.from_pretrained(encoder)


def numpy_embedding(encoder: Path, text: str) -> np.ndarray:
    """One text at a time, so without padding."""
    model, tokenizer = parts(encoder)
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
    mean = hidden.mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_the_logits_are_scaled_cosines_of_mean_pooled_embeddings(encoder: Path) -> None:
    model, tokenizer = parts(encoder)
    texts, names = ["good film", "bad", "not a very good book"], ["good", "bad book"]
    classifier = label_name_classifier(model, tokenizer, names, 20.0, 16)
    found = classifier(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    table = np.stack([numpy_embedding(encoder, name) for name in names])
    expected = 20 * np.stack([numpy_embedding(encoder, text) for text in texts]) @ table.T
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-4)


def test_the_loss_is_the_cross_entropy_of_the_logits(encoder: Path) -> None:
    model, tokenizer = parts(encoder)
    classifier = label_name_classifier(model, tokenizer, ["good", "bad"], 5.0, 16)
    labels = torch.tensor([1, 0])
    out = classifier(**tokenizer(["film", "book"], return_tensors="pt"), labels=labels)
    expected = -out.logits.log_softmax(-1)[torch.arange(2), labels].mean()
    torch.testing.assert_close(out.loss, expected)


def test_under_autocast_the_cosines_keep_the_digits_of_the_embeddings(encoder: Path) -> None:
    model, tokenizer = parts(encoder)
    classifier = label_name_classifier(model, tokenizer, ["good", "bad book"], 20.0, 16)
    inputs = tokenizer(["good film"], return_tensors="pt")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, embedding = classifier(**inputs).logits, embed(model, inputs)
    torch.testing.assert_close(logits, 20 * embedding @ classifier.names.T, rtol=0, atol=1e-5)
    assert logits.dtype == torch.float32


@pytest.mark.slow
def test_texts_for_classes_that_are_left_out_do_no_harm(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.save_reviews(tmp_path / "reviews.csv")
    in_empty_folder(tmp_path, monkeypatch)
    cfg = load_config(["algo=fedit", *arguments(encoder, data)])
    cfg.data["label_texts"] = {"good film": "good", "bad film": "bad", "neither": "not"}
    with pytest.raises(InputError, match="data.label_texts=neither"):
        train(cfg)
    cfg.data["classes"] = [0, 1]
    assert train(cfg).module.model.texts == ["good", "bad"]


def test_a_plan_that_trains_nothing_of_this_module_is_refused_before_anything_is_written(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.save_reviews(tmp_path / "reviews.csv")
    in_empty_folder(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=r"plan.train.*head.*nothing else to train.*A, B"):
        train(load_config(["algo=fedit", *arguments(encoder, data), "plan.train=[head]"]))
    assert not (tmp_path / "lightning_logs").exists()


def test_names_become_words_and_given_texts_win() -> None:
    found = label_texts(["comp.os.ms-windows", "rec_autos", "sci.med"], {"sci.med": "medicine"})
    assert found == ["comp os ms windows", "rec autos", "medicine"]


def test_numbers_are_no_names() -> None:
    with pytest.raises(InputError, match=r"data.label_texts=0.*no name to embed.*model.head=linear"):
        label_texts(["0", "1"], {})


def test_a_text_for_a_class_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="bsd"):
        label_texts(["asd"], {"bsd": "text"})


def arguments(encoder: Path, data: Path, *more: str) -> list[str]:
    common = ["model.head=label_names", "model.max_length=16", "clients=2", "rounds=1", "local.steps=2", "local.lr=0.1"]
    return [f"model={encoder}", f"data={data}", *common, *more]


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "flora"])
def test_only_the_adapter_trains_and_plain_peft_loads_the_encoder(
    algo: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.save_reviews(tmp_path / "reviews.csv")
    in_empty_folder(tmp_path, monkeypatch)
    result = train(load_config([f"algo={algo}", *arguments(encoder, data)]))
    own = result.module.model
    assert isinstance(own, LabelNameClassifier)
    model, tokenizer = parts(encoder)
    head = json.loads((result.exported / "label_names.json").read_text())
    assert head == {"texts": ["good film", "bad film"], "scale": 20.0}
    rebuilt = label_name_classifier(model, tokenizer, head["texts"], head["scale"], 16)
    torch.testing.assert_close(rebuilt.names, own.names)
    rebuilt.encoder = (
        PeftModel.from_pretrained(model, result.exported)
        if algo == "fedit"
        else transformers.AutoModel.from_pretrained(result.exported)
    ).eval()
    inputs = tokenizer(["good book", "a film not bad"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(**inputs).logits, own.eval()(**inputs).logits, rtol=0, atol=1e-4)
        zero_shot = label_name_classifier(*parts(encoder), head["texts"], head["scale"], 16)
        assert not torch.allclose(zero_shot(**inputs).logits, own(**inputs).logits, atol=1e-3)


def test_tasks_of_their_own_classes_are_refused(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny.save_reviews(tmp_path / "reviews.csv")
    in_empty_folder(tmp_path, monkeypatch)
    cfg = load_config(["algo=fl_tac", *arguments(encoder, data)])
    cfg.data["tasks"] = {"one": ["good film"], "two": ["bad film"]}
    with pytest.raises(InputError, match=r"model.head.*jobs=per_task"):
        train(cfg)


def test_images_have_no_names() -> None:
    with pytest.raises(InputError, match=r"model.head=label_names.*linear"):
        backbones.load(ModelConfig(head="label_names"), "image", 2, 0, ["five", "six"])
