"""Settings of the model, and the checks of their values."""

from __future__ import annotations

import dataclasses

from flt.core.errors import InputError
from flt.models.bitsandbytes import quantisation
from flt.models.location import LOADABLE

NAMES = ("embedded", "embedded_cifar", "hub")
KINDS = ("text", "pair", "image", "causal")
CLASSIFIERS = ("linear", "label_names")
ATTENTION = ("auto", "eager", "sdpa")


@dataclasses.dataclass
class ModelConfig:
    """Settings of the model. `model=<name>` on the command line reads these settings from conf/model/<name>.yaml.

    Attributes:
        name: ``embedded`` and ``embedded_cifar`` are small models that flt pre-trains itself. ``hub`` is the model at
            ``path``.
        path: A hub id such as org/name, or a local folder written by save_pretrained.
        package: A folder inside a Python package, such as name/folder. If this package is installed, the model is
            loaded from the folder instead of from ``path``. If None, the model is loaded from ``path``.
        max_length: Largest number of tokens of a text. Longer texts are cut.
        adapt_layers: With ``all``, all blocks are adapted; with ``top<k>``, only the k uppermost blocks.
        head: ``linear`` is the model's own classifier. It gets new random weights, which are trained. ``label_names``
            is a head that isn't trained. It compares a text with frozen embeddings of the classes' names
            (flt.models.label_name_head). A causal model keeps its own head, which stays frozen.
        label_scale: Factor on the scores of the label_names head before the softmax (inverse temperature).
        attention: Implementation of attention in transformers: ``eager``, ``sdpa`` or ``auto``. ``auto`` is the default
            of transformers, with one exception: in bf16 on a CPU it is ``eager``, because the backward pass of
            PyTorch's fused kernel takes several times as long.
        gradient_checkpointing: If true, activations are recomputed in the backward pass instead of stored.
        dropout: Probability of every dropout of the backbone, in [0, 1). It replaces the values in the model's config.
        quantise: With ``8bit`` or ``4bit``, bitsandbytes stores the frozen linear layers in 8 or 4 bits, on a CUDA
            device. If None, they are stored in float32.
        random: If true, all weights are drawn at random from the seed, and no pre-trained weights are loaded. Such a
            run is the control experiment for a run with a frozen pre-trained backbone.
    """

    name: str = "embedded"
    path: str | None = None
    package: str | None = None
    max_length: int = 128
    adapt_layers: str = "all"
    head: str = "linear"
    label_scale: float = 20.0
    attention: str = "auto"
    gradient_checkpointing: bool = False
    dropout: float = 0.0
    quantise: str | None = None
    random: bool = False


def check_config(cfg: ModelConfig, kind: str) -> None:
    """Refuses settings that are out of range, or that don't fit the kind of the inputs.

    Raises:
        InputError: A setting can't be used.
    """
    if kind not in KINDS:
        raise InputError.of("kind", kind, KINDS)
    if cfg.name not in NAMES:
        raise InputError.of("model.name", cfg.name, NAMES)
    if cfg.name == "hub" and not cfg.path:
        raise InputError.of("model.path", cfg.path, LOADABLE, "model.name=hub needs one")
    if cfg.name != "hub" and kind != "image":
        raise InputError.of("model", cfg.name, "model=<hub id or folder> of a text model", "it reads images only")
    if not 0 <= cfg.dropout < 1:
        raise InputError.of("model.dropout", cfg.dropout, "a probability in [0, 1)")
    if cfg.quantise is not None:
        quantisation(cfg.quantise)  # called only for its checks, before anything is loaded
        if cfg.random:
            raise InputError.of("model.quantise", cfg.quantise, "null with model.random", "nothing is loaded then")
    if cfg.max_length < 1:
        raise InputError.of("model.max_length", cfg.max_length, "an integer >= 1")
    for key, allowed in (("head", CLASSIFIERS), ("attention", ATTENTION)):
        if getattr(cfg, key) not in allowed:
            raise InputError.of(f"model.{key}", getattr(cfg, key), allowed)
    if cfg.head == "label_names" and kind in ("image", "causal"):
        why = "an image model has no embedding of names" if kind == "image" else "a causal model predicts tokens"
        raise InputError.of("model.head", cfg.head, "linear", why)
    if not 0 < cfg.label_scale < float("inf"):
        raise InputError.of("model.label_scale", cfg.label_scale, "a number > 0")
