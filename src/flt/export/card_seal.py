"""The last line of a model card that flt wrote, by which flt knows whether somebody has changed the card since."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

CARD_FILE = "README.md"
"""Name of the model card in the folder of an exported model."""
LARGEST = 2**22
"""Largest size of a card in bytes."""
_LINE = "\n<!-- Written by flt, which replaces this file only if nobody has changed it: {} -->\n"
_SEAL = re.compile(_LINE.format("([0-9a-f]{64})").encode() + rb"\Z")


def sealed(text: str) -> bytes:
    """Returns the content of a card, with the digest of its text in the last line."""
    data = text.encode("utf-8", "backslashreplace")
    return data + _LINE.format(hashlib.sha256(data).hexdigest()).encode()


def is_own_card(path: Path) -> bool:
    """Returns whether a file is a card that flt wrote, and that nobody has changed."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST)
    except OSError:
        return False
    found = _SEAL.search(data)
    return found is not None and hashlib.sha256(data[: found.start()]).hexdigest().encode() == found[1]
