"""Hook of mkdocs: makes ``--quiet --strict`` fail on warnings, such as links that lead nowhere, and show them.

With ``--quiet``, mkdocs hides its warnings from the handler that ``--strict`` counts them with.
"""

from __future__ import annotations

import logging


def on_startup(command: str, dirty: bool) -> None:
    """Lets warnings pass."""
    logger = logging.getLogger("mkdocs")
    logger.setLevel(min(logger.level, logging.WARNING))
