"""The folders of an export."""

from __future__ import annotations

import re
from pathlib import Path

from flt.export.metadata import LABEL_NAMES

PLACES = ("group", "head", "client", "job")
"""Beginnings of the names of subfolders in an export, such as ``group`` in ``group_1``."""
SUBFOLDER = re.compile(r"group_\d+(/head_[^/]+)?|head_[^/]+|client_\d+(/job_\d+)?")
"""Pattern of the paths of subfolders in an export, see :mod:`flt.export.final_models`."""


def label_names_folder(folder: Path) -> Path | None:
    """Returns the path of the label-name head's files without their endings, or None if the run didn't use this head.

    The head is in the top folder of the export, because all groups and clients share it.
    """
    paths = (place / LABEL_NAMES for place in levels(folder))
    return next((path for path in paths if path.with_suffix(".json").is_file()), None)


def levels(folder: Path) -> list[Path]:
    """Returns a folder of an export and its parents up to the export's top folder, ``adapter`` or ``model``."""
    found = [folder.absolute()]
    while found[-1].name.partition("_")[0] in PLACES:
        found.append(found[-1].parent)
    return found
