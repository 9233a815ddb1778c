"""Metadata files of an export, from which ``flt.load`` rebuilds the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
from torch import Tensor

from flt.data.clients import JobData
from flt.export.inputs import INPUTS, ModelInputs, inputs_text
from flt.export.places import CARD, CLASSES, LABEL_NAMES
from flt.models.adapters.c2a_settings import uses_client_counts
from flt.models.causal import CausalModule
from flt.models.class_names import LONGEST
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import output_layer
from flt.models.module import MODEL_PREFIX, ClientModule
from flt.models.provenance import origin_of

BASE, WEIGHTS = "flt_base.json", "flt_adapter.safetensors"
"""Names of files in the folder of an exported adapter.

``BASE`` contains the metadata of the base. This file is written unless the run trained a user's own module. ``CARD``
and ``WEIGHTS`` contain the metadata and the weights of an adapter that peft doesn't support.
"""


@dataclasses.dataclass(frozen=True)
class Card:
    """Metadata needed to load the base and to attach the adapter again.

    Attributes:
        source: Name by which ``from_pretrained`` loads the base. Empty if the base is in a folder or is a user's
            own module.
        adapter: Settings of the adapter. For LoRA, peft's own file contains these settings instead.
        adapt_layers: Blocks that are adapted, as in the configuration (``model.adapt_layers``).
        classes: Number of classes. If jobs have different heads, the largest number. None for a user's own module.
        label_counts: In the card of a client's own model, the number of the client's training examples of each class.
            Empty if the adapter doesn't use these numbers.
        folder: Name of the base's folder, if the base isn't on the hub. The folder's full path isn't exported.
        several_tasks: Whether jobs had several tasks with different heads, see :class:`ClientModule`.
    """

    source: str = ""
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapt_layers: str = "all"
    classes: int | None = None
    label_counts: tuple[int, ...] = ()
    folder: str = ""
    several_tasks: bool = False

    def of_client(self, data: JobData | None) -> Card:
        """Returns the card for a client's own model. It has the client's label counts if the adapter uses them.

        Args:
            data: Data of the job that trained the model. None for a group's model, whose card stays the same.
        """
        if data is None or not uses_client_counts(self.adapter):
            return self
        return dataclasses.replace(self, label_counts=data.label_counts)


def write_base(module: pl.LightningModule, tensors: Mapping[str, Tensor], target: Path, card: Card) -> None:
    """Writes the file that ``flt.load`` needs to rebuild the base.

    The file contains the class of the base, the origin of its weights, and the config entries num_labels and
    pad_token_id. The file is written only for a transformers model in flt's own module.

    Args:
        module: Module of the run.
        tensors: Tensors of the exported model, including its head.
        target: Folder to write to.
        card: Card that names the base.
    """
    if not isinstance(module, ClientModule):
        return
    classifier = not isinstance(module.model, LabelNameClassifier)
    model: Any = module.model if classifier else module.model.encoder
    config = {key: getattr(model.config, key, None) for key in ("num_labels", "pad_token_id")}
    if classifier and not isinstance(module, CausalModule):
        head = f"{MODEL_PREFIX}{output_layer(model)}.weight"
        config["num_labels"] = len(tensors[head]) if head in tensors else config["num_labels"]
    origin = origin_of(model)
    about: dict[str, Any] = {
        "architecture": type(model).__name__,
        "config": config,
        "drawn": origin.drawn,
        "package": origin.package,
    }
    if origin.seed is not None:
        about["random"] = {"seed": origin.seed, "classes": origin.classes, "source": card.source}
    if card.folder:
        about["folder"] = card.folder
    (target / BASE).write_text(json.dumps(about, indent=1))


def write_own(tensors: Mapping[str, Tensor], shell: str, target: Path, card: Card) -> None:
    """Writes an adapter that peft doesn't support.

    Args:
        tensors: Name in the run's module -> value.
        shell: Prefix that flt's own module adds to the names. The names in the file don't have this prefix.
        target: Folder to write to.
        card: Metadata to write.
    """
    named = {name.removeprefix(shell): value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(named, target / WEIGHTS)
    about = dataclasses.asdict(card)
    if not card.several_tasks:  # as in the cards of earlier versions
        del about["several_tasks"]
    (target / CARD).write_text(json.dumps(about, indent=1))


def write_beside(
    target: Path, names: Mapping[str, Sequence[str]], preprocessor: Any = None, inputs: ModelInputs | None = None
) -> None:
    """Writes what lies beside the weights of a model in any format.

    Args:
        target: Folder to write to.
        names: Task -> names of its classes. Empty: the outputs have no names.
        preprocessor: Tokenizer or image processor. None: there is none.
        inputs: What the model knows of its inputs. None: the model is a user's own module.
    """
    if preprocessor is not None:
        preprocessor.save_pretrained(str(target))
    if names:
        (target / CLASSES).write_bytes(classes_text(names))
    if inputs is not None:
        (target / INPUTS).write_text(inputs_text(inputs))


def classes_text(names: Mapping[str, Sequence[str]]) -> bytes:
    """Returns the content of the file with the names of the classes. A task without a name is called ``all``.

    Args:
        names: Task -> names of its classes.
    """
    named = {task or "all": [name[:LONGEST] for name in own] for task, own in names.items()}
    return json.dumps(named, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")


def write_label_names(head: LabelNameClassifier, target: Path) -> None:
    """Writes the label-name head: the texts, their embeddings (computed before training), and the scale."""
    (target / f"{LABEL_NAMES}.json").write_text(json.dumps({"texts": head.texts, "scale": head.scale}, indent=1))
    safetensors.torch.save_file({"names": head.names.cpu().contiguous()}, target / f"{LABEL_NAMES}.safetensors")
