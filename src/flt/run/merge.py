"""Merging of exported adapters into whole models, which transformers loads without flt."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.progress import track

from flt.core.errors import InputError
from flt.core.files import expand_user, is_regular, last_name, reported
from flt.core.quiet import quiet_transformers
from flt.export.base import weight_files
from flt.export.cards import NAME, OWN, OWN_NEEDED, check, read, read_json
from flt.export.folder import is_preprocessor
from flt.export.inputs import INPUTS, inputs_text
from flt.export.load import load
from flt.export.metadata import BASE
from flt.export.model_card import facts_in, write_cards
from flt.export.places import (
    CARD,
    CLASSES,
    EXPORTS,
    MERGED_CARD,
    PEFT_CARD,
    exported_models,
    label_names_folder,
    levels,
)  # fmt: skip
from flt.export.weights import Header
from flt.run.model_inputs import inputs_of
from flt.run.stored import export_of, run_around

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Type of numbers in a safetensors file -> that of torch."""
KINDS = {
    "SequenceClassification": "text",
    "ImageClassification": "image",
    "CausalLM": "causal",
    "LMHeadModel": "causal",
}
"""End of the name of a model's class -> kind of its inputs, for exports without a card."""
BY_FLT = "flt.load loads it, and flt predict uses it"
"""Advice for a model that can't be merged."""


def merge(
    run: str | Path,
    out: str | Path,
    *,
    group: int | None = None,
    dtype: str | None = None,
    base: str | None = None,
    root: str | Path = "lightning_logs",
    progress: bool = True,
) -> dict[str, Path]:
    """Merges the adapters of a run into their base, and writes whole models that transformers loads without flt.

    Each model gets the names of the classes, the tokenizer or image processor, and a model card. :func:`flt.predict`,
    :func:`flt.evaluate` and :func:`flt.generate` take such a folder like a run. If the run has already written whole
    models, they are copied, and only their type of numbers changes.

    Args:
        run: Folder of a run or of an export, or ``last`` for the run that was written to last.
        out: Folder to write to. It must be empty, or not exist. If there are several models, each has a subfolder.
        group: Number of the group whose model is merged. None: the models of all groups or clients.
        dtype: Type of the numbers: float32, bfloat16 or float16. None: that of the export, which is float32.
        base: Folder or hub id of the base. None: the one that the export names.
        root: Folder of all runs, in which ``last`` is looked for.
        progress: Whether to show the progress.

    Returns:
        Name of a model, such as ``group_1``, -> its folder. The name is empty if there is only one model.

    Raises:
        InputError: There is no such run, group or type of numbers, ``out`` isn't empty, or a model can't be merged:
            C2A and bottleneck adapters aren't a part of any weight, and a user's own module isn't a transformers model.

    Example:
        >>> merge("lightning_logs/fedit/version_0", out="merged", dtype="bfloat16")  # doctest: +SKIP
        {'': PosixPath('merged')}
    """
    exported, target = export_of(run, root), expand_user(out).absolute()
    models = _chosen(exported, group)
    if dtype is not None and dtype not in DTYPES:
        raise InputError.of("dtype", dtype, DTYPES)
    _check_out(target, exported)
    for folder in models.values():
        _check_mergeable(folder)
    titles = {
        name: folder.relative_to(exported).as_posix().replace("/", ", ").replace("_", " ") if folder != exported else ""
        for name, folder in models.items()
    }
    with _written(target) as temporary:
        console = Console(stderr=True)
        console.quiet = not progress or not console.is_terminal
        for name, folder in track(models.items(), "merging", console=console, transient=True):
            kind = _merge(folder, temporary / name, base, dtype)
        facts = facts_in(next(iter(models.values())))
        write_cards(temporary, dataclasses.replace(facts, kind=facts.kind or kind), "merged", titles)
    return {name: expand_user(out) / name for name in models}


def _chosen(exported: Path, group: int | None) -> dict[str, Path]:
    """Returns the name of each model in the new folder -> its folder in the export."""
    models = exported_models(exported)
    if group is None:
        return models
    groups = sorted({name.partition("/")[0] for name in models if name.startswith("group_")})
    if f"group_{group}" not in groups:
        allowed = [name.removeprefix("group_") for name in groups] or "no group, as the run has only one model"
        raise InputError.of("group", group, allowed)
    place = f"group_{group}"
    return {n.removeprefix(place).removeprefix("/"): path for n, path in models.items() if n.partition("/")[0] == place}


def _check_out(target: Path, exported: Path) -> None:
    """Checks that a folder can be created, or is empty, and isn't one in which flt would look for a run's export."""
    top = levels(exported)[-1].resolve()
    place = target.resolve()
    if place == top or top in place.parents or (place.name in EXPORTS and place.parent == top.parent):
        raise InputError.of("out", target.name, "a folder outside of the run's own adapter/ and model/")
    if target.is_symlink() or (os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir()))):
        raise InputError.of("out", target.name, "a new folder, or an empty one", "there is something already")


def _check_mergeable(folder: Path) -> None:
    """Checks that a model consists of a transformers model and of changes of its weights.

    Raises:
        InputError: It doesn't. The message says how to load the model instead.
    """
    why, instead = "", BY_FLT
    if (folder / CARD).is_file():
        name = read(folder / CARD, OWN, *OWN_NEEDED)["adapter"].get("name")
        if name != "none":
            why = f"adapters of the kind {name} are layers of their own, and aren't a part of any weight"
    elif not (folder / PEFT_CARD).is_file() and "module" in (card := read_json(folder / MERGED_CARD)):
        check(MERGED_CARD, card, {"module": NAME})
        why, instead = f"the run trained your own {card['module']}", f"flt.load(folder, model={card['module']}())"
    if not why and label_names_folder(folder) is not None:
        why = "its head compares texts with the names of the classes, which no model of transformers does"
    if not why and not (folder / MERGED_CARD).is_file() and not (folder / BASE).is_file():
        why = "the run trained your own module, so the folder doesn't say what its base is"
        instead = "flt.load(folder, model=YourModule()).merge_and_unload()"
    if why:
        raise InputError.of("run", folder.name, f"a run with LoRA, or one that trains the weights; {instead}", why)


def _merge(folder: Path, target: Path, base: str | None, dtype: str | None) -> str:
    """Writes one merged model. Returns the kind of its inputs, as far as its class says it."""
    whole = not (folder / PEFT_CARD).is_file() and not (folder / CARD).is_file()
    stored = set(Header.of(*weight_files(str(folder), True)).kinds.values()) & set(STORED) if whole else set()
    wanted = DTYPES[dtype] if dtype else STORED[stored.pop()] if len(stored) == 1 else torch.float32
    with quiet_transformers():
        model: Any = load(folder, None if whole else base)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload(safe_merge=True)
        model = model.to(wanted)
        if not all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point()):
            others = [name for name in DTYPES if name != dtype]
            raise InputError.of("dtype", dtype or "null", others, "a weight is too large for it")
        target.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(target))
    for path in folder.iterdir():
        if is_regular(path) and (path.name == CLASSES or is_preprocessor(path.name)):
            shutil.copyfile(path, target / path.name)
    if (folder / INPUTS).is_file() or run_around(folder) is not None:  # else nothing says what the model reads
        classes = read_json(folder / CLASSES) if (folder / CLASSES).is_file() else {}
        (target / INPUTS).write_text(inputs_text(inputs_of(folder, classes)))
    return next((kind for end, kind in KINDS.items() if type(model).__name__.endswith(end)), "")


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
    """Creates a folder beside ``target`` that gets this name if no error is raised, and is removed otherwise."""
    with reported("out", last_name(str(target)), "a folder that can be written"):
        new = [parent for parent in target.parents if not parent.exists()]
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.mkdir(parents=True)
            yield temporary
            temporary.rename(target)  # atomic: the folder is complete or absent
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            for parent in new:
                with contextlib.suppress(OSError):  # raised if another program has put something there
                    parent.rmdir()
            raise
