"""Loading of exported models: an adapter together with its base, or a model into which everything was merged."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers
import yaml
from lightning.pytorch.utilities.seed import isolate_rng
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from torch.utils.data import Dataset

from flt.core.errors import InputError
from flt.core.files import expand_user, last_name
from flt.core.quiet import quiet_transformers
from flt.core.typed import typed
from flt.data.clients import JobData
from flt.export.metadata import BASE, CARD, LABEL_NAMES, WEIGHTS
from flt.models.adapters.client_context import client_aware_modules, set_client
from flt.models.adapters.registry import ADAPTERS
from flt.models.backbones import EMBEDDED
from flt.models.label_name_head import LabelNameClassifier
from flt.models.location import LOADABLE, OFFLINE, locate, one_line_errors
from flt.models.module import ClientModule, Optimizer, backbone_of
from flt.models.provenance import origin_of, set_origin
from flt.protocol.layout import TRAVELLING

PEFT_CARD, PEFT_WEIGHTS, MERGED_CARD = "adapter_config.json", "adapter_model.safetensors", "config.json"
PLACES = ("group", "head", "client", "job")
"""Beginnings of the names of subfolders in an export, such as ``group`` in ``group_1``."""
LONGEST = 200
"""Largest number of characters that an error line quotes from another library's message."""


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Loads an exported model of a run, in eval mode.

    Args:
        folder: Folder ``adapter/`` or ``model/`` of a run, or a subfolder for one group, head, client or job.
        model: Base without adapters; the function changes it in place. If None, the function loads the base that the
            folder describes. If the run trained a user's own module, ``model`` is required.

    Returns:
        The model with the exported weights. If ``model`` is None, the result is a transformers model or a
        LabelNameClassifier. A LoRA adapter is attached by peft, which puts the transformers model inside a PeftModel.

    Raises:
        InputError: The folder isn't an export of flt, the export is damaged, or the export doesn't fit ``model``.

    Example:
        >>> load("lightning_logs/c2a/version_0/adapter")  # doctest: +SKIP
    """
    folder = expand_user(folder)
    card_name = next((name for name in _READERS if os.path.isfile(folder / name)), None)
    if card_name is None:
        inner = sorted(path.name for place in PLACES for path in folder.glob(f"{place}_*"))
        allowed = f"one of its folders: {', '.join(inner)}" if inner else "adapter/ or model/ of a finished run"
        raise InputError.of("folder", folder, allowed, "" if inner else "nothing that flt exports is in it")
    with _broken(folder):
        return _READERS[card_name](folder, model).eval()


def _own(folder: Path, model: nn.Module | None) -> nn.Module:
    """Loads an adapter that peft doesn't support (C2A, bottleneck adapters) with flt's own code."""
    card = json.loads((folder / CARD).read_text())
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    held = {name.removeprefix("encoder.") if _named(folder) else name for name in tensors}
    base = _with_head(_base(folder, card["source"], model, held), folder)
    shell = base if card["classes"] is None else ClientModule(base, card["classes"], Optimizer())
    settings, attach = ADAPTERS[card["adapter"]["name"]]
    layout = attach(shell, typed(settings, card["adapter"], "adapter"), 0, card["adapt_layers"])
    _, prefix = backbone_of(shell)
    if lacking := sorted({name.removeprefix(prefix) for name in layout.names(TRAVELLING)} - set(tensors)):
        raise InputError.of("folder", folder, "the tensors of its adapter and head", f"{lacking[0]} is missing")
    if strange := base.load_state_dict(tensors, strict=False).unexpected_keys:
        raise InputError.of("folder", folder, "tensors of its model", f"{strange[0]} is none")
    if counts := card.get("label_counts"):
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise InputError.of("folder", folder, "label_counts that are integers >= 0")
        nothing = np.arange(0)
        set_client(client_aware_modules(base), JobData(Dataset(), nothing, nothing, label_counts=tuple(counts)))
    return base


def _peft(folder: Path, model: nn.Module | None) -> nn.Module:
    """Loads a LoRA adapter with peft.

    A folder without the safetensors file is refused. From such a folder, peft would load pickled weights, and these
    could run code.
    """
    if not (folder / PEFT_WEIGHTS).is_file():
        raise InputError.of("folder", folder, f"a folder with {PEFT_WEIGHTS}", "the tensors are missing")
    source = json.loads((folder / PEFT_CARD).read_text()).get("base_model_name_or_path")
    with safetensors.safe_open(folder / PEFT_WEIGHTS, "pt") as file:
        names = set(file.keys())
    held = {name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in names}
    base: Any = _base(folder, source, model, held)
    encoder = base.encoder if isinstance(base, LabelNameClassifier) else base
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(encoder, folder)
        wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if lacking := sorted(wanted - names):
        raise InputError.of("folder", folder, "the tensors of its adapter and head", f"{lacking[0]} is missing")
    if strange := sorted(names - wanted - set(adapted.state_dict())):  # peft would ignore them silently
        raise InputError.of("folder", folder, "tensors of its model", f"{strange[0]} is none")
    return _with_head(adapted, folder)


def _merged(folder: Path, model: nn.Module | None) -> nn.Module:
    """Loads a model into which everything was merged: a transformers model, or the weights of a user's own module."""
    card = json.loads((folder / MERGED_CARD).read_text())
    if "module" not in card:
        if model is not None:
            raise InputError.of("model", type(model).__name__, "None", f"{folder} holds the whole model")
        kind = _architecture(card["architectures"][0])
        with quiet_transformers():
            whole = kind.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True)
        return _with_head(whole, folder)
    if model is None:
        raise InputError.of("model", None, f"your {card['module']}", "the weights are those of a module of your own")
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    return model


_READERS = {CARD: _own, PEFT_CARD: _peft, MERGED_CARD: _merged}


def _base(folder: Path, source: str | None, model: nn.Module | None, held: Collection[str]) -> nn.Module:
    """Returns the given model or, if there is none, the base that the folder describes.

    Args:
        folder: Folder of the export.
        source: Name of the base in the export's metadata. Empty or None if the metadata doesn't name the base.
        model: Base given by the caller. If None, the base is loaded, with a head of the right size.
        held: Names of the tensors in the export. The loaded base may lack these tensors.
    """
    about = json.loads((folder / BASE).read_text()) if (folder / BASE).is_file() else {}
    if model is None:
        name = about.get("folder")
        source = about.get("random", {}).get("source") or source or (_place(folder, name) if name else None)
        if not source or not about:
            why = f"its base was the folder {name}" if name else "the folder doesn't say what its base is"
            raise InputError.of("model", None, "the module, without adapters", why)
        model = _loaded(folder, source, about, held)
    base = model.model if isinstance(model, ClientModule) else model
    if "drawn" in about:  # these names identify the layers that were trained with the head
        set_origin(base, dataclasses.replace(origin_of(base), drawn=tuple(about["drawn"])))
    return base


def _place(folder: Path, name: str) -> str | None:
    """Returns the path of the base's folder, or None if it isn't found.

    The export contains only the folder's name. The path is read from the configuration of the run.

    Args:
        folder: Folder of the export.
        name: Name of the base's folder.
    """
    try:
        cfg = yaml.safe_load((_levels(folder)[-1].parent / "config.yaml").read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # no file, or a file of another program
        return None
    model = cfg.get("model") if isinstance(cfg, dict) else None
    path = model.get("path") if isinstance(model, dict) else None
    return path if isinstance(path, str) and last_name(path) == name else None


def _loaded(folder: Path, source: str, about: Mapping[str, Any], held: Collection[str]) -> nn.Module:
    """Loads the base of a run. If its weights were drawn at random, draws the same weights again from the seed.

    Args:
        folder: Folder of the export.
        source: Name of the base for ``from_pretrained``, or path of its folder.
        about: Metadata of the base.
        held: Names of the tensors in the export. The base may lack these tensors.
    """
    place, local = (str(EMBEDDED[source]()), True) if source in EMBEDDED else locate(source, about.get("package"))
    kind, only = _architecture(about["architecture"]), {"local_files_only": local, "trust_remote_code": False}
    with one_line_errors(source, OFFLINE if local and not Path(place).is_dir() else LOADABLE), isolate_rng():
        config = transformers.AutoConfig.from_pretrained(place, **about["config"], **only)
        if "random" in about:
            plain = transformers.AutoConfig.from_pretrained(place, **only)
            return _drawn(kind, plain, config, about["random"])
        model, report = kind.from_pretrained(
            place, config=config, dtype=torch.float32, local_files_only=local, ignore_mismatched_sizes=True,
            use_safetensors=True, output_loading_info=True,
        )  # fmt: skip
    unused = ("pooler",) if _named(folder) else ()  # the label-name head uses no pooler
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])} - set(held)
    if lacking := {name for name in lacking if not name.startswith(unused)}:
        raise InputError.of("model", source, "a base with all weights that the export lacks", f"no {min(lacking)}")
    return model


def _drawn(kind: Any, plain: Any, config: Any, how: Mapping[str, Any]) -> nn.Module:
    """Draws the weights of a random base (``model.random``) again, except for a head whose size changed in the run.

    Args:
        kind: Class of the model.
        plain: Configuration of the model, as in the files of the base.
        config: The same configuration with the entries that the run changed.
        how: Mapping with the ``seed`` and the number of ``classes`` with which the run drew the weights.
    """
    if how["classes"] is not None:
        plain.num_labels = how["classes"]
    torch.manual_seed(how["seed"])
    drawn, model = kind._from_config(plain, dtype=torch.float32).state_dict(), kind(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({n: value for n, value in drawn.items() if shapes[n] == value.shape}, strict=False)
    return model


def _architecture(name: str) -> Any:
    """Returns the model class of transformers with this name. Other names in transformers are refused."""
    architecture = getattr(transformers, name, None)
    if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
        raise InputError.of("architecture", name, "a model class of transformers")
    return architecture


def _with_head(encoder: nn.Module, folder: Path) -> nn.Module:
    """Adds the label-name head to an encoder if the run used this head. Otherwise returns the encoder unchanged."""
    place = _named(folder)
    if place is None or isinstance(encoder, LabelNameClassifier):
        return encoder
    card = json.loads((place / f"{LABEL_NAMES}.json").read_text())
    names = safetensors.torch.load_file(place / f"{LABEL_NAMES}.safetensors")["names"]
    return LabelNameClassifier(encoder, names, card["scale"], card["texts"])


def _named(folder: Path) -> Path | None:
    """Returns the folder that contains the label-name head, or None if the run didn't use this head.

    The head is in the top folder of the export, because all groups and clients share it.
    """
    return next((place for place in _levels(folder) if (place / f"{LABEL_NAMES}.json").is_file()), None)


def _levels(folder: Path) -> list[Path]:
    """Returns a folder of an export and its parents up to the export's top folder, ``adapter`` or ``model``."""
    levels = [folder.absolute()]
    while levels[-1].name.partition("_")[0] in PLACES:
        levels.append(levels[-1].parent)
    return levels


@contextlib.contextmanager
def _broken(folder: Path) -> Iterator[None]:
    """Converts every exception to an InputError, because libraries can raise any exception for a damaged file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST].rstrip(". ")
        raise InputError.of("folder", folder, "an export of flt, and the base that it was made of", why) from error
