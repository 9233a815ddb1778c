"""What an export says of itself beside its tensors, so that ``flt.load`` can put everything together again."""

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
from flt.models.module import ClientModule
from flt.models.provenance import origin_of

BASE, CARD, WEIGHTS = "flt_base.json", "flt_adapter.json", "flt_adapter.safetensors"
"""Files of every adapter, and of one that peft doesn't know."""
LABEL_NAMES = "label_names"
"""Files of the label-name head: .json and .safetensors."""


@dataclasses.dataclass(frozen=True)
class Card:
    """What has to be known to attach an adapter again.

    Attributes:
        source: What ``from_pretrained`` loads the base by; empty for a folder and for a user's own module.
        adapter: The adapter's settings; peft has a file of its own.
        adapt_layers: Which blocks are adapted.
        classes: The most that a head has, where jobs have different ones; None: of a user's own module.
        label_counts: Of the client whose own model it is, training examples of each class; empty where its adapter
            doesn't compute with them.
        folder: The last name of the base's folder, where it isn't on the hub: where it lies is nobody else's business.
    """

    source: str = ""
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapt_layers: str = "all"
    classes: int | None = None
    label_counts: tuple[int, ...] = ()
    folder: str = ""

    def of_client(self, data: JobData | None) -> Card:
        """The card of a client's own model: its labels are told where the adapter computes with them, only there."""
        if data is None or self.adapter.get("label_source") != "client" or not self.adapter.get("use_label", True):
            return self
        return dataclasses.replace(self, label_counts=data.label_counts)


def write_base(module: pl.LightningModule, tensors: Mapping[str, Tensor], target: Path, card: Card) -> None:
    """The base's class, origin and what was set in its config, where it is a model of transformers in flt's own module.

    Args:
        module: The resident module.
        tensors: A group's tensors, a head among them.
        target: The folder.
        card: What names the base.
    """
    if not isinstance(module, ClientModule):
        return
    classifier = not isinstance(module.model, LabelNameClassifier)
    model: Any = module.model if classifier else module.model.encoder
    config = {key: getattr(model.config, key, None) for key in ("num_labels", "pad_token_id")}
    if classifier and not isinstance(module, CausalModule):
        head = f"model.{output_layer(model)}.weight"
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
    """An adapter that peft doesn't know.

    Args:
        tensors: Name in the module -> value.
        shell: Prefix of flt's own module, which is left out of the names.
        target: The folder.
        card: How the adapter is attached.
    """
    named = {name.removeprefix(shell): value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(named, target / WEIGHTS)
    (target / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=1))


def write_label_names(head: LabelNameClassifier, target: Path) -> None:
    """What the label-name head is made of: the texts, their embeddings by the base as it was given, and the scale."""
    (target / f"{LABEL_NAMES}.json").write_text(json.dumps({"texts": head.texts, "scale": head.scale}, indent=1))
    safetensors.torch.save_file({"names": head.names.cpu().contiguous()}, target / f"{LABEL_NAMES}.safetensors")
