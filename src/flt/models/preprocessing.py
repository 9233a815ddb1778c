"""The preprocessing of texts: a model's tokenizer."""

from __future__ import annotations

from typing import Any

import transformers

from flt.core.errors import InputError
from flt.models.location import one_line_errors


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
