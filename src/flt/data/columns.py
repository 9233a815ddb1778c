"""Which columns hold the inputs and the class: those that the config names, else the first usual ones present."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import datasets

from flt.core.errors import InputError

if TYPE_CHECKING:
    from flt.data.config import DataConfig

Kind = Literal["text", "pair", "image", "causal"]

TEXTS = ("text_stripped", "text", "sentence", "content", "instruction", "review", "document", "title")
LORA_FACTORS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
)
IMAGES = ("image", "img")
LABELS = ("label", "labels", "target", "category", "fine_label")
LABEL_NAMES = ("label_name", "label_text")


def pick(key: str, given: str | None, usual: Sequence[str], present: Sequence[str]) -> str:
    """Returns the column given, or the first usual one that is present.

    Args:
        key: Config key under `data.`, for the error.
        given: The user's choice, if any.
        usual: Names to look for otherwise.
        present: The data's columns.

    Raises:
        InputError: If the column given isn't there, or none of the usual ones is.

    Example:
        >>> pick("label", None, ("label", "labels", "target"), ["text", "target", "labels"])
        'labels'
    """
    if given is not None and given not in present:
        raise InputError.of(f"data.{key}", given, present, "no such column")
    found = given or next((name for name in usual if name in present), None)
    if found is None:
        raise InputError.of(f"data.{key}", given, present, "no column has a usual name, say which it is")
    return found


def choose_inputs(cfg: DataConfig, features: datasets.Features) -> tuple[Kind, tuple[str, ...]]:
    """Chooses the input columns: those given, else an image, else a usual pair, else a usual text.

    Raises:
        InputError: If a column isn't there or holds no text or image.

    Example:
        >>> from flt.data.sources import DataConfig
        >>> value = datasets.Value("string")
        >>> choose_inputs(DataConfig(), datasets.Features(premise=value, hypothesis=value))
        ('pair', ('premise', 'hypothesis'))
    """
    names = list(features)
    free = cfg.text is None and cfg.text_pair is None
    if cfg.image is not None or (free and any(name in names for name in IMAGES)):
        return "image", (_image(pick("image", cfg.image, IMAGES, names), features),)
    pair = next((both for both in LORA_FACTORS if set(both) <= set(names)), None)
    if free and pair:
        return "pair", tuple(check_text("text", name, features) for name in pair)
    text = check_text("text", pick("text", cfg.text, TEXTS, names), features)
    if cfg.text_pair is None:
        return "text", (text,)
    return "pair", (text, check_text("text_pair", pick("text_pair", cfg.text_pair, (), names), features))


def _image(name: str, features: datasets.Features) -> str:
    if getattr(features[name], "dtype", None) in ("string", "large_string"):
        raise InputError.of("data.image", name, "a column of images", "it holds text")
    return name


def check_text(key: str, name: str, features: datasets.Features) -> str:
    """Returns the name of a column of text.

    Raises:
        InputError: It holds something else.
    """
    dtype = getattr(features[name], "dtype", type(features[name]).__name__)
    if dtype not in ("string", "large_string"):
        raise InputError.of(f"data.{key}", name, "a column of text", f"it holds {dtype}")
    return name
