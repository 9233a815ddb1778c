"""Tokenizers and image processors beside an export: transformers alone gives the class's name of a text or an image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import transformers
from commands import in_empty_folder, train
from PIL import Image

import flt

MERGED = """
import sys
sys.modules["flt"] = None  # it isn't installed where the model is used
import json, transformers
print(json.dumps(transformers.pipeline(sys.argv[1], model=sys.argv[2])(sys.argv[3])))
"""
ADAPTER = """
import sys
sys.modules["flt"] = None
import json, torch, peft, transformers
_, base, folder, text = sys.argv
classes = json.load(open(folder + "/classes.json"))["all"]
model = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(classes))
model = peft.PeftModel.from_pretrained(model, folder).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
print(json.dumps([{"label": classes[int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())]}]))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


def printed(script: str, *arguments: str) -> list[dict]:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def reviews(folder: Path) -> None:
    rows = [f"a very {word} {thing},{name}" for word, name in (("good", "praise"), ("bad", "blame"))
            for thing in ("film", "book", "film film", "not book") for _ in range(6)]  # fmt: skip
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows))
    tiny.save_bert(folder / "bert")


SHORT = ["model.max_length=12", "clients=2", "rounds=3", "local.steps=15", "local.lr=1e-2", "plan.lr_factor=1.0"]


@pytest.mark.slow
def test_a_pipeline_of_transformers_names_the_class_of_a_text(folder: Path) -> None:
    reviews(folder)
    assert train("algo=fedavg", "data=reviews.csv", "model=./bert", "partition.kind=iid", *SHORT) == 0
    exported = next(folder.glob("lightning_logs/*/version_0/model"))
    for text, name in (("a very good film", "praise"), ("a very bad book", "blame")):
        assert printed(MERGED, "text-classification", str(exported), text)[0]["label"] == name
    assert flt.load(exported).config.id2label == {0: "blame", 1: "praise"}


@pytest.mark.slow
def test_peft_and_the_tokenizer_beside_an_adapter_name_the_class_of_a_text(folder: Path) -> None:
    reviews(folder)
    given = ["algo=fedit", "data=reviews.csv", "model=./bert", "partition.kind=iid"]
    assert train(*given, *(word for word in SHORT if "factor" not in word)) == 0
    exported = next(folder.glob("lightning_logs/*/version_0/adapter"))
    for text, name in (("a very good film", "praise"), ("a very bad book", "blame")):
        assert printed(ADAPTER, str(folder / "bert"), str(exported), text)[0]["label"] == name


@pytest.mark.slow
def test_a_pipeline_of_transformers_names_the_class_of_an_image(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        for i in range(16):
            place = folder / "photos" / name / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(low, low + 100, (20, 20, 3)).astype(np.uint8)).save(place)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**shape, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "vit")
    words = [word for word in SHORT if "length" not in word]
    assert train("algo=fedavg", "data=./photos", "model=./vit", "partition.kind=iid", *words) == 0
    exported = next(folder.glob("lightning_logs/*/version_0/model"))
    for name in ("dark", "light"):
        found = printed(MERGED, "image-classification", str(exported), str(folder / "photos" / name / "3.png"))
        assert found[0]["label"] == name
