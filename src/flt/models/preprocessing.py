"""What turns raw inputs into a model's own: its tokenizer, and the mean and deviation of its pixels."""

from __future__ import annotations

from typing import Any

import transformers

from flt.core.errors import InputError
from flt.models.hub import loading


def pixels(source: str, local: bool) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation that the model's image processor brings pixels to; None where there is none."""
    try:
        found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    except OSError:  # the embedded backbone has none, and takes [0, 1]
        return None, None
    if not found.get("do_normalize", True) or not found.get("image_mean"):
        return None, None
    return tuple(found["image_mean"]), tuple(found["image_std"])


def load_tokenizer(source: str, local: bool) -> Any:
    """A model's tokenizer, with a token to pad with.

    Raises:
        InputError: There is none, or nothing to pad with.
    """
    with loading(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    # from a folder without vocabulary, transformers makes a tokenizer that knows its special tokens only
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError.of("model.path", source, "a folder with tokenizer files too", "it holds no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError.of("model.path", source, "a tokenizer with a pad or eos token", "there is none to pad with")
    return tokenizer
