"""Result of one check of ``flt doctor``. Nothing here imports another package, as any of them may be broken."""

from __future__ import annotations

import dataclasses

OK, NOTE, MISSING = "ok", "note", "missing"
"""States of a check: it is as it should be; flt can run, but the line is worth reading; flt can't run like this."""


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of a check.

    Attributes:
        part: What was checked: ``flt``, ``package``, ``device``, ``folder``, ``data``, ``hub`` or ``extra``.
        name: Name of the thing, such as ``torch``.
        state: ``ok``, ``note`` (flt can run) or ``missing`` (flt can't run).
        found: What there is, such as a version.
        advice: What to do. Empty if there is nothing to do.
    """

    part: str
    name: str
    state: str
    found: str
    advice: str = ""
