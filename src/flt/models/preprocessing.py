"""The preprocessing of a model's inputs: the tokenizer for texts, and the normalisation of pixels for images."""

from __future__ import annotations

from typing import Any

import transformers

from flt.core.errors import InputError
from flt.models.location import one_line_errors


def pixel_normalisation(source: str, local: bool) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Returns the mean and the standard deviation that normalise pixels. Both are None if there is no normalisation."""
    try:
        config, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    except OSError:  # an embedded backbone has no file of an image processor: its inputs are pixels in [0, 1]
        return None, None
    if not config.get("do_normalize", True) or not config.get("image_mean"):
        return None, None
    return tuple(config["image_mean"]), tuple(config["image_std"])


def load_tokenizer(source: str, local: bool) -> Any:
    """Loads a model's tokenizer and makes sure that it has a padding token.

    Raises:
        InputError: The model has no tokenizer, or the tokenizer has no token that can be used for padding.
    """
    with one_line_errors(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    # if the folder has no vocabulary, transformers returns a tokenizer that has special tokens only
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError.of("model.path", source, "a folder with tokenizer files too", "it holds no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError.of("model.path", source, "a tokenizer with a pad or eos token", "there is none to pad with")
    return tokenizer
