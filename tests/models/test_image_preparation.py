"""Images are prepared by the model's own image processor, to the last bit, or the model is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from flt.core.errors import InputError
from flt.data.dataset_sources import RawData
from flt.data.encode import encode_images
from flt.data.examples import Collate
from flt.models import backbones, embedded
from flt.models.image_preparation import ImagePreparation, image_preparation

SETTINGS: dict[str, tuple[str, dict[str, Any], tuple[int, int] | None]] = {
    "a square": ("ViTImageProcessor", {"size": {"height": 12, "width": 12}}, (12, 12)),
    "a square of another model": ("ViTImageProcessor", {"size": 12, "image_mean": [0.1, 0.2, 0.3]}, (12, 12)),
    "not a square": ("ViTImageProcessor", {"size": {"height": 6, "width": 10}, "resample": 0}, (6, 10)),
    "no normalisation": ("ViTImageProcessor", {"size": 12, "do_normalize": False}, (12, 12)),
    "no scaling of values": ("ViTImageProcessor", {"size": 12, "do_rescale": False, "do_normalize": False}, (12, 12)),
    "values in 0..2": ("ViTImageProcessor", {"size": 12, "rescale_factor": 2 / 255, "image_mean": [1] * 3}, (12, 12)),
    "shortest edge and crop": ("CLIPImageProcessor", {"size": {"shortest_edge": 14}, "crop_size": 12}, (12, 12)),
    "shortest edge alone": (
        "CLIPImageProcessor", {"size": {"shortest_edge": 14}, "do_center_crop": False}, None,
    ),
    "a crop alone": ("CLIPImageProcessor", {"do_resize": False, "crop_size": 12}, (12, 12)),
    "nothing but normalisation": ("ViTImageProcessor", {"do_resize": False}, None),
    "a share that is cropped": ("ConvNextImageProcessor", {"size": {"shortest_edge": 12}, "crop_pct": 0.8}, (12, 12)),
    "channels in another order": (
        "MobileViTImageProcessor", {"size": {"shortest_edge": 14}, "crop_size": {"height": 12, "width": 12}}, (12, 12),
    ),
    "normalised twice": ("EfficientNetImageProcessor", {"size": 12, "include_top": True}, (12, 12)),
}  # fmt: skip


def folder(path: Path, kind: str, settings: dict[str, Any]) -> str:
    path.mkdir()
    (path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": kind, **settings}))
    return str(path)


def prepared(path: Path, kind: str, settings: dict[str, Any]) -> ImagePreparation:
    found = image_preparation(folder(path, kind, settings), transformers.ViTConfig(), local=True)
    assert found is not None
    return found


def encoded(images: list[Any], feature: Any, prepare: ImagePreparation) -> list[torch.Tensor]:
    features = datasets.Features(image=feature, label=datasets.Value("int64"))
    train = datasets.Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=features)
    raw = RawData({"train": train}, "image", ("image",), "label", ("x",))
    examples = encode_images(train, raw, 99, prepare.channels, prepare)
    collate = Collate(mean=prepare.mean, std=prepare.std)
    return [collate([examples[i]])["pixel_values"][0] for i in range(len(images))]


@pytest.mark.parametrize("what", SETTINGS)
@pytest.mark.parametrize("shape", [(7, 5), (12, 12), (40, 31)], ids=["small", "of that size", "large"])
def test_pixels_are_those_of_the_processor(what: str, shape: tuple[int, int], tmp_path: Path) -> None:
    kind, settings, size = SETTINGS[what]
    prepare = prepared(tmp_path / "m", kind, settings)
    assert prepare.size == size
    images = np.random.default_rng(0).integers(0, 256, (3, *shape, 3)).astype(np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "m", backend="pil")
    expected = processor([PIL.Image.fromarray(image) for image in images], return_tensors="pt").pixel_values.float()
    found = encoded(list(images), datasets.Array3D((*shape, 3), "uint8"), prepare)
    for image, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(image, wanted, rtol=1e-6, atol=1e-6)


def test_small_images_take_no_more_memory_than_they_do_unprepared(tmp_path: Path) -> None:
    prepare = prepared(tmp_path / "m", "ViTImageProcessor", {"size": 64})
    features = datasets.Features(image=datasets.Array2D((4, 4), "uint8"), label=datasets.Value("int64"))
    train = datasets.Dataset.from_dict({"image": [np.eye(4)] * 5, "label": [0] * 5}, features=features)
    store = encode_images(train, RawData({"train": train}, "image", ("image",), "label", ("x",)), 8, 3, prepare).store
    assert store.pixels.shape == (5, 1, 4, 4)
    assert pickle.loads(pickle.dumps(store)).row(0)["pixel_values"].shape == (3, 64, 64)
    assert len(store.arrays()) == 3, "a cached activation depends on the processor"


def test_images_of_all_sizes_and_modes_become_alike(tmp_path: Path) -> None:
    prepare = prepared(tmp_path / "m", "ViTImageProcessor", {"size": 12, "do_normalize": False})
    grey = PIL.Image.fromarray(np.full((40, 30), 13107, np.uint16))
    images = [PIL.Image.new("L", (5, 7), 51), PIL.Image.new("RGB", (99, 1), (51, 51, 51)), grey]
    for image in encoded(images, datasets.Image(), prepare):
        torch.testing.assert_close(image, torch.full((3, 12, 12), 0.2))


def test_finer_values_are_kept_where_no_pixel_moves(tmp_path: Path) -> None:
    prepare = prepared(tmp_path / "m", "ViTImageProcessor", {"size": 12})
    image = torch.rand(3, 12, 12)
    assert torch.equal(prepare(image), image)
    assert prepare(torch.rand(3, 13, 12)).dtype == torch.uint8


def test_a_processor_without_a_size_takes_the_models(tmp_path: Path) -> None:
    for kind, size in (("ViTImageProcessor", 20), ("CLIPImageProcessor", 20), ("ConvNextImageProcessor", 20)):
        path = folder(tmp_path / kind, kind, {"image_mean": [0.5] * 3})
        found = image_preparation(path, transformers.ViTConfig(image_size=size), local=True)
        assert found is not None
        assert found.size == (size, size)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, "Clusters must be provided"),
        ({"image_processor_type": "Siglip2ImageProcessor"}, "allowed is a folder whose image processor"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5], "image_std": [0.5]}, "mean must have 3"),
        ({"image_processor_type": "ViTImageProcessor", "image_std": [0.5, 0, 0.5]}, "does more"),
        ({"image_processor_type": "Nothing"}, "Unrecognized image processor|does not"),
        ({"auto_map": {"AutoImageProcessor": "mine.Mine"}, "image_processor_type": "Mine"}, "allowed is a folder"),
    ],
)
def test_what_cannot_prepare_images_is_refused_in_a_line(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit('the code of a model folder was run')")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=why) as error:
        image_preparation(str(tmp_path), transformers.ViTConfig(), local=True)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model.path=")


def test_a_damaged_file_is_refused_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert image_preparation(str(tmp_path), transformers.ViTConfig(), local=True) is None
    (tmp_path / "preprocessor_config.json").write_text('{"size": ')
    with pytest.raises(InputError, match=r"^model\.path=.*preprocessor_config\.json"):
        image_preparation(str(tmp_path), transformers.ViTConfig(), local=True)


def test_a_missing_file_is_said_and_a_size_that_the_model_does_not_take_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shutil.copytree(embedded.embedded(), tmp_path / "vit")
    cfg = backbones.ModelConfig(name="hub", path=str(path))
    assert backbones.load(cfg, "image", 5, 0).prepare is None
    assert (
        "vit has no preprocessor_config.json: images are scaled to 8 x 8 pixels, with values in [0, 1]" in caplog.text
    )
    processor = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5], "image_std": [0.5], "size": 16}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(
        InputError, match="its image processor makes images of 16 x 16 pixels; allowed is one for .* 8$"
    ):
        backbones.load(cfg, "image", 5, 0)


def test_the_embedded_backbone_is_not_said_to_lack_one(caplog: pytest.LogCaptureFixture) -> None:
    backbones.load(backbones.ModelConfig(), "image", 5, 0)
    assert not caplog.text


KINDS = {
    "swin": (
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
        {"image_processor_type": "ViTImageProcessor", "size": 16},
    ),
    "convnext": (
        {"image_size": 16, "patch_size": 2, "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}},
    ),
    "resnet": (
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 16}},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has_processor", [True, False])
def test_models_of_several_kinds_take_what_is_prepared_for_them(kind: str, has_processor: bool, tmp_path: Path) -> None:
    config, processor = KINDS[kind]
    made = transformers.AutoConfig.for_model(kind, **config)
    transformers.AutoModelForImageClassification.from_config(made).save_pretrained(tmp_path)
    if has_processor:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    backbone = backbones.load(backbones.ModelConfig(name="hub", path=str(tmp_path)), "image", 3, 0)
    features = datasets.Features(image=datasets.Array3D((20, 14, 3), "uint8"), label=datasets.Value("int64"))
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 14, 3)).astype(np.uint8)
    train = datasets.Dataset.from_dict({"image": list(images), "label": [0] * 4}, features=features)
    raw = RawData({"train": train}, "image", ("image",), "label", ("x",))
    examples = encode_images(train, raw, backbone.image_size, backbone.channels, backbone.prepare)
    batch = Collate(mean=backbone.mean, std=backbone.std)([examples[i] for i in range(4)])
    assert backbone.model(**batch).logits.shape == (4, 3)
    if has_processor:
        own = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        assert torch.equal(batch["pixel_values"], own(list(images), return_tensors="pt").pixel_values)
