"""Descriptions of the inputs of exported models of any version."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from flt.core.errors import InputError
from flt.export.cards import read_json
from flt.export.inputs import INPUTS, ModelInputs, TaskInputs, read_inputs
from flt.export.metadata import BASE
from flt.export.places import MERGED_CARD
from flt.run.stored import read_settings, run_around


def inputs_of(folder: Path, classes: Collection[str]) -> ModelInputs:
    """Returns what an exported model knows of its inputs, of an earlier version from its run's configuration.

    Args:
        folder: Folder of the model.
        classes: Tasks whose classes have names.

    Raises:
        InputError: A file is damaged, or neither the export nor a run around it says what the model reads.
        ValueError: The export's file isn't JSON.
    """
    found = read_inputs(folder)
    if found is not None:
        return found
    run = run_around(folder)
    if run is None:
        allowed = "an export of this version of flt, or one inside of its run's folder"
        raise InputError.of("run", folder, allowed, f"{INPUTS} is missing, which says what the model reads")
    return _from_settings(folder, run, classes)


def _from_settings(folder: Path, run: Path, classes: Collection[str]) -> ModelInputs:
    """Returns what the configuration of a run says of the inputs of its models."""
    settings = read_settings(run, "run")
    data, model = settings.get("data") or {}, settings.get("model") or {}
    texts = tuple(str(data[key]) for key in ("text", "text_pair") if data.get(key))
    about = read_json(folder / (MERGED_CARD if (folder / MERGED_CARD).is_file() else BASE))
    architecture = str(about.get("architecture") or about.get("architectures"))
    kind, columns = "pair" if len(texts) > 1 else "text", texts
    if "ForImageClassification" in architecture:
        kind, columns = "image", (str(data["image"]),) * bool(data.get("image"))
    elif data.get("response"):
        kind = "causal"
    found = TaskInputs(
        kind, columns, str(data.get("label") or ""), data.get("label_name"), str(data.get("response") or ""),
        tuple(data.get("prompts") or ()), dict(data.get("merge") or {}),
    )  # fmt: skip
    tasks = dict.fromkeys(classes or ["all"], found)
    return ModelInputs(tasks, int(model.get("max_length", 128)), str(settings.get("precision", "32-true")))
