"""The preprocessing of a model's inputs: its tokenizer, and the mean and standard deviation of its pixels."""

from __future__ import annotations

from typing import Any

import transformers

from flt.core.errors import InputError
from flt.models.hub import one_line_errors


def pixel_normalisation(source: str, local: bool) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Returns the mean and standard deviation by which the image processor normalises pixels, None without them."""
    try:
        config, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    except OSError:  # the embedded backbone has no image processor and takes values in [0, 1]
        return None, None
    if not config.get("do_normalize", True) or not config.get("image_mean"):
        return None, None
    return tuple(config["image_mean"]), tuple(config["image_std"])


def load_tokenizer(source: str, local: bool) -> Any:
    """Loads a model's tokenizer and makes sure that it has a padding token.

    Raises:
        InputError: The model has no tokenizer, or the tokenizer has no token to pad with.
    """
    with one_line_errors(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    # from a folder without a vocabulary, transformers makes a tokenizer that has special tokens only
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError.of("model.path", source, "a folder with tokenizer files too", "it holds no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError.of("model.path", source, "a tokenizer with a pad or eos token", "there is none to pad with")
    return tokenizer
