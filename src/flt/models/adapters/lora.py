"""LoRA on a module's linear or convolutional layers, attached by peft. All weights of the head are trained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from flt.core.errors import InputError
from flt.models.blocks import top_blocks
from flt.models.layer_names import submodule, target_modules, thaw, whole_modules
from flt.models.module import backbone_of
from flt.models.peft_modules import check_peft, saved_copies, unfit
from flt.protocol.layout import Layout


@dataclasses.dataclass
class LoraSettings:
    """Settings of LoRA, W = W0 + (alpha / r) B A, where B starts at 0 (arXiv 2106.09685).

    Attributes:
        name: Always ``lora``.
        rank: r, the initial rank of every adapted layer.
        alpha: Numerator of the scale alpha / r. The scale is the same on every client and in every round.
        dropout: Probability of dropout on the adapter's input, in training.
        target_modules: Names of the layers to adapt, linear or convolutional: full names, or only their last parts. If
            None, the default for the model's type is used.
        head: Name of the module whose weights are all trained. The string ``"none"`` means no module. If None, the
            classifier (or, without a classifier, the last linear layer) and all layers before it that have no
            pre-trained weights are trained. Such a layer may be a pooler or DistilBERT's ``pre_classifier``.
    """

    name: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError.of("adapter.rank", self.rank, "an integer >= 1")
        if not 0 < self.alpha < float("inf"):
            raise InputError.of("adapter.alpha", self.alpha, "a number > 0")
        if not 0 <= self.dropout < 1:
            raise InputError.of("adapter.dropout", self.dropout, "a number in [0, 1)")


def attach(module: nn.Module, settings: LoraSettings, seed: int, layers: str = "all") -> Layout:
    """Freezes a module and adds LoRA to its linear layers. Returns the module's layout.

    If the module already has LoRA layers of peft, no layers are added and nothing is frozen. The weights of the head
    become trainable in both cases.

    Args:
        module: The module, changed in place.
        settings: Rank, scale, adapted layers and head.
        seed: Seed of A's initial values. The global random generators aren't changed.
        layers: With ``all``, all blocks are adapted; with ``top<k>``, only the k uppermost blocks.

    Raises:
        InputError: A target layer, the head or the blocks don't exist or can't be trained, or the module holds adapters
            of peft that flt doesn't support.
    """
    root, prefix = backbone_of(module)
    check_peft(module)
    if any(isinstance(sub, LoraLayer) for sub in module.modules()):
        if layers != "all":
            raise InputError.of("model.adapt_layers", layers, "all", "the module holds adapters of its own")
        head = whole_modules(root, settings.head) if settings.head not in (None, "none") else saved_copies(root)
    else:
        head = whole_modules(root, settings.head)
        _inject(root, settings, head, seed, layers)
    head = [f"{prefix}{name}" for name in head if name]
    for name in head:
        thaw(submodule(module, name))
    return Layout.of(module, head)


def _inject(module: nn.Module, settings: LoraSettings, head: Sequence[str], seed: int, layers: str) -> None:
    targets = settings.target_modules or target_modules(module)
    # A layer with a parametrization, such as a weight norm, has children.
    leaves = [n for n, sub in module.named_modules() if isinstance(sub, nn.Linear) or not list(sub.children())]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in leaves):
            raise InputError.of(
                "adapter.target_modules", target, f"ends of the names of layers, such as {', '.join(leaves[:8])}"
            )
    for name in head:
        submodule(module, name)
    adapted = [name for name in leaves if any(name == target or name.endswith(f".{target}") for target in targets)]
    if layers != "all":
        upper = tuple(f"{block}." for block in top_blocks(module, layers))
        adapted = [name for name in adapted if name.startswith(upper)]
        if not adapted:
            why = f"none of {', '.join(targets[:4])} lies there"
            raise InputError.of("model.adapt_layers", layers, "blocks that hold a layer to adapt", why)
    for name in adapted:
        if problem := unfit(module.get_submodule(name.rpartition(".")[0]), module.get_submodule(name)):
            why = f"{name} is {problem}"
            raise InputError.of("adapter.target_modules", targets, "names of linear and convolutional layers", why)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout,  # type: ignore[arg-type]  # alpha may be a fraction
        target_modules="|".join(map(re.escape, adapted)), exclude_modules=list(head) or None,
        fan_in_fan_out=all(isinstance(module.get_submodule(name), Conv1D) for name in adapted),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, module)
        except ValueError as error:
            raise InputError.of("adapter.target_modules", targets, "layers that peft adapts", str(error)) from error
