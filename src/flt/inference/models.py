"""Exported models as they are found in a folder, and a loaded model with what encodes its inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flt.core.errors import InputError
from flt.core.typed import first_line
from flt.data.examples import Collate
from flt.export.cards import CLASS_NAMES, read_json
from flt.export.inputs import INPUTS, ModelInputs
from flt.export.load import load
from flt.export.metadata import BASE
from flt.export.places import CLASSES, MERGED_CARD, exported_models
from flt.models.backbones import Backbone
from flt.models.causal import CausalModule
from flt.models.class_names import output_names
from flt.models.image_preparation import image_preparation
from flt.models.label_name_head import LabelNameClassifier
from flt.models.module import ClientModule, Optimizer
from flt.models.preprocessing import load_tokenizer
from flt.run.model_inputs import inputs_of
from flt.run.stored import export_of

TOKENIZERS = ("tokenizer_config.json", "tokenizer.json")
IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
PLACES = ("group", "client", "head")
"""Beginnings of names that a number stands for, such as ``1`` for ``group_1``."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported model that hasn't been loaded.

    Attributes:
        name: Path of its folder inside the export, such as ``group_1``. Empty if the run has one model.
        folder: Its folder.
        inputs: What it knows of its inputs.
        classes: Task -> names of its classes. Empty for a causal model, and if the classes have no names.
        base: Folder or hub id of its base. None: the one that the export names.
    """

    name: str
    folder: Path
    inputs: ModelInputs
    classes: dict[str, list[str]]
    base: str | None = None

    @property
    def called(self) -> str:
        """Name in tables and lines, ``model`` if there is one model."""
        return self.name or "model"

    @property
    def is_clients_own(self) -> bool:
        """True for the model of one client, false for that of a group."""
        return self.name.startswith("client")

    @property
    def kind(self) -> str:
        """Kind of the model's inputs. A model of pairs may also read single texts."""
        kinds = {columns.kind for columns in self.inputs.tasks.values()}
        return "pair" if "pair" in kinds else min(kinds)

    def names(self, task: str | None = None) -> list[str]:
        """Returns the names of the outputs: those of a task, or of all tasks that share the head."""
        return self.classes.get(task, []) if task is not None else output_names(self.classes.values())


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A loaded model.

    Attributes:
        exported: Where it is from, and what it knows of its inputs.
        backbone: The model with its tokenizer or image processor, in eval mode and on its device.
        outputs: Number of outputs; for a causal model, the size of the vocabulary.
    """

    exported: Exported
    backbone: Backbone
    outputs: int

    @functools.cached_property
    def module(self) -> ClientModule:
        """flt's own module around the model, with which Lightning evaluates it."""
        if self.exported.kind == "causal":
            return CausalModule(self.backbone.model, Optimizer()).eval()
        return ClientModule(self.backbone.model, self.outputs, Optimizer()).eval()

    @property
    def collate(self) -> Collate:
        """Function that builds a batch from a list of examples."""
        return Collate(self.backbone.pad_token_id, self.backbone.mean, self.backbone.std)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.backbone.model.parameters()).device


def find_models(run: str | Path, root: str | Path = "lightning_logs", base: str | Path | None = None) -> list[Exported]:
    """Returns the exported models of a run or an export, in the order of their names.

    Args:
        run: A run's folder, an export's folder, or ``last``.
        root: Folder of all runs, in which ``last`` is looked for.
        base: Folder or hub id of the base. None: the one that the export names.

    Raises:
        InputError: There is no such run or export, a file of it is damaged, or the models are of a user's own module.
    """
    models = exported_models(export_of(run, root))
    return [_exported(name, place, None if base is None else str(base)) for name, place in models.items()]


def choose(models: Sequence[Exported], group: str | None) -> list[Exported]:
    """Returns the models that a group's name stands for; all models if the name is None.

    Args:
        models: All models of an export.
        group: Name of a model, such as ``group_1/head_2`` or ``client_3``, or its beginning; or a number, such as ``1``
            for ``group_1``.

    Raises:
        InputError: No model is called so.
    """
    if group is None:
        return list(models)
    wanted = [str(group).strip("/"), *(f"{place}_{group}" for place in PLACES)]
    for name in wanted:
        found = [one for one in models if one.name == name or one.name.startswith(f"{name}/")]
        if found:
            return found
    allowed = [one.name for one in models] if len(models) > 1 else "nothing, as there is one model"
    raise InputError.of("group", group, allowed, "no exported model is called so")


def load_model(exported: Exported, device: str | torch.device = "cpu") -> Loaded:
    """Loads an exported model, and the tokenizer or image processor beside it.

    Raises:
        InputError: The export is damaged, its base isn't found, or there is no such device.
    """
    place = device_of(device) if isinstance(device, str) else device
    model: Any = load(exported.folder, exported.base)
    inner: Any = model.encoder if isinstance(model, LabelNameClassifier) else model
    config, kind = inner.config, exported.kind
    vision = getattr(config, "vision_config", config)
    size, channels = (getattr(vision, key, None) if kind == "image" else None for key in ("image_size", "num_channels"))
    base = str(getattr(config, "name_or_path", "") or "")
    tokenizer = prepare = None
    if kind == "image":
        source = _with_files(exported.folder, IMAGE_PROCESSORS, base)
        prepare = image_preparation(source, config, local=True) if source else None
    else:
        tokenizer = load_tokenizer(_with_files(exported.folder, TOKENIZERS, base), local=True)
    mean, std = (prepare.mean, prepare.std) if prepare is not None else (None, None)
    pad = 0 if tokenizer is None else tokenizer.pad_token_id
    outputs = len(model.names) if isinstance(model, LabelNameClassifier) else _outputs(model, config, kind)
    if kind != "causal" and (named := max(map(len, exported.classes.values()), default=0)) > outputs:
        allowed = f"names of at most {outputs} classes, as many as the model has outputs"
        raise InputError.of(CLASSES, f"{named} names", allowed)
    model.to(place).eval()
    return Loaded(exported, Backbone(model, tokenizer, base, size, channels, pad, mean, std, prepare), outputs)


def device_of(name: str) -> torch.device:
    """Returns a device by its name. ``auto`` is a GPU if there is one, else the CPU.

    Raises:
        InputError: There is no such device.
    """
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    allowed = ["auto", "cpu", *(["cuda", *gpus] if gpus else [])]
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception:  # torch raises errors of many kinds for a device that isn't there
        why = "torch finds no GPU" if name.startswith("cuda") and not gpus else ""
        raise InputError.of("device", name, allowed, why) from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError.of("device", name, allowed)
    return device


def _exported(name: str, folder: Path, base: str | None) -> Exported:
    try:
        classes = read_json(folder / CLASSES) if (folder / CLASSES).is_file() else {}
        (allows, allowed) = CLASS_NAMES
        if not allows(classes):
            raise InputError.of(CLASSES, "an object", allowed)
        if _is_users_own(folder):
            why = "the run trained a module of your own, which only Python has"
            raise InputError.of("run", folder, "a run of flt train; flt.evaluate and flt.predict take module=", why)
        inputs = inputs_of(folder, classes)
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError.of("run", folder, "an export of flt", first_line(error)) from error
    return Exported(name, folder, inputs, classes, base)


def _is_users_own(folder: Path) -> bool:
    """Returns whether the weights are those of a user's own LightningModule, which no file can describe."""
    if (folder / MERGED_CARD).is_file():
        return "module" in read_json(folder / MERGED_CARD)
    return not (folder / BASE).is_file() and not (folder / INPUTS).is_file()


def _with_files(folder: Path, names: Sequence[str], base: str) -> str:
    """Returns the export's folder if it holds one of the files, else the folder of the base."""
    return str(folder) if any((folder / name).is_file() for name in names) else base


def _outputs(model: nn.Module, config: Any, kind: str) -> int:
    return int(config.get_text_config().vocab_size if kind == "causal" else config.num_labels)
