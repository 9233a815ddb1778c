"""The licence of a pre-trained model, as the files beside its weights name it."""

from __future__ import annotations

import re
from typing import Any

from transformers.utils import cached_file

from flt.core import plain_yaml
from flt.core.quiet import quiet_transformers

LARGEST = 2**20
"""Largest size of a model's card, in bytes."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
"""Identifiers of licences, such as ``apache-2.0``."""


def license_of(source: str, config: Any, local: bool) -> str:
    """Returns the licence that a model's config or card names, or an empty text.

    Args:
        source: Folder or hub id of the model.
        config: The model's config.
        local: Whether to use local files only.
    """
    named = getattr(config, "license", None) or _of_card(source, local)
    return named if isinstance(named, str) and _NAME.fullmatch(named) else ""


def _of_card(source: str, local: bool) -> Any:
    try:
        with quiet_transformers():
            path = cached_file(source, "README.md", local_files_only=local, _raise_exceptions_for_missing_entries=False)
        if path is None:
            return None
        with open(path, "rb") as file:
            return plain_yaml.front_matter(file.read(LARGEST).decode()).get("license")
    except Exception:  # a card may be missing, or anything at all; a model is trained without one, too
        return None
