"""Reading of folders of images, laid out as the library datasets expects them.

The layouts are ``<class>/<image>`` and ``<split>/<class>/<image>``, or images beside a file metadata.csv, .jsonl or
.parquet whose column `file_name` names them. The builder of the library datasets isn't used, because it chooses splits
by words in the names of images, follows links to other folders, and opens archives.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import datasets

from flt.core.errors import InputError
from flt.data.file_formats import SPLIT_NAMES, Splits
from flt.data.read_settings import Choose
from flt.data.suffixes import suffix_of
from flt.data.used_columns import SPLIT, used_columns

if TYPE_CHECKING:
    from flt.data.config import DataConfig

IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".pbm", ".pgm",
    ".ppm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif",
)  # fmt: skip
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of a metadata file that names the images, relative to the metadata file."""
SPLITS = {name: split for split, names in SPLIT_NAMES.items() for name in names}
"""Name of a folder -> the split that it contains."""
ReadTable = Callable[[Path, Choose], Splits]
LAYOUT = "<class>/<image>, <split>/<class>/<image>, or images beside a metadata.csv"


def is_image_folder(path: Path) -> bool:
    """Returns whether a path is a folder that holds more images than tables.

    Pictures beside tables, without metadata, are no data set.
    """
    if not os.path.isdir(path):
        return False
    found = [(folder, name) for folder, _, names in os.walk(path) for name in names]
    images = [folder for folder, name in found if _is_image(name)]
    tables = [name for _, name in found if suffix_of(name) and name not in METADATA]
    has_layout = not tables or any(name in METADATA for _, name in found) or any(f != str(path) for f in images)
    return len(images) > len(tables) and has_layout


def read_image_folder(path: Path, cfg: DataConfig, read_table: ReadTable, note: Callable[[str], None]) -> Splits:
    """Reads the places and the classes of the images in a folder. The images themselves are decoded later.

    Hidden files and folders are ignored. Other files that aren't images, and folders without images, are left out and
    counted.

    Args:
        path: The folder.
        cfg: Settings of the data set. Of a metadata file, the columns that they use are read.
        read_table: Function that reads a metadata file.
        note: Function that takes what a user should know about the folder.

    Raises:
        InputError: An image lies outside of the layout, a link leads out of the folder, or a metadata file can't be
            read or names an image that isn't there.
    """
    files = sorted(_files(path))
    images = [file for file in files if _is_image(file.name)]
    metadata = [file for file in files if file.name in METADATA]
    parts = _with_metadata(path, metadata, images, _chooser(cfg), read_table) if metadata else _by_class(path, images)
    others = [file for file in files if not _is_image(file.name) and file.name not in METADATA]
    rows = sum(map(len, parts.values()))
    used = len({image["path"] for split in parts.values() for image in split["image"]}) if metadata else rows
    if rows > used:
        note(f"{rows - used} rows name an image again")
    if len(images) > used:
        note(f"{len(images) - used} images that no metadata name not used")
    for name in others[:1]:
        note(f"{len(others)} files that are no images, such as {name}, not used")
    for folder in _empty(path, images):
        note(f"the folder {folder} without images")
    return parts


def image_files(path: Path) -> list[PurePosixPath]:
    """Returns the images in a folder and its subfolders, relative to it, in alphabetical order, without hidden ones.

    Raises:
        InputError: A link leads out of the folder, or the folder can't be read.
    """
    return sorted(file for file in _files(path) if _is_image(file.name))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def _files(root: Path) -> Iterator[PurePosixPath]:
    """Yields the files below a folder, relative to it, except hidden ones.

    Raises:
        InputError: A link leads to a folder, or to a file outside of the folder, or a folder can't be read.
    """

    def fail(error: OSError) -> None:
        raise InputError.of("data.path", root, "a folder that can be read", str(error)) from error

    inside = os.path.realpath(root)
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*folders, *names]):
            full = os.path.join(folder, name)
            if name.startswith("."):
                continue
            if os.path.islink(full):
                _check_link(root, full, inside)
            if any("\ud800" <= letter <= "\udfff" for letter in name):
                raise InputError.of("data.path", root, "names of files in UTF-8", ascii(name))
            if os.path.isfile(full):
                yield PurePosixPath(Path(full).relative_to(root).as_posix())


def _check_link(root: Path, link: str, inside: str) -> None:
    target = os.path.realpath(link)
    if os.path.isdir(target) or os.path.commonpath([target, inside]) != inside:
        name = Path(link).relative_to(root)
        raise InputError.of("data.path", root, "files, and links to files inside of it", f"{name} is a link elsewhere")


def _empty(root: Path, images: Sequence[PurePosixPath]) -> list[PurePosixPath]:
    """Returns the folders, relative to the root, that contain no image."""
    full = {parent for image in images for parent in image.parents}
    folders = [
        PurePosixPath((Path(folder) / name).relative_to(root).as_posix())
        for folder, names, _ in os.walk(root)
        for name in names
    ]
    return sorted(f for f in folders if f not in full and not any(part.startswith(".") for part in f.parts))


def _by_class(root: Path, images: Sequence[PurePosixPath]) -> Splits:
    has_splits = bool(images) and all(_split(image) for image in images)
    found: dict[str, list[PurePosixPath]] = {}
    for image in images:
        folders = image.parent.parts
        if len(folders) != 1 + has_splits:
            why = f"{image} lies in no class's folder" if len(folders) <= has_splits else f"{image} lies too deep"
            raise InputError.of("data.path", root, LAYOUT, why)
        found.setdefault(_split(image) if has_splits else "train", []).append(image)
    return {split: _dataset(root, own, {"label": [image.parent.name for image in own]}) for split, own in found.items()}


def _split(image: PurePosixPath) -> str:
    """Returns the split that the outermost folder of an image stands for. Empty: it stands for none."""
    return SPLITS.get(image.parts[0].lower(), "")


def _dataset(root: Path, images: Sequence[PurePosixPath], columns: dict[str, list]) -> datasets.Dataset:
    places = [{"bytes": None, "path": str(root / image)} for image in images]
    made = datasets.Dataset.from_dict({"image": places, **columns})
    return made.cast_column("image", datasets.Image(decode=False))


def _with_metadata(
    root: Path,
    metadata: Sequence[PurePosixPath],
    images: Sequence[PurePosixPath],
    choose: Choose,
    read_table: ReadTable,
) -> Splits:
    """Reads the metadata file of the whole folder, or of each split."""
    present, parts = set(images), Splits()
    for file in metadata:
        folder = file.parent
        is_whole = folder == PurePosixPath(".")
        if not (is_whole or (len(folder.parts) == 1 and folder.name.lower() in SPLITS)) or len(metadata) > (
            is_whole or 3
        ):
            why = f"it has {', '.join(map(str, metadata))}"
            raise InputError.of("data.path", root, "one file of metadata for all, or one for each split", why)
        for split, rows in read_table(root / file, choose).items():
            for part, own in _named(root, file, split, rows, present).items():
                if part in parts:
                    raise InputError.of("data.path", root, "one file of metadata for each split", f"{part} has two")
                parts[part] = own
    return parts


def _chooser(cfg: DataConfig) -> Choose:
    """Returns the function that chooses the columns of a metadata file, in which `file_name` stands for the image."""
    images = replace(cfg, image="image")

    def choose(names: Sequence[str]) -> list[str]:
        if FILE_NAME not in names:
            raise InputError.of("data.path", cfg.path, f"a column {FILE_NAME} in the metadata", f"it has {list(names)}")
        chosen = set(used_columns(images, ["image" if name == FILE_NAME else name for name in names]))
        return [name for name in names if name in chosen or name == FILE_NAME]

    return choose


def _named(root: Path, file: PurePosixPath, split: str, rows: datasets.Dataset, present: set[PurePosixPath]) -> Splits:
    """Replaces the column of names by a column of images.

    The rows belong to the split that the folder of the metadata file or, without a column `split`, the folder of the
    image stands for.

    Raises:
        InputError: A name is no name of an image in the folder.
    """
    images = []
    for row, name in enumerate(rows[FILE_NAME], start=1):
        image = file.parent / str(name)  # an absolute name, and one with .., is in no folder's list
        if name is None or image not in present:
            why = f"row {row} of {file} names {name}"
            raise InputError.of("data.path", root, f"names of images in {root / file.parent}", why)
        images.append(image)
    key, kind = datasets.fingerprint.generate_random_fingerprint(), datasets.Image(decode=False)
    column: Any = _dataset(root, images, {}).data.column("image")
    rows = rows.remove_columns(FILE_NAME).add_column("image", column, new_fingerprint=key, feature=kind)
    if SPLIT in rows.column_names or not all(map(_split, images)):
        return {split: rows}
    owners = [_split(image) for image in images]
    return {name: rows.select([i for i, own in enumerate(owners) if own == name]) for name in dict.fromkeys(owners)}
