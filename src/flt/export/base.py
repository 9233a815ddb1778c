"""Loading of the base that an export was made of, and of merged models, from files that aren't trusted."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import transformers
import yaml
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from transformers.utils import cached_file

from flt.core import plain_yaml
from flt.core.errors import InputError
from flt.core.files import last_name, system_message
from flt.core.quiet import quiet_transformers
from flt.core.typed import first_line
from flt.export.cards import BASE_CARD, CONFIG, RANDOM, check, read, read_json
from flt.export.metadata import BASE
from flt.export.model_config import architecture, check_size, config_of, generation_config_of, most_labels
from flt.export.places import EXPORTS, label_names_folder, levels
from flt.export.weights import Header, check_numbers
from flt.models.backbones import EMBEDDED
from flt.models.location import LOADABLE, OFFLINE, locate, one_line_errors
from flt.models.module import ClientModule
from flt.models.provenance import origin_of, set_origin

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"


def base_of(
    folder: Path, source: str | None, model: nn.Module | str | None, held: Collection[str], header: Header
) -> Any:
    """Returns the given model or, if there is none, the base that the folder describes.

    Args:
        folder: Folder of the export.
        source: Name of the base in the export's metadata. Empty or None if the metadata doesn't name the base.
        model: Base given by the caller, or its folder or hub id. If it isn't a module, the base is loaded, with a head
            of the right size.
        held: Names of the tensors in the export. The loaded base may lack these tensors.
        header: Header of the export's weights.

    Raises:
        InputError: The base isn't known, or isn't the one that the export was made of.
    """
    about = read(folder / BASE, BASE_CARD, "architecture", "config") if (folder / BASE).is_file() else {}
    check(f"{BASE}: config", about.get("config", {}), CONFIG)
    if "random" in about:
        check(f"{BASE}: random", about["random"], RANDOM, ("seed", "classes", "source"))
    if not isinstance(model, nn.Module):
        name = about.get("folder")
        source = model or about.get("random", {}).get("source") or source or (place_of(folder, name) if name else None)
        if not source or not about:
            if name:
                why = f"its base was the folder {name}, and the export doesn't say where that lies"
                raise InputError.of("base", None, "base=<path of that folder, or a hub id> (model= of flt.load)", why)
            why = "the folder doesn't say what its base is"
            raise InputError.of("model", None, "the module, without adapters", why)
        try:
            model = _loaded(folder, source, about, held, header)
        except InputError as error:  # base= is what a command is given
            raise InputError(str(error).replace("model.path=", "base=", 1)) from error
    base = model.model if isinstance(model, ClientModule) else model
    if "drawn" in about:  # these names identify the layers that were trained with the head
        set_origin(base, dataclasses.replace(origin_of(base), drawn=tuple(about["drawn"])))
    return base


def place_of(folder: Path, name: str) -> str | None:
    """Returns the path of the base's folder, or None if it isn't found.

    The export contains only the folder's name. The path is read from the configuration of the run.

    Args:
        folder: Folder of the export.
        name: Name of the base's folder.

    Raises:
        InputError: The configuration can't be read.
    """
    top = levels(folder)[-1]
    path = top.parent / "config.yaml"
    try:
        cfg = yaml.safe_load(plain_yaml.read(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        if isinstance(error, FileNotFoundError) or top.name not in EXPORTS:  # no run, or a file of another program
            return None
        why = system_message(error) if isinstance(error, OSError) else first_line(error)
        run = path.parent if folder.is_absolute() else os.path.relpath(path.parent)
        raise InputError.of("run", run, "a run with the config.yaml that flt wrote", why) from error
    model = cfg.get("model") if isinstance(cfg, dict) else None
    found = model.get("path") if isinstance(model, dict) else None
    place = plain_yaml.unescaped(found) if isinstance(found, str) else None
    return place if place is not None and last_name(place) == name else None


def _loaded(folder: Path, source: str, about: Mapping[str, Any], held: Collection[str], export: Header) -> nn.Module:
    """Loads the base of a run. If its weights were drawn at random, draws the same weights again from the seed.

    Args:
        folder: Folder of the export.
        source: Name of the base for ``from_pretrained``, or path of its folder.
        about: Metadata of the base.
        held: Names of the tensors in the export. The base may lack these tensors.
        export: Header of the export's weights.
    """
    place, local = (str(EMBEDDED[source]()), True) if source in EMBEDDED else locate(source, about.get("package"))
    kind, changes = architecture(about["architecture"]), dict(about["config"])
    random, named = about.get("random"), label_names_folder(folder)
    labels = Header.of(named.with_suffix(".safetensors")) if named else None
    for key, labels_of in (("config: num_labels", changes), ("random: classes", random or {})):
        found = labels_of.get(key.rpartition(" ")[2]) or 0
        if found > (limit := most_labels(export, labels)):
            raise InputError.of(f"{BASE}: {key}", found, f"at most {limit}, because no tensor has more rows")
    with one_line_errors(source, OFFLINE if local and not Path(place).is_dir() else LOADABLE), isolate_rng():
        files = weight_files(place, local, needed=random is None)
        header = Header.of(*files) if files else None
        card = read_json(Path(str(_file(place, CONFIG_FILE, local))))
        config = config_of(card, kind, header, **changes)
        integers = check_size(kind, config, header, export)
        if random is not None:
            plain = config_of(card, kind, header)
            if random["classes"] is not None:
                plain.num_labels = random["classes"]
            check_size(kind, plain, header, export)
            return _drawn(kind, plain, config, random["seed"])
        assert header is not None, "weight_files found them"
        header.check_types(integers)
        model, report = _filled(kind, config, header, card, place, local)
    unused = ("pooler",) if named else ()  # the label-name head uses no pooler
    lacking = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])} - set(held)
    if lacking := {name for name in lacking if not name.startswith(unused)}:
        raise InputError.of("model", source, "a base with all weights that the export lacks", f"no {min(lacking)}")
    check_numbers(Path(place), dict(model.named_parameters()))
    return model


def merged_model(folder: Path) -> nn.Module:
    """Loads a transformers model into which everything was merged.

    Raises:
        InputError: The weights aren't exactly those of the model in config.json, or aren't finite.
    """
    card = read_json(folder / CONFIG_FILE)
    names = card.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise InputError.of("config.json: architectures", names, "a list with one model class of transformers")
    kind = architecture(names[0])
    header = Header.of(*weight_files(str(folder), True))
    with quiet_transformers(), isolate_rng():
        config = config_of(card, kind, header)
        integers = check_size(kind, config, header)
        header.check_types(integers)
        model, report = _filled(kind, config, header, card, str(folder), True)
    for key, what in (("missing_keys", "is missing"), ("unexpected_keys", "is none"), ("mismatched_keys", "")):
        if names := sorted(name if isinstance(name, str) else name[0] for name in report[key]):
            why = f"{names[0]} {what}" if what else f"size mismatch for {names[0]}"
            raise InputError.of("folder", folder, "the tensors of its model", why)
    check_numbers(folder, dict(model.named_parameters()))
    return model


def weight_files(place: str, local: bool, needed: bool = True) -> list[Path]:
    """Returns the safetensors files of a model in a folder or on the hub. Files outside its folder are refused.

    Args:
        place: Folder or hub id.
        local: Whether to use local files only.
        needed: Whether the weights are needed. If not, they are looked for in a local folder only, and may be missing.
    """
    if not needed and not Path(place).is_dir():
        return []
    if (single := _file(place, WEIGHTS_FILE, local, missing=True)) is not None:
        return [Path(single)]
    index = _file(place, INDEX_FILE, local, missing=not needed)
    if index is None:
        return []
    shards = read_json(Path(index)).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) else []
    for name in names:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise InputError.of(INDEX_FILE, name, "names of safetensors files beside it")
    return [Path(str(_file(place, name, local))) for name in names]


def _file(place: str, name: str, local: bool, missing: bool = False) -> str | None:
    """Returns the path of a model's file. If missing is true, a file that isn't there is None instead of an error."""
    return cached_file(place, name, local_files_only=local, _raise_exceptions_for_missing_entries=not missing)


def _filled(
    kind: Any, config: Any, header: Header, card: Mapping[str, Any], place: str, local: bool
) -> tuple[Any, Mapping[str, Any]]:
    """Returns a model with its weights, and transformers' report of the names that are missing or unexpected.

    transformers gets the tensors instead of the folder: in a folder it would also obey other files, such as an
    adapter_config.json.
    """
    generation = _generation(kind, card, place, local)
    model, report = kind.from_pretrained(
        None, config=config, state_dict=header.load(), dtype=torch.float32, ignore_mismatched_sizes=True,
        output_loading_info=True, generation_config=generation,
    )  # fmt: skip
    model.config.name_or_path = model.name_or_path = place
    return model, report


def _generation(kind: Any, card: Mapping[str, Any], place: str, local: bool) -> transformers.GenerationConfig | None:
    """Returns the settings of text generation beside a model, or those in its config.json; None for a classifier."""
    if not kind.can_generate():
        return None
    path = _file(place, GENERATION_FILE, local, missing=True)
    return generation_config_of(read_json(Path(path)) if path else card)


def _drawn(kind: Any, plain: Any, config: Any, seed: int) -> nn.Module:
    """Draws the weights of a random base (``model.random``) again, except for a head whose size changed in the run.

    Args:
        kind: Class of the model.
        plain: Configuration of the model as when the run drew the weights.
        config: The same configuration with the entries that the run changed.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    drawn, model = kind._from_config(plain, dtype=torch.float32).state_dict(), kind(config)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({n: value for n, value in drawn.items() if shapes[n] == value.shape}, strict=False)
    return model
