"""Loading of backbones from a folder or the Hugging Face hub, or of embedded backbones, which flt pre-trains itself.

All clients of a run start from the same backbone.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.models.bitsandbytes import quantisation
from flt.models.config import ModelConfig, check_config
from flt.models.embedded import embedded
from flt.models.embedded_cifar import embedded_cifar
from flt.models.heads import redraw_head
from flt.models.image_preparation import ImagePreparation, check_size, image_preparation, say_what_is_used
from flt.models.label_name_head import label_name_classifier
from flt.models.layer_names import head_name, inside
from flt.models.license import license_of
from flt.models.location import LOADABLE, OFFLINE, locate, one_line_errors
from flt.models.model_files import check_files, check_ids, check_report
from flt.models.preprocessing import load_tokenizer
from flt.models.provenance import Origin, set_origin

log = logging.getLogger(__name__)

EMBEDDED = {"embedded": embedded, "embedded_cifar": embedded_cifar}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A loaded model with its head, in eval mode. Weights are float32 unless quantised. No weight is frozen yet."""

    model: nn.Module
    """The model. Its output has `logits` (batch, classes) or, for a causal model, (batch, tokens, vocabulary)."""
    tokenizer: Any | None
    """Tokenizer of the model; None for images."""
    source: str
    """Origin of the weights: embedded, embedded_cifar, a hub id, or the local folder that they were loaded from."""
    image_size: int | None
    """Height and width of an input image in pixels; None if the model's config has no image size."""
    channels: int | None
    """Number of channels of an input image; None if the model's config has no number of channels."""
    pad_token_id: int
    """Id of the padding token; 0 for images."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, used to normalise pixels. If None, pixels aren't normalised."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, used to normalise pixels. If None, pixels aren't normalised."""
    prepare: ImagePreparation | None = None
    """Function of the model's image processor that resizes and crops images. None if the model has none."""

    license: str = ""
    """Licence of the model, as its files name it. Empty if they don't."""

    @property
    def preprocessor(self) -> Any:
        """Tokenizer or image processor of transformers. None if the model has none."""
        return self.prepare.processor if self.prepare is not None else self.tokenizer


def load(cfg: ModelConfig, kind: str, classes: int, seed: int, texts: Sequence[str] = ()) -> Backbone:
    """Loads a model and gives it a new head. The head depends only on the seed, not on the global random generators.

    Args:
        cfg: Settings of the model.
        kind: Kind of the inputs: text, pair (two texts), image, or causal (text that the model continues). A causal
            model gets no new head.
        classes: Number of outputs of the new head.
        seed: Seed of all weights that are drawn at random. With `cfg.random`, these are all weights of the model.
        texts: One text for each class. Only the label_names head uses them.

    Returns:
        The model, with the tokenizer and the other properties that are needed to encode the data.

    Raises:
        InputError: The model can't be loaded or reads another kind of input, or a field of cfg is out of range.
    """
    check_config(cfg, kind)
    source, local = locate(str(cfg.path), cfg.package) if cfg.name == "hub" else (str(EMBEDDED[cfg.name]()), True)
    with one_line_errors(source, OFFLINE if local and not Path(source).is_dir() else LOADABLE):
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        check_files(config, source, local)
    _check_kind(config, kind, source)
    use_cache = getattr(config, "use_cache", None)
    if kind == "causal":
        config.use_cache = False  # the cache of keys and values only speeds up the generation of text
    else:
        config.num_labels = classes
    _set_dropout(config, cfg.dropout)
    with one_line_errors(source), isolate_rng():
        torch.manual_seed(seed)
        model, missing = _build(cfg, kind, config, source, local)
    if kind == "causal":
        model.loss_type = "ForCausalLM"  # transformers would use this loss anyway, but with a warning
    if cfg.gradient_checkpointing:
        _enable_gradient_checkpointing(model, source)
    tokenizer = None if kind == "image" else load_tokenizer(source, local)
    if tokenizer is not None:
        if kind == "causal" and tokenizer.eos_token_id is None:
            raise InputError.of("model.path", source, "a tokenizer with an eos token", "nothing would end a response")
        check_ids(model, source, {"input_ids": torch.tensor([tokenizer.pad_token_id])})
        model.config.pad_token_id = tokenizer.pad_token_id
        _check_length(model, cfg.max_length)
    model.eval()
    with one_line_errors(source):
        with_head = model if kind == "causal" else _with_head(cfg, model, tokenizer, seed, texts)
    drawn = missing | {name for name, _ in model.named_parameters() if inside(name, head_name(with_head))}
    weights_seed, head_outputs = (seed if cfg.random else None), (None if kind == "causal" else classes)
    set_origin(model, Origin(tuple(sorted(drawn)), weights_seed, head_outputs, cfg.package, use_cache))
    vision = getattr(config, "vision_config", config)
    size, channels = (getattr(vision, key, None) for key in ("image_size", "num_channels"))
    prepare = _preparation(cfg, model, config, source, local) if kind == "image" else None
    mean, std = (None, None) if prepare is None else (prepare.mean, prepare.std)
    pad = 0 if tokenizer is None else tokenizer.pad_token_id
    named = license_of(source, config, local)
    return Backbone(with_head, tokenizer, _portable_source(cfg, source), size, channels, pad, mean, std, prepare, named)


def _preparation(cfg: ModelConfig, model: nn.Module, config: Any, source: str, local: bool) -> ImagePreparation | None:
    """Returns the model's image processor. An embedded backbone has none: its inputs are pixels in [0, 1]."""
    if cfg.name in EMBEDDED:
        return None
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    prepare = image_preparation(source, config, local)
    if prepare is None:
        say_what_is_used(source, size)
    else:
        check_size(model, prepare, size, source)
    return prepare


def _portable_source(cfg: ModelConfig, source: str) -> str:
    """Returns the origin of the weights, without paths that differ between machines (in the cache or in packages)."""
    if cfg.name in EMBEDDED:
        return cfg.name
    return str(cfg.path) if cfg.package else source


def _check_kind(config: Any, kind: str, source: str) -> None:
    supported = {
        "image": ("a model that classifies images", transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        "causal": ("a causal language model (a decoder)", transformers.MODEL_FOR_CAUSAL_LM_MAPPING),
    }
    expected, models = supported.get(
        kind, ("a model that classifies text", transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING)
    )
    # transformers lists encoders such as BERT as causal models too, because they can be configured as decoders
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in models or (kind == "causal" and is_encoder):
        raise InputError.of(
            "model.path", source, expected, f"the data is {kind}, the model of type {config.model_type}"
        )


def _set_dropout(config: Any, probability: float) -> None:
    """Sets all dropout probabilities of a config and its nested configs. Sets layer-skipping probabilities to 0."""
    for key, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            _set_dropout(value, probability)
        elif isinstance(value, int | float | None) and not isinstance(value, bool):
            if "dropout" in key or "pdrop" in key:
                setattr(config, key, probability)
            elif "drop_path" in key or "layerdrop" in key:
                setattr(config, key, 0.0)


def _build(
    cfg: ModelConfig, kind: str, config: Any, source: str, local: bool
) -> tuple[transformers.PreTrainedModel, set[str]]:
    """Returns the model, and the names of the tensors outside the head that have no pre-trained weights.

    With ``cfg.random``, nothing is loaded, and the set of names is empty.
    """
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind == "image":
        auto = transformers.AutoModelForImageClassification
    if kind == "causal":
        auto = transformers.AutoModelForCausalLM
    if cfg.head == "label_names":
        auto = transformers.AutoModel
    attention = None if cfg.attention == "auto" else cfg.attention
    quantised: dict[str, Any] = {}
    if cfg.quantise is not None:
        quantised = {"quantization_config": quantisation(cfg.quantise), "device_map": {"": torch.cuda.current_device()}}
    if cfg.random:
        drawn = auto.from_config(config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False)
        return drawn, set()
    model, report = auto.from_pretrained(
        source, config=config, dtype=torch.float32, local_files_only=local, trust_remote_code=False,
        ignore_mismatched_sizes=True, output_loading_info=True, attn_implementation=attention, use_safetensors=True,
        **quantised,
    )  # fmt: skip
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    head = head_name(model) if cfg.head == "linear" else "pooler"  # the label_names head doesn't use the pooler
    check_report(model, head, report, source)
    if missing := {key for key in missing if not inside(key, head)}:
        log.warning("%s has no weights for %s: drawn from the seed", last_name(source), ", ".join(sorted(missing)[:4]))
    if quantised and any(
        not value.is_floating_point() for name, value in model.state_dict().items() if name in missing
    ):
        why = f"{source} has no weights for {min(missing)}, and what is drawn can't be rounded"
        raise InputError.of("model.quantise", cfg.quantise, "null", why)
    return model, missing


def _enable_gradient_checkpointing(model: transformers.PreTrainedModel, source: str) -> None:
    if not model.supports_gradient_checkpointing:
        raise InputError.of("model.gradient_checkpointing", True, "false", f"{source} doesn't support it")
    # Reentrant gradient checkpointing computes no gradients in a block whose input requires no gradient, such as a
    # block above frozen embeddings. Version 6 of transformers has only the new name of the method,
    # activation_checkpointing_enable.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def _with_head(
    cfg: ModelConfig, model: transformers.PreTrainedModel, tokenizer: Any, seed: int, texts: Sequence[str]
) -> nn.Module:
    if cfg.head == "label_names":
        return label_name_classifier(model, tokenizer, texts, cfg.label_scale, cfg.max_length).eval()
    redraw_head(model, seed)
    return model


def _check_length(model: transformers.PreTrainedModel, length: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None) or length
    for name, module in model.named_modules():
        # RoBERTa and MPNet number positions from padding_idx + 1, so fewer positions are usable than the config says
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    if length > limit:
        raise InputError.of("model.max_length", length, f"1 to {limit}, the positions that the model has")
