"""Images as people bring them: each gives the right pixels and classes, or is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import bombs
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import tiny
import torch
from commands import in_empty_folder, metrics, train
from pictures import CLASSES, COLOURS, GREYS, LABELS, arrays, colours, encoded, greys, photos, table

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import load
from flt.data.encode import encode_images

Bring = Callable[[Path], Path]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURNED = PIL.Image.Exif()
TURNED[PIL.Image.ExifTags.Base.Orientation] = 3


def transparent(hidden: int) -> list[bytes]:
    """The images, opaque on the left, and on the right transparent over a colour that nobody sees."""
    layers = []
    for image in COLOURS:
        layer = np.concatenate([image, np.full((8, 8, 1), 255, np.uint8)], axis=2)
        layer[:, 4:] = (hidden, hidden, hidden, 0)
        layers.append(encoded(PIL.Image.fromarray(layer)))
    return layers


def white_on_the_right(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[:, :, 4:] = 255
    return images


def palettes() -> tuple[list[bytes], np.ndarray]:
    made = [PIL.Image.fromarray(image).quantize(16) for image in COLOURS]
    files = [encoded(image, transparency=0) for image in made]
    expected = np.stack([np.asarray(image.convert("RGB")) for image in made])
    for image, palette in zip(expected, made, strict=True):
        image[np.asarray(palette) == 0] = 255
    return files, expected


def animation() -> list[bytes]:
    frames = [[PIL.Image.fromarray(i).quantize(256) for i in (image, 255 - image)] for image in COLOURS]
    return [encoded(first, "GIF", save_all=True, append_images=[second], duration=99) for first, second in frames]


def big_endian() -> list[bytes]:
    made = [PIL.Image.frombytes("I;16B", (8, 8), (image.astype(">u2") * 257).tobytes()) for image in GREYS]
    return [encoded(image, "TIFF") for image in made]


def metadata(*files: str, header: str = "file_name,label", **more: str) -> str:
    return "\n".join([header, *(f"{name},{CLASSES[LABELS[i]]}" for i, name in enumerate(files))])


FLAT = [f"{i:02}.png" for i in range(12)]
LINES = "\n".join(json.dumps({"file_name": f, "label": CLASSES[LABELS[i]]}) for i, f in enumerate(FLAT))
CLEAR, SEEN = palettes()
BILEVEL = np.where(GREYS > 127, 255, 0).astype(np.uint8)
RIGHT: dict[str, tuple[Bring, np.ndarray]] = {
    # what is brought: how it is written, the images in 0..255
    "bytes of PNG in a plain column": (table(colours()), COLOURS),
    "bytes in a column of large binaries": (table(colours(), pa.large_binary()), COLOURS),
    "bytes of TIFF": (table(colours("TIFF")), COLOURS),
    "bytes of a lossless WebP": (table(colours("WEBP", lossless=True)), COLOURS),
    "bytes and path, without a description": (table([{"bytes": b, "path": None} for b in colours()], STRUCT), COLOURS),
    "bytes and path, both there": (table([{"bytes": b, "path": "x.png"} for b in colours()], STRUCT), COLOURS),
    "bytes alone in a structure": (table([{"bytes": b} for b in colours()]), COLOURS),
    "8 bits": (table(greys(1, np.uint8)), GREYS),
    "16 bits": (table(greys(257, np.uint16)), GREYS),
    "16 bits as TIFF": (table(greys(257, np.uint16, "TIFF")), GREYS),
    "16 bits, the other end first": (table(big_endian()), GREYS),
    "32 bits with values of 16": (table(greys(257, np.int32, "TIFF")), GREYS),
    "floats in [0, 1] as TIFF": (table(greys(1 / 255, np.float32, "TIFF")), GREYS),
    "8 and 16 bits in one column": (table([*greys(1, np.uint8)[:6], *greys(257, np.uint16)[6:]]), GREYS),
    "1 bit": (table([encoded(PIL.Image.fromarray(image).convert("1")) for image in BILEVEL]), BILEVEL),
    "grey and transparent": (
        table([encoded(PIL.Image.merge("LA", [PIL.Image.fromarray(i), PIL.Image.new("L", (8, 8))])) for i in GREYS]),
        np.full_like(GREYS, 255),
    ),
    "transparent over black": (table(transparent(0)), white_on_the_right(COLOURS)),
    "transparent over grey": (table(transparent(90)), white_on_the_right(COLOURS)),
    "a palette with a transparent colour": (table(CLEAR), SEEN),
    "CMYK": (
        table([encoded(PIL.Image.fromarray(image).convert("CMYK"), "TIFF") for image in COLOURS]),
        COLOURS,
    ),
    "turned upside down by EXIF": (table(colours(exif=TURNED)), COLOURS[:, ::-1, ::-1]),
    "the first frame of an animation": (
        table(animation()),
        np.stack([np.asarray(PIL.Image.fromarray(image).quantize(256).convert("RGB")) for image in COLOURS]),
    ),
    "one pixel": (table([encoded(PIL.Image.fromarray(image[:1, :1])) for image in COLOURS]), COLOURS[:, :1, :1]),
    "arrays (H, W, 3)": (arrays(COLOURS), COLOURS),
    "arrays (3, H, W)": (arrays(COLOURS.transpose(0, 3, 1, 2)), COLOURS),
    "arrays of one pixel": (arrays(COLOURS[:, :1, :1]), COLOURS[:, :1, :1]),
    "grey arrays three pixels wide": (arrays(GREYS[:, :, :3]), GREYS[:, :, :3]),
    "arrays of floats in [0, 1]": (arrays(COLOURS / 255), COLOURS),
    "arrays of half floats": (arrays((BILEVEL / 255).astype(np.float16)), BILEVEL),
    "arrays of int64": (arrays(COLOURS.astype(np.int64)), COLOURS),
    "arrays of booleans": (arrays(BILEVEL > 0), BILEVEL),
    "arrays of 16 bits": (arrays(COLOURS.astype(np.uint16) * 257), COLOURS),
    "arrays of 16 bits that hold 8": (arrays(COLOURS.astype(np.uint16)), COLOURS),
    "a folder for each class": (photos(), COLOURS),
    "a folder for each class, in train": (photos(lambda i: f"train/{CLASSES[LABELS[i]]}/{i:02}.png"), COLOURS),
    "suffixes in capitals": (photos(lambda i: f"{CLASSES[LABELS[i]]}/{i:02}.PNG"), COLOURS),
    "words of splits in the names of images": (
        photos(lambda i: f"{CLASSES[LABELS[i]]}/{i:02}{'_test' * (i == 3)}.png"), COLOURS,
    ),
    "brackets and colons in the names of images": (photos(lambda i: f"{CLASSES[LABELS[i]]}/a[{i:02}]::b.png"), COLOURS),
    "files that are no images": (photos(files={"notes.txt": "x", "cat/Thumbs.db": "x", ".git/x.png": "x"}), COLOURS),
    "metadata.csv": (photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT)}), COLOURS),
    "metadata.jsonl": (photos(lambda i: FLAT[i], files={"metadata.jsonl": LINES}), COLOURS),
    "metadata.csv in train": (
        photos(lambda i: f"train/{FLAT[i]}", files={"train/metadata.csv": metadata(*FLAT)}), COLOURS,
    ),
    "metadata with another column first": (
        photos(lambda i: FLAT[i], files={
            "metadata.csv": "who,file_name,label\n" + "\n".join(f"x,{f},{CLASSES[i % 2]}" for i, f in enumerate(FLAT))
        }),
        COLOURS,
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[Bring, str]] = {
    # what is brought: how it is written, what the line says
    "a bomb in a row": (
        table([*colours()[:3], bombs.png(20_000, 20_000), *colours()[4:]]),
        r"^data\.image=<\d+ bytes>: it has more than 178956970 pixels; .* \(row 4 of train\)$",
    ),
    "a truncated image in a row": (
        table([{"bytes": b[: len(b) // (1 + (i == 6))]} for i, b in enumerate(colours())]),
        r"^data\.image=<\d+ bytes>: .*truncated.* \(row 7 of train\)$",
    ),
    "a missing image in a row": (table([*colours()[:5], None]), r"^data\.image=row 6 of train: allowed is an"),
    "bytes that are no images": (table([b"text"] * 12), r"cannot identify image file; .* \(row 1 of train\)$"),
    "a damaged image in a folder": (
        photos(files={"cat/06.png": colours()[6][:60]}),
        r"^data\.image=<60 bytes>: .* \(.*photos/cat/06\.png\)$",
    ),
    "a column without any image": (table([None] * 12), r"^data\.image=row 1 of train: allowed is an image for every"),
    "an empty image in a folder": (photos(files={"cat/06.png": b""}), r"^data\.image=<0 bytes>: .*photos/cat/06\.png"),
    "a bomb in a folder": (photos(files={"cat/x.png": bombs.png(20_000, 20_000)}), r"178956970 pixels.*cat/x\.png\)$"),
    "16 bits that hold 8": (
        table(greys(1, np.uint16)),
        r"^data\.image=16 bits, values up to 255: allowed is images of 8 bits, or of 16 bits with values above 255$",
    ),
    "32 bits with larger values": (table(greys(300, np.int32, "TIFF")), r"^data\.image=\d+ to \d+: .*0\.\.65535"),
    "floats up to 255 as TIFF": (table(greys(1, np.float32, "TIFF")), r"to 25\d\.0: allowed is .* floats in \[0, 1\]"),
    "arrays of floats up to 255": (arrays(COLOURS * 1.0), r"^data\.image=.* to 255\.0: .* floats in \[0, 1\]"),
    "arrays of 32 bits": (arrays(COLOURS.astype(np.int32) * 257), r"allowed is integers in 0\.\.255, integers of 16"),
    "arrays with a transparent channel": (arrays(COLOURS[..., [0, 1, 2, 0]]), r"^data\.image=\(8, 8, 4\): allowed"),
    "names of files in a column": (table(["a.png"] * 12), r"it holds text; .* a folder of images with metadata\.csv$"),
    "a structure without bytes": (table([{"url": "x"}] * 12), r"it holds \{url\}; allowed is a column of images, or"),
    "a structure that names files": (
        table([{"bytes": None, "path": "/etc/hostname"}] * 12, STRUCT), "image holds names of other files; allowed is",
    ),
    "images in no class's folder": (photos(lambda i: FLAT[i]), r"^data\.path=.*: 00\.png lies in no class's folder;"),
    "an image beside the classes": (photos(files={"x.png": colours()[0]}), r"x\.png lies in no class's folder"),
    "folders in a class's folder": (photos(files={"cat/a/x.png": colours()[0]}), r"cat/a/x\.png lies too deep"),
    "splits beside classes": (photos(files={"test/cat/x.png": colours()[0]}), r"test/cat/x\.png lies too deep"),
    "a single class": (photos(lambda i: f"cat/{i}.png"), r"^data\.label=label: there are 1; allowed is two classes"),
    "metadata that names a file outside": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT[:11], "../../x.png")}),
        r"^data\.path=.*: row 12 of metadata\.csv names \.\./\.\./x\.png; allowed is names of images in",
    ),
    "metadata that names a whole path": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT[:11], "/etc/hostname")}),
        r"row 12 of metadata\.csv names /etc/hostname",
    ),
    "metadata that name no image": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT, header="name,label")}),
        r"a column file_name in the metadata",
    ),
    "metadata without a label": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT, header="file_name,x")}), r"^data\.label=None",
    ),
    "metadata that can't be read": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT) + ",secret"}),
        r"^data\.path=.*metadata\.csv: ArrowInvalid: CSV parse error: (?!.*secret)",
    ),
    "two files of metadata": (
        photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT), "metadata.jsonl": LINES}),
        r"it has metadata\.csv, metadata\.jsonl; allowed is one file of metadata",
    ),
}  # fmt: skip


def brought(path: Path, split: str = "train") -> tuple[list[torch.Tensor], list[str]]:
    """The images of a split as a model would get them, and their classes, sorted by class."""
    raw = load(DataConfig("file", str(path), validation=0.0))
    examples = encode_images(raw.splits[split], raw, None, None)
    order = np.argsort(examples.labels, kind="stable")
    return [examples[int(i)]["pixel_values"] for i in order], [raw.label_names[examples.labels[i]] for i in order]


@pytest.mark.parametrize("what", RIGHT)
def test_images_have_the_right_pixels_and_classes(what: str, tmp_path: Path) -> None:
    bring, expected = RIGHT[what]
    images, classes = brought(bring(tmp_path))
    order = np.argsort(LABELS, kind="stable")
    assert classes == [CLASSES[LABELS[i]] for i in order]
    for image, wanted in zip(images, expected[order], strict=True):
        channels = torch.tensor(np.array(wanted[None] if wanted.ndim == 2 else wanted.transpose(2, 0, 1)))
        torch.testing.assert_close(image, channels.float() / 255, rtol=0, atol=1e-7)


@pytest.mark.parametrize("what", REFUSED)
def test_other_images_are_refused_in_a_line(what: str, tmp_path: Path) -> None:
    bring, why = REFUSED[what]
    with pytest.raises(InputError, match=why) as error:
        brought(bring(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [("train", "val", "testing"), ("Training", "VAL", "Testing")])
def test_folders_of_splits_are_the_splits(names: tuple[str, ...], tmp_path: Path) -> None:
    path = photos(lambda i: f"{names[i // 4]}/{CLASSES[LABELS[i]]}/{i:02}.png")(tmp_path)
    raw = load(DataConfig("file", str(path)))
    assert {name: len(split) for name, split in raw.splits.items()} == {"train": 4, "validation": 4, "test": 4}
    images, classes = brought(path, "test")
    assert classes == ["cat", "cat", "dog", "dog"]
    assert torch.equal(images[0], torch.tensor(COLOURS[8].transpose(2, 0, 1)).float() / 255)


def test_metadata_of_the_whole_folder_leave_images_in_their_split(tmp_path: Path) -> None:
    names = [f"{'train' if i < 8 else 'test'}/{i:02}.png" for i in range(12)]
    raw = load(DataConfig("file", str(photos(lambda i: names[i], files={"metadata.csv": metadata(*names)})(tmp_path))))
    assert len(raw.splits["test"]) == 4
    column = raw.splits["test"]["image"]
    assert [Path(image["path"]).name for image in column] == ["08.png", "09.png", "10.png", "11.png"]


def test_names_of_classes_may_have_spaces_and_any_letters(tmp_path: Path) -> None:
    named = ("große Katze", "犬 #1")
    path = photos(lambda i: f"{named[LABELS[i]]}/{i:02}.png")(tmp_path)
    assert set(brought(path)[1]) == set(named)


def test_what_is_left_out_of_a_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = photos(files={"notes.txt": "x", "cat/x.heic": "x"})(tmp_path)
    (path / "bird").mkdir()
    (path / ".cache").mkdir()
    caplog.set_level("INFO")
    brought(path)
    classes = f"2 classes ({', '.join(sorted(set(CLASSES)))})"
    assert f"photos: 12 rows, 2 columns, {classes}, 2 files that are no images, such as cat/x.heic, not" in caplog.text
    assert "the folder bird without images" in caplog.text
    assert ".cache" not in caplog.text


def test_rows_that_name_an_image_again_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    brought(photos(lambda i: FLAT[i], files={"metadata.csv": metadata(*FLAT[:11], FLAT[0])})(tmp_path))
    assert "photos: 12 rows, 2 columns, " in caplog.text
    assert "1 rows name an image again, 1 images that no metadata name not used" in caplog.text


@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_links_out_of_a_folder_are_refused(what: str, tmp_path: Path) -> None:
    path = photos()(tmp_path)
    shutil.copytree(path, tmp_path / "elsewhere")
    target = tmp_path / "elsewhere" / "cat"
    (path / "cat" / "link.png").symlink_to(target / "00.png" if what == "a file" else target)
    with pytest.raises(InputError, match=r"cat/link\.png is a link elsewhere; allowed is files, and links to files"):
        brought(path)


def test_links_inside_of_a_folder_are_read(tmp_path: Path) -> None:
    path = photos(lambda i: f"{CLASSES[LABELS[i]]}/{i:02}.png")(tmp_path)
    (path / "cat" / "link.png").symlink_to(path / "cat" / "00.png")
    assert len(brought(path)[0]) == 13


def test_pictures_beside_a_table_are_no_folder_of_images(tmp_path: Path) -> None:
    path = photos(lambda i: FLAT[i], files={"train.csv": "text,label\na,0\n"})(tmp_path)
    with pytest.raises(InputError) as error:
        brought(path)
    assert "lies in no class" not in str(error.value)


@pytest.mark.slow
def test_runs_on_8_and_16_bits_have_the_same_figures_and_a_folder_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    tiny.classifier("vit", 2).save_pretrained("vit")
    processor = {"image_processor_type": "ViTImageProcessor", "size": 8, "image_mean": [0.4], "image_std": [0.3]}
    Path("vit/preprocessor_config.json").write_text(json.dumps(processor))
    grey = greys(1, np.uint8)
    forms = {"eight": table(grey), "sixteen": table(greys(257, np.uint16)), "folder": photos(images=grey)}
    for name, bring in forms.items():
        Path(name).mkdir()
        assert train("data=file", f"data.path={bring(Path(name))}", "model=./vit", f"name={name}") == 0
    eight, sixteen = (metrics(Path("lightning_logs", name, "version_0")) for name in ("eight", "sixteen"))
    assert eight == sixteen
