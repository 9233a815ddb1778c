"""Choice of the input columns and the label column. Columns that the user hasn't set are found by common names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from flt.core.errors import InputError
from flt.data.images import is_encoded

if TYPE_CHECKING:
    from flt.data.config import DataConfig

Kind = Literal["text", "pair", "image", "causal"]
"""Kind of the inputs: a text, a pair of texts, an image, or a prompt with a response for a causal model."""

TEXTS = ("text_stripped", "text", "sentence", "content", "instruction", "review", "document", "title")
TEXT_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
)
IMAGES = ("image", "img")
LABELS = ("label", "labels", "target", "category", "fine_label")
LABEL_NAMES = ("label_name", "label_text")
EXACT = 2.0**53
"""Number from which on float64 no longer tells one integer from the next."""
LONGEST = 1000
"""Largest number of characters of the name of a class, or of another property."""


def choose_column(key: str, given: str | None, usual: Sequence[str], present: Sequence[str]) -> str:
    """Returns the column that the user has set, or otherwise the first usual name that is a column of the data.

    Args:
        key: Config key of the column, without the prefix `data.`. It is used in the text of an error.
        given: Column that the user has set, or None if the user has set none.
        usual: Usual names, which are tried in this order.
        present: Names of the columns of the data.

    Raises:
        InputError: The given column doesn't exist, or no column is given and no column has a usual name.

    Example:
        >>> choose_column("label", None, ("label", "labels", "target"), ["text", "target", "labels"])
        'labels'
    """
    if given is not None and given not in present:
        raise InputError.of(f"data.{key}", given, present, "no such column")
    found = given or next((name for name in usual if name in present), None)
    if found is None:
        raise InputError.of(f"data.{key}", given, present, "no column has a usual name, say which it is")
    return found


def choose_inputs(cfg: DataConfig, features: datasets.Features) -> tuple[Kind, tuple[str, ...]]:
    """Chooses the input columns, and the kind of the inputs.

    Columns that the user has set are used. Otherwise columns with usual names are tried in this order: an image column,
    a pair of text columns, a single text column.

    Raises:
        InputError: A column doesn't exist or holds neither text nor images.

    Example:
        >>> from flt.data.dataset_sources import DataConfig
        >>> value = datasets.Value("string")
        >>> choose_inputs(DataConfig(), datasets.Features(premise=value, hypothesis=value))
        ('pair', ('premise', 'hypothesis'))
    """
    kind, names = input_names(cfg, list(features))
    if kind == "image":
        return kind, (_image(names[0], features),)
    keys = ("text", "text" if cfg.text_pair is None else "text_pair")
    return kind, tuple(check_text(key, name, features) for key, name in zip(keys, names, strict=False))


def input_names(cfg: DataConfig, names: Sequence[str]) -> tuple[Kind, tuple[str, ...]]:
    """Chooses the input columns by their names, without looking at what they hold.

    Raises:
        InputError: A column doesn't exist.
    """
    free = cfg.text is None and cfg.text_pair is None
    if cfg.image is not None or (free and any(name in names for name in IMAGES)):
        return "image", (choose_column("image", cfg.image, IMAGES, names),)
    pair = next((both for both in TEXT_PAIRS if set(both) <= set(names)), None)
    if free and pair:
        return "pair", pair
    text = choose_column("text", cfg.text, TEXTS, names)
    if cfg.text_pair is None:
        return "text", (text,)
    return "pair", (text, choose_column("text_pair", cfg.text_pair, (), names))


def _image(name: str, features: datasets.Features) -> str:
    if getattr(features[name], "dtype", None) in ("string", "large_string"):
        allowed = "a column of images; for names of files, a folder of images with metadata.csv"
        raise InputError.of("data.image", name, allowed, "it holds text")
    if isinstance(features[name], dict) and not is_encoded(features[name]):
        fields = ", ".join(features[name]) or "nothing"
        raise InputError.of("data.image", name, "a column of images, or of {bytes, path}", f"it holds {{{fields}}}")
    return name


def check_text(key: str, name: str, features: datasets.Features) -> str:
    """Returns the name of a column after checking that the column holds text.

    Raises:
        InputError: The column doesn't hold text.
    """
    dtype = getattr(features[name], "dtype", type(features[name]).__name__)
    if dtype not in ("string", "large_string"):
        raise InputError.of(f"data.{key}", name, "a column of text", f"it holds {dtype}")
    return name


def content(feature: Any) -> str:
    """Returns what a column holds, in words: texts, integers, booleans, images, or the type's own name."""
    if isinstance(feature, datasets.Image | dict | datasets.Array2D | datasets.Array3D):
        return "images"
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if isinstance(feature, datasets.ClassLabel) or dtype in ("string", "large_string"):
        return "texts or names of classes"
    return "integers" if "int" in dtype else "booleans" if dtype == "bool" else dtype


def check_property(key: str, column: pa.ChunkedArray) -> None:
    """Checks a column of classes or other properties. numpy gives every text the room of the longest.

    Raises:
        InputError: A value consists of several, or is no text, a text has more than ``LONGEST`` characters, or a number
            is so large that it has been rounded.
    """
    kind = column.type
    if key != "label" and pa.types.is_floating(kind) and (pc.max(pc.abs(column)).as_py() or 0) >= EXACT:
        raise InputError.of(f"data.{key}", "rounded numbers", "integers below 2^63, or texts")
    if any(test(kind) for test in (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)):
        raise InputError.of(f"data.{key}", str(column.type), "a column of texts or numbers")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        longest = pc.max(pc.utf8_length(column)).as_py() or 0
        if longest > LONGEST:
            raise InputError.of(f"data.{key}", f"{longest} characters", f"texts of at most {LONGEST} characters")
