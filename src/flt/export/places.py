"""The folders of an export. Nothing here imports torch."""

from __future__ import annotations

import re
from pathlib import Path

EXPORTS = ("adapter", "model")
"""Names of the folders in a run's folder to which models are exported."""
CLASSES = "classes.json"
"""Name of the file that contains the names of the classes of each task, in the order of the model's outputs."""
LABEL_NAMES = "label_names"
"""Name of the two files of the label-name head, without the endings .json and .safetensors."""
CARD, PEFT_CARD, MERGED_CARD = "flt_adapter.json", "adapter_config.json", "config.json"
"""Names of files. Each exported model has one of them: an adapter of flt, one of peft, or a whole model."""
PLACES = ("group", "head", "client", "job")
"""Beginnings of the names of subfolders in an export, such as ``group`` in ``group_1``."""
SUBFOLDER = re.compile(r"group_\d+(/head_[^/]+)?|head_[^/]+|client_\d+(/job_\d+|/head_[^/]+)?")
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


def exported_models(folder: Path) -> dict[str, Path]:
    """Returns the exported models in a folder: name -> folder of the model.

    The name is the path inside the export, such as ``group_1``, and empty if the folder itself is a model. The result
    is empty if nothing was exported there.
    """
    if _is_model(folder):
        return {"": folder}
    inner = (path.relative_to(folder).as_posix() for depth in ("*", "*/*") for path in folder.glob(depth))
    named = sorted((name for name in inner if SUBFOLDER.fullmatch(name)), key=natural)
    return {name: folder / name for name in named if _is_model(folder / name)}


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CARD, PEFT_CARD, MERGED_CARD))


def natural(text: str) -> list[str | int]:
    """Returns a sort key with which version_10 comes after version_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
