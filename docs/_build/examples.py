"""Extension of griffe, which reads the docstrings: sections ``Example:`` of a session are shown as Python.

Griffe takes only ``Examples:`` for a section of code. It would read the other as prose, and the ``>>>`` in it as quotations.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

TITLE = re.compile(r"^( *)Example:(?=\n+ +>>>)", re.MULTILINE)


class Examples(griffe.Extension):
    """Gives the sections of a session the title that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = TITLE.sub(r"\1Examples:", obj.docstring.value)
