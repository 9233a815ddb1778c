"""Pre-trained models from a folder, from the hub, or embedded: what every client starts from."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from lightning.pytorch.utilities.seed import isolate_rng
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn

from flt.embedded import embedded
from flt.errors import InputError
from flt.quiet import quiet_transformers

log = logging.getLogger(__name__)

KINDS = ("text", "pair", "image")
HEADS = ("classifier", "score", "classification_head")
TARGETS = {"vit": ["q_proj", "v_proj"], "deit": ["q_proj", "v_proj"], "distilbert": ["q_lin", "v_lin"]}
TARGETS |= {"albert": ["query", "value"], "mpnet": ["q", "v"]}
LOADABLE = "a folder written by save_pretrained, or a hub id"
OFFLINE = f"{LOADABLE} whose files are in the local cache (with a network: hf download <id>)"


@dataclasses.dataclass
class ModelConfig:
    """What `model=` chooses; a file of conf/model fills it.

    Attributes:
        name: embedded, or hub for what path says.
        path: A hub id such as org/name, or a local folder written by save_pretrained.
        max_length: Longest text, in tokens.
        dropout: Probability of every dropout of the backbone, in [0, 1); it trains the same way each time at 0.
        random: Keep the architecture and draw its weights from the seed: the control of a frozen pre-trained backbone.
    """

    name: str = "embedded"
    path: str | None = None
    max_length: int = 128
    dropout: float = 0.0
    random: bool = False


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model with a new head, in eval mode, float32, nothing frozen yet."""

    model: nn.Module
    """From transformers; its output has `logits` (batch, classes)."""
    tokenizer: Any | None
    """None for images."""
    source: str
    """What from_pretrained takes to load the same weights again."""
    image_size: int | None
    """Height and width in pixels, where the model reads images and says it."""
    channels: int | None
    pad_token_id: int
    """0 for images."""
    mean: tuple[float, ...] | None = None
    """Of the pixels, by channel, as the model's image processor normalises them; None: it doesn't."""
    std: tuple[float, ...] | None = None


def load(cfg: ModelConfig, kind: str, classes: int, seed: int) -> Backbone:
    """Loads a model and gives it a new head that depends on the seed alone, not on the global generators.

    Args:
        cfg: Which model.
        kind: What it reads: text, pair (two texts) or image.
        classes: Outputs of the new head.
        seed: Of the head, and of all weights where `cfg.random`.

    Returns:
        The model and what the data need to know of it.

    Raises:
        InputError: If the model can't be loaded, reads another kind of input, or a field of cfg is out of range.
    """
    _check(cfg, kind)
    source, local = _locate(cfg)
    with _loading(source, OFFLINE if local and not Path(source).is_dir() else LOADABLE):
        config = transformers.AutoConfig.from_pretrained(
            source, num_labels=classes, local_files_only=local, trust_remote_code=False
        )
    _check_kind(config, kind, source)
    _set_dropout(config, cfg.dropout)
    with _loading(source), isolate_rng():
        torch.manual_seed(seed)
        model = _build(cfg, kind, config, source, local)
    _renew_head(model, seed)
    tokenizer = None if kind == "image" else _tokenizer(source, local)
    if tokenizer is not None:
        model.config.pad_token_id = tokenizer.pad_token_id
        _check_length(model, cfg.max_length)
    vision = getattr(config, "vision_config", config)
    size, channels = (getattr(vision, key, None) for key in ("image_size", "num_channels"))
    mean, std = _pixels(source, local) if kind == "image" else (None, None)
    pad = 0 if tokenizer is None else tokenizer.pad_token_id
    return Backbone(model.eval(), tokenizer, source, size, channels, pad, mean, std)


def head_name(model: nn.Module) -> str:
    """Name of the module that turns features into logits.

    For a model of transformers it is the classifier whole, which may hold several layers; else the last linear layer.

    Raises:
        InputError: If the model has no linear layer.

    Example:
        >>> head_name(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        '2'
    """
    linear = _linear(model)
    if not linear:
        raise InputError.of("model", type(model).__name__, "a model that ends in a torch.nn.Linear", "it has no head")
    if isinstance(model, transformers.PreTrainedModel):
        return next((name for name in HEADS if _inside(linear[-1], name)), linear[-1])
    return linear[-1]


def target_modules(model: nn.Module) -> list[str]:
    """Names of the layers that LoRA adapts by default.

    Returns:
        The usual names for the model's type, such as query and value, as far as they occur; for a type without, the
        full names of all linear layers outside the head.

    Raises:
        InputError: If no layer is left.

    Example:
        >>> target_modules(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
        ['0']
    """
    kind = getattr(getattr(model, "config", None), "model_type", "")
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    usual = [name for name in PEFT_TARGETS.get(kind) or TARGETS.get(kind) or () if name in present]
    head = head_name(model)
    # torch's attention reads its output layer's weight and never calls it
    attention = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    unfit = [head, *attention]
    names = usual or [name for name in _linear(model) if not any(_inside(name, other) for other in unfit)]
    if not names:
        raise InputError.of("adapter.target_modules", None, "names of layers", "the head is the only linear layer")
    return names


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _check(cfg: ModelConfig, kind: str) -> None:
    if kind not in KINDS:
        raise InputError.of("kind", kind, KINDS)
    if cfg.name not in ("embedded", "hub"):
        raise InputError.of("model.name", cfg.name, ("embedded", "hub"))
    if cfg.name == "hub" and not cfg.path:
        raise InputError.of("model.path", cfg.path, LOADABLE, "model.name=hub needs one")
    if cfg.name == "embedded" and kind != "image":
        raise InputError.of("model", "embedded", "model=<hub id or folder> of a text model", "it reads images only")
    if not 0 <= cfg.dropout < 1:
        raise InputError.of("model.dropout", cfg.dropout, "a probability in [0, 1)")
    if cfg.max_length < 1:
        raise InputError.of("model.max_length", cfg.max_length, "an integer >= 1")


def _locate(cfg: ModelConfig) -> tuple[str, bool]:
    """What from_pretrained takes, and whether only files of this machine are to be read."""
    if cfg.name == "embedded":
        return str(embedded()), True
    path = str(cfg.path)
    if Path(path).expanduser().is_dir():
        return str(Path(path).expanduser()), True
    try:
        validate_repo_id(path)
    except HFValidationError as error:
        raise InputError.of("model.path", path, LOADABLE, "no such folder, and no hub id") from error
    return path, not _on_the_hub(path)


def _on_the_hub(path: str) -> bool:
    """Asks once, for seconds; from_pretrained would retry for half a minute before it gave up without a network."""
    try:
        huggingface_hub.HfApi().model_info(path, timeout=5)
    except RepositoryNotFoundError as error:
        why = "no such folder, and the hub has no such public model (a private one needs: hf auth login)"
        raise InputError.of("model.path", path, LOADABLE, why) from error
    except Exception as error:  # whatever the HTTP client raises: the cache may still have the model
        log.debug("the hub can't be reached: %s", error)
        return False
    return True


@contextlib.contextmanager
def _loading(source: str, allowed: str = LOADABLE) -> Iterator[None]:
    """Makes one line of whatever a broken or missing file raises: the libraries below agree on no exception."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError.of("model.path", source, allowed, why.rstrip(".")) from error


def _check_kind(config: Any, kind: str, source: str) -> None:
    images = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    texts = type(config) in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not (images if kind == "image" else texts):
        wanted = "a model that classifies images" if kind == "image" else "a model that classifies text"
        raise InputError.of("model.path", source, wanted, f"the data is {kind}, the model of type {config.model_type}")


def _set_dropout(config: Any, probability: float) -> None:
    """Sets every dropout of a config and the configs inside it; stochastic depth, which skips layers, goes off."""
    for key, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            _set_dropout(value, probability)
        elif isinstance(value, int | float | None) and not isinstance(value, bool):
            if "dropout" in key or "pdrop" in key:
                setattr(config, key, probability)
            elif "drop_path" in key or "layerdrop" in key:
                setattr(config, key, 0.0)


def _build(cfg: ModelConfig, kind: str, config: Any, source: str, local: bool) -> transformers.PreTrainedModel:
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind == "image":
        auto = transformers.AutoModelForImageClassification
    if cfg.random:
        return auto.from_config(config, dtype=torch.float32, trust_remote_code=False)
    model, report = auto.from_pretrained(
        source, config=config, dtype=torch.float32, local_files_only=local, trust_remote_code=False,
        ignore_mismatched_sizes=True, output_loading_info=True,
    )  # fmt: skip
    fresh = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    if fresh := {key for key in fresh if not _inside(key, head_name(model))}:
        log.warning("%s has no weights for %s: drawn from the seed", source, ", ".join(sorted(fresh)[:4]))
    return model


def _renew_head(model: transformers.PreTrainedModel, seed: int) -> None:
    """Draws the head anew even where the checkpoint has one of the right size: its classes are others."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(model.config, "initializer_range", None) or 0.02
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and _inside(name, head_name(model)):
                module.weight.normal_(0.0, std, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()


def _pixels(source: str, local: bool) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation that the model's image processor brings pixels to; None where there is none."""
    try:
        found, _ = transformers.ImageProcessingMixin.get_image_processor_dict(source, local_files_only=local)
    except OSError:  # the embedded backbone has none, and takes [0, 1]
        return None, None
    if not found.get("do_normalize", True) or not found.get("image_mean"):
        return None, None
    return tuple(found["image_mean"]), tuple(found["image_std"])


def _tokenizer(source: str, local: bool) -> Any:
    with _loading(source):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
    # from a folder without vocabulary, transformers makes a tokenizer that knows its special tokens only
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError.of("model.path", source, "a folder with tokenizer files too", "it holds no vocabulary")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise InputError.of("model.path", source, "a tokenizer with a pad or eos token", "there is none to pad with")
    return tokenizer


def _check_length(model: transformers.PreTrainedModel, length: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None) or length
    for name, module in model.named_modules():
        # RoBERTa and MPNet count positions from the padding index on: theirs is smaller than the config says
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    if length > limit:
        raise InputError.of("model.max_length", length, f"1 to {limit}, the positions that the model has")
