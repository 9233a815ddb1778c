"""Encoding: what a tokenizer and a picture say, compactly held, batched, and dealt over tasks."""

from __future__ import annotations

import pickle

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from texts import WORDS, raw_text, tokenizer
from torch.nn.functional import interpolate
from transformers import BertConfig, BertForSequenceClassification

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import RawData, load
from flt.data.encode import encode_images, encode_text, tasks
from flt.data.examples import Collate, Examples, stratified_sample

NAMES = ("comp.graphics", "comp.windows", "rec.autos", "sci.med", "misc")


def raw_images(images: list, feature: object) -> RawData:
    features = datasets.Features(image=feature, label=datasets.Value("int64"))
    train = datasets.Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=features)
    return RawData({"train": train}, "image", ("image",), "label", ("x",))


def encode(raw: RawData, max_length: int = 8, special: bool = True) -> Examples:
    return encode_text(raw.splits["train"], raw, tokenizer(special), max_length)


def pictures(raw: RawData, size: int | None = None, channels: int | None = None) -> Examples:
    return encode_images(raw.splits["train"], raw, size, channels)


# ---------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("pairs", [None, ["c", "d e a b", "e"]])
def test_items_equal_the_tokenizer_one_text_at_a_time(pairs: list[str] | None) -> None:
    texts = ["a b", "", "a b c d e a b c d e"]
    examples = encode(raw_text(texts, pairs))
    for i, text in enumerate(texts):
        expected = tokenizer()(text, *([pairs[i]] if pairs else []), truncation=True, max_length=8, return_tensors="pt")
        item = examples[i]
        assert set(item) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
        assert all(torch.equal(item[name], expected[name][0]) for name in expected)
        assert item["labels"].item() == i % 2
        assert item["labels"].shape == ()
        assert item["labels"].dtype == torch.int64


def test_more_rows_than_one_read_keep_their_order() -> None:
    texts = [" ".join(np.random.default_rng(i).choice(WORDS[4:], i % 7 + 1)) for i in range(2050)]
    examples = encode(raw_text(texts))
    for i in (0, 999, 1000, 1001, 2049):
        assert examples[i]["input_ids"].tolist() == tokenizer()(texts[i], truncation=True, max_length=8)["input_ids"]


def test_text_costs_four_bytes_per_token_and_column() -> None:
    examples = encode(raw_text(["a b c"] * 10))
    assert all(flat.nbytes == 4 * 10 * 5 for flat in examples.store.columns.values())


def test_empty_text_without_special_tokens_still_has_one_token() -> None:
    examples = encode(raw_text(["a", "", None]), special=False)
    assert [examples[i]["input_ids"].tolist() for i in range(3)] == [[4], [0], [0]]
    assert all(examples[i]["attention_mask"].tolist() == [1] for i in range(3))


def test_collate_equals_the_tokenizers_own_padding() -> None:
    texts = ["a b", "", "c d e a"]
    examples = encode(raw_text(texts))
    batch = Collate(pad_token_id=0)([examples[i] for i in range(3)])
    expected = tokenizer()(texts, padding=True, return_tensors="pt")
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert batch["labels"].tolist() == [0, 1, 0]


def test_padding_takes_the_models_own_pad_token_and_zero_elsewhere() -> None:
    examples = encode(raw_text(["a", "a b"]))
    batch = Collate(pad_token_id=7)([examples[0], examples[1]])
    assert batch["input_ids"][0].tolist() == [2, 4, 3, 7]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0]
    assert batch["token_type_ids"][0].tolist() == [0, 0, 0, 0]


def test_batches_feed_a_transformers_model() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=2
    )
    examples = encode(raw_text(["a b", "c", ""]))
    batch = next(iter(torch.utils.data.DataLoader(examples, batch_size=3, collate_fn=Collate(0))))
    assert BertForSequenceClassification(config)(**batch).logits.shape == (3, 2)


# ---------------------------------------------------------------------------------------------- images


def test_bytes_become_floats_between_zero_and_one_channels_first() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    examples = pictures(raw_images(list(images), datasets.Array3D((4, 5, 3), "uint8")))
    assert examples.store.pixels.dtype == torch.uint8
    item = examples[1]["pixel_values"]
    assert item.dtype == torch.float32
    np.testing.assert_array_equal(item.numpy(), images[1].transpose(2, 0, 1).astype(np.float32) / 255)


def test_digits_come_as_floats_and_grey_repeats_to_colour() -> None:
    raw = load(DataConfig(classes=[0, 1]))
    grey, colour = pictures(raw, channels=1), pictures(raw, channels=3)
    assert grey[0]["pixel_values"].shape == (1, 8, 8)
    assert all(torch.equal(colour[0]["pixel_values"][c], grey[0]["pixel_values"][0]) for c in range(3))
    np.testing.assert_array_equal(grey.labels, raw.values("train", "label"))


@pytest.mark.parametrize(("side", "held"), [(16, 8), (4, 4)])
def test_size_is_the_backbones_and_memory_takes_the_smaller_side(side: int, held: int) -> None:
    raw = load(DataConfig(classes=[0, 1]))
    examples = pictures(raw, size=side)
    assert examples.store.pixels.shape[1:] == (1, held, held)
    image = torch.tensor(np.array(raw.splits["train"]["image"][0]), dtype=torch.float32)[None, None]
    expected = interpolate(image, (side, side), mode="bilinear", align_corners=False, antialias=True)[0]
    torch.testing.assert_close(examples[0]["pixel_values"], expected)


def test_pictures_of_all_modes_and_sizes_become_alike() -> None:
    palette = Image.new("RGB", (6, 6), (255, 0, 0)).convert("P")
    images = [Image.new("L", (5, 7), 51), palette, Image.new("RGBA", (20, 9), (0, 255, 0, 255))]
    examples = pictures(raw_images(images, datasets.Image()), size=8, channels=3)
    grey, red, green = (examples[i]["pixel_values"] for i in range(3))
    torch.testing.assert_close(grey, torch.full((3, 8, 8), 0.2))
    torch.testing.assert_close(red.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(green.mean((1, 2)), torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("images", "feature", "size", "channels", "words"),
    [
        (
            [Image.new("L", (2, 2)), Image.new("L", (3, 3))],
            datasets.Image(),
            None,
            None,
            ["data.image=2 x 2 and 3 x 3 pixels"],
        ),
        ([Image.new("RGB", (2, 2))], datasets.Image(), None, 1, ["data.image=3 channels", "allowed is 1, what"]),
        ([np.full((2, 2), 7.0)], datasets.Array2D((2, 2), "float32"), None, None, ["data.image=7.0 to 7.0", "255"]),
        ([np.full((2, 2), np.nan)], datasets.Array2D((2, 2), "float32"), None, None, ["data.image=nan"]),
        ([np.zeros((2, 2, 4))], datasets.Array3D((2, 2, 4), "uint8"), None, None, ["data.image=(2, 2, 4)"]),
    ],
)
def test_pictures_that_do_not_fit_are_refused_on_one_line(
    images: list, feature: object, size: int | None, channels: int | None, words: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        pictures(raw_images(images, feature), size, channels)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


# ---------------------------------------------------------------------------------------------- views and subsamples


def test_a_view_shares_the_inputs_and_may_have_its_own_labels() -> None:
    examples = encode(raw_text(["a", "b", "c", "d"]))
    view = examples.view([3, 1]).view([1], labels=[5])
    assert view.store is examples.store
    assert len(view) == 1
    assert view[0]["input_ids"].tolist() == examples[1]["input_ids"].tolist()
    assert view[0]["labels"].item() == 5
    assert examples[1]["labels"].item() == 1


def test_examples_survive_pickling_for_worker_processes() -> None:
    examples = pickle.loads(pickle.dumps(encode(raw_text(["a b", "c"])).view([1])))
    assert examples[0]["input_ids"].tolist() == [2, 6, 3]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=80), st.integers(1, 100), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_take_is_sorted_stratified_and_fixed_by_the_seed(labels: list[int], n: int, seed: int) -> None:
    examples = Examples(encode(raw_text(["a"])).store, labels)
    chosen = stratified_sample(examples, n, seed)
    assert len(chosen) == min(n, len(labels))
    assert (np.diff(chosen) > 0).all()
    assert (chosen == stratified_sample(examples, n, seed)).all()
    share = len(chosen) / len(labels)
    for label in set(labels):
        assert abs((examples.labels[chosen] == label).sum() - share * labels.count(label)) <= 1.5


# ---------------------------------------------------------------------------------------------- tasks


def test_tasks_by_pattern_name_and_number_count_labels_from_zero() -> None:
    labels = [4, 1, 0, 3, 2, 1, 4]
    found = tasks(labels, NAMES, {"comp": ["comp.*"], "rest": ["misc", "2"]})
    assert {task: [array.tolist() for array in pair] for task, pair in found.items()} == {
        "comp": [[1, 2, 5], [1, 0, 1]],
        "rest": [[0, 4, 6], [1, 0, 1]],
    }


def test_a_class_name_goes_before_a_class_number() -> None:
    positions, labels = tasks([0, 1, 2], ["1", "2", "0"], {"t": ["1", "0"]})["t"]
    assert positions.tolist() == [0, 2]
    assert labels.tolist() == [0, 1]


def test_no_tasks_are_one_task_with_everything() -> None:
    found = tasks([2, 0, 1], NAMES, {})
    assert list(found) == ["all"]
    assert [array.tolist() for array in found["all"]] == [[0, 1, 2], [2, 0, 1]]


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"a": ["comp.*"], "b": ["*.graphics"]}, ["data.tasks.b=comp.graphics", "also in a"]),
        ({"a": ["talk.*"]}, ["data.tasks.a=talk.*", "comp.graphics"]),
        ({"a": []}, ["data.tasks.a=[]"]),
        ({"a": ["sci.med"]}, ["data.tasks.a=", "examples"]),
    ],
)
def test_overlapping_and_empty_tasks_are_refused_on_one_line(cfg: dict[str, list[str]], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        tasks([0, 1, 2, 4], NAMES, cfg)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    "call", [lambda: encode(raw_text(["a"]), 0), lambda: stratified_sample(encode(raw_text(["a"])), 0, 0)]
)
def test_lengths_and_sizes_below_one_are_refused(call: object) -> None:
    with pytest.raises(InputError, match="=0: allowed is an integer >= 1"):
        call()


def test_pixels_are_brought_to_the_mean_and_deviation_of_the_backbone() -> None:
    items = [{"pixel_values": torch.full((3, 2, 2), 0.5), "labels": torch.tensor(0)}]
    batch = Collate(mean=(0.5, 0.25, 0.0), std=(1.0, 0.5, 2.0))(items)
    assert batch["pixel_values"][0, :, 0, 0].tolist() == [0.0, 0.5, 0.25]
