"""Metadata of an export, from which ``flt.load`` rebuilds the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import safetensors.torch
from torch import Tensor

from flt.data.clients import JobData
from flt.models.causal import CausalModule
from flt.models.label_name_head import LabelNameClassifier
from flt.models.layer_names import output_layer
from flt.models.module import MODEL_PREFIX, ClientModule
from flt.models.provenance import origin_of

BASE, CARD, WEIGHTS = "flt_base.json", "flt_adapter.json", "flt_adapter.safetensors"
"""Metadata file of every adapter; metadata and weights of an adapter that peft doesn't support."""
LABEL_NAMES = "label_names"
"""Name of the two files of the label-name head, .json and .safetensors."""


@dataclasses.dataclass(frozen=True)
class Card:
    """Data needed to attach an adapter again.

    Attributes:
        source: Name by which ``from_pretrained`` loads the base; empty for a folder and for a user's own module.
        adapter: Settings of the adapter; LoRA's are in peft's own file.
        adapt_layers: Blocks that are adapted, as in the configuration.
        classes: Number of classes; the largest one if jobs have different heads; None for a user's own module.
        label_counts: Numbers of training examples of each class, for the model of a single client; empty if the adapter
            doesn't use them.
        folder: Last part of the path of the base's folder, for a base that isn't on the hub. The full path stays
            private.
    """

    source: str = ""
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapt_layers: str = "all"
    classes: int | None = None
    label_counts: tuple[int, ...] = ()
    folder: str = ""

    def of_client(self, data: JobData | None) -> Card:
        """Returns the card of a client's own model, with the client's label counts only if the adapter uses them."""
        if data is None or self.adapter.get("label_source") != "client" or not self.adapter.get("use_label", True):
            return self
        return dataclasses.replace(self, label_counts=data.label_counts)


def write_base(module: pl.LightningModule, tensors: Mapping[str, Tensor], target: Path, card: Card) -> None:
    """Writes the base's class, origin and changed config entries, for a transformers model in flt's own module.

    A user's own module needs no such file.

    Args:
        module: Resident module.
        tensors: Tensors of a group, including a head.
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
        tensors: Name in the module -> value.
        shell: Prefix of flt's own module, which is removed from the names.
        target: Folder to write to.
        card: Data needed to attach the adapter.
    """
    named = {name.removeprefix(shell): value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(named, target / WEIGHTS)
    (target / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=1))


def write_label_names(head: LabelNameClassifier, target: Path) -> None:
    """Writes the label-name head: the texts, their embeddings by the initial base, and the scale."""
    (target / f"{LABEL_NAMES}.json").write_text(json.dumps({"texts": head.texts, "scale": head.scale}, indent=1))
    safetensors.torch.save_file({"names": head.names.cpu().contiguous()}, target / f"{LABEL_NAMES}.safetensors")
