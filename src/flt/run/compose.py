"""Composition of a configuration from a command line.

The names of keys and choices are checked here, without torch, so that a misspelt name is refused at once. The types of
values are checked by :mod:`flt.run.schema`, which imports torch.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from flt.core.errors import InputError, no_such
from flt.core.files import expand_user, last_name
from flt.core.plain_yaml import escaped, unescaped
from flt.core.typed import first_line, typed
from flt.data.suffixes import SUFFIXES, suffix_of
from flt.run.conf_groups import BASE, choices, config_folder, groups

if TYPE_CHECKING:
    from flt.run.schema import TrainConfig

RENAMED = {("engine", "strategy"): "distributed"}
"""(Group, older name of a choice) -> present name. Older names still work on command lines and in saved runs."""
MAPPINGS = ("data.where", "data.merge", "data.tasks", "data.label_texts", "data.share", "fleet.tiers")
"""Keys whose values are mappings with names of the user's, such as ``data.where={lang: [en]}``."""
MOST_RUNS = 10_000
"""Largest number of runs of a sweep."""


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Returns the configuration of conf/train.yaml with overrides such as ``algo=fedit`` or ``local.lr=1e-3``.

    Raises:
        InputError: A key or a choice doesn't exist, or a value has the wrong type.
    """
    from flt.run.schema import TrainConfig  # imports torch, which takes seconds

    return typed(TrainConfig, compose_config(overrides), "")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of conf/train.yaml with overrides. The types of its values aren't checked.

    Raises:
        InputError: A key or a choice doesn't exist.
    """
    named = [mapped for override in overrides for mapped in _map_choice(override)]
    parsed = [_parse(override) for override in named]
    for text, override in zip(named, parsed, strict=True):
        _check_kind(override, text)
        _check_value(override, text)
    chosen = {override.key_or_group: override.value() for override in parsed if _is_group(override)}
    keys = [(text, override) for text, override in zip(named, parsed, strict=True) if not _is_group(override)]
    try:
        cfg = _without_leftovers(_compose(named), chosen)
        _check_keys(cfg, keys)
    except InputError:
        # Checks the keys again, against a configuration of the chosen files without the other overrides. The error
        # message then lists the keys of these files. If another override has removed a key, the key is still accepted.
        groups = [text for text, override in zip(named, parsed, strict=True) if _is_group(override)]
        _check_keys(_without_leftovers(_compose(groups), chosen), keys)
        cfg = _without_leftovers(_compose(named), chosen)
    return cfg


def _without_leftovers(cfg: DictConfig, chosen: Mapping[str, Any]) -> DictConfig:
    """Removes settings that a recipe made for a part, if the command line chose another part that lacks them."""
    keys_of = {
        group: _keys_of(group, str(name)) for group, name in chosen.items() if isinstance(cfg.get(group), DictConfig)
    }
    if all(set(cfg[group]) <= keys for group, keys in keys_of.items()):
        return cfg
    kept = {group: {key: value for key, value in cfg[group].items() if key in keys} for group, keys in keys_of.items()}
    whole: Any = OmegaConf.to_container(cfg)
    return OmegaConf.create({**whole, **kept})


@functools.cache
def _keys_of(group: str, name: str) -> set[str]:
    return set(map(str, load_choice(group, name)))


def load_choice(group: str, name: str) -> DictConfig:
    """Returns the settings in a choice's file, and in the base file of the group if the choice's file includes it."""
    settings: Any = OmegaConf.load(config_folder() / group / f"{name}.yaml")
    bases = [load_choice(group, base) for base in settings.pop("defaults", []) if base == BASE]
    merged: Any = OmegaConf.merge(*bases, settings)
    return merged


def to_yaml(cfg: TrainConfig) -> str:
    """Returns the resolved configuration as YAML, of which OmegaConf makes the same configuration again."""
    return OmegaConf.to_yaml(OmegaConf.create(escaped(dataclasses.asdict(cfg))))


def flat(cfg: TrainConfig) -> dict[str, Any]:
    """Returns dotted key -> value, for loggers. Of a path, only the last name is kept, because logs may be public."""

    def walk(value: Any, key: str) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        else:
            yield key, last_name(value)

    return dict(walk(dataclasses.asdict(cfg), ""))


def _compose(overrides: Sequence[str]) -> DictConfig:
    """Composes a configuration with Hydra. The result is cached, because it is needed several times."""
    return copy.deepcopy(_composed(tuple(overrides)))


@functools.lru_cache(maxsize=256)
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train", overrides=[_adding(text) for text in overrides], return_hydra_config=True)
            with open_dict(cfg):
                cfg.algo = cfg.hydra.runtime.choices.algo  # a resume compares the recipe; cfg.name may differ
                del cfg["hydra"]
            # Texts stay escaped. OmegaConf.resolve would turn them into interpolations, to be resolved once more.
            resolved = OmegaConf.create(escaped(OmegaConf.to_container(cfg, resolve=True)))
            OmegaConf.set_struct(resolved, True)
            return resolved
    except Exception as error:  # Hydra raises ValueError, AttributeError and others, besides its own exceptions
        allowed, why = "key=value for keys that are there", first_line(error.__cause__ or error)
        raise InputError.of("override", " ".join(overrides), allowed, why) from None


def _adding(override: str) -> str:
    """Marks the override of a mapping with names of the user's, which Hydra would otherwise refuse as unknown keys."""
    key = override.partition("=")[0]
    return f"++{override}" if key in MAPPINGS or key.rpartition(".")[0] in MAPPINGS else override


def _map_choice(override: str) -> list[str]:
    """Replaces ``model=<folder or hub id>`` and ``data=<file, folder or hub id>`` by a choice and its path.

    Two overrides are needed because Hydra accepts only names of choices for ``model`` and ``data``. An older name of a
    choice is replaced by its present name. ``logger=csv,wandb`` becomes a list. All other overrides are returned
    unchanged.
    """
    key, equals, value = override.partition("=")
    value = value.strip("'\"")
    if (key, value) in RENAMED:
        return [f"{key}={RENAMED[key, value]}"]
    if key == "logger" and value and value[0] not in "[{":
        return [f"logger=[{'' if value == 'null' else value}]"]
    if not equals or key not in ("data", "model") or value in choices(key):
        return [override]
    quoted = "'" + value.replace("'", "\\'") + "'"
    if key == "data":
        choice = _data_choice(value)
        return [f"data={choice}", f"data.path={quoted}"] if choice else [override]
    if value.startswith(("/", ".", "~")) and not os.path.isdir(expand_user(unescaped(value))):
        allowed = f"{', '.join(choices('model'))}, a hub id, or a folder"
        raise InputError.of("model", value, allowed, "there is no such folder")
    return ["model=hub", f"model.path={quoted}"]


def _data_choice(value: str) -> str | None:
    """Returns the choice that reads a file, a folder or a data set on the hub, or None if the value is none of them.

    A folder is a value that is one on this disk, whether it looks like a hub id or not.

    Raises:
        InputError: The value is a stream or an address, or a path of neither a file that flt reads nor a folder.
    """
    allowed = f"a file ({', '.join(SUFFIXES)}), a folder, or a hub id such as org/name"
    if value == "-" or "://" in value or value.startswith("/dev/"):
        raise InputError.of("data", value, allowed, "streams and addresses aren't read, so save the data first")
    if suffix_of(value):
        return "file"
    if os.path.isdir(expand_user(unescaped(value))):
        return "hub"
    if value.startswith(("/", ".", "~")) or os.path.isfile(expand_user(unescaped(value))):
        raise InputError.of("data", value, allowed, "there is no such folder, and no file of this kind is read")
    return "hub" if value.count("/") == 1 else None


def _parse(override: str) -> Override:
    if "=" not in override:
        raise InputError.of("override", override, "key=value")
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in override):  # no file's name, no UTF-8
        raise InputError.of("override", ascii(override), "key=value in UTF-8")
    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError) as error:  # int() refuses thousands of digits
        key, _, value = override.partition("=")
        quotes = (
            "" if value.startswith(("'", '"')) else f"; a value with such characters is quoted: \"{key}='{value}'\""
        )
        raise InputError.of("override", override, f"key=value{quotes}", first_line(error)) from None


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups()


def _check_kind(override: Override, text: str) -> None:
    """Checks that an override sets a key, and doesn't add or remove one or move a group to another place (``@``)."""
    if override.is_add() or override.is_delete() or override.is_force_add() or override.package is not None:
        raise InputError.of("override", text, "key=value for a key that is there")


def _check_value(override: Override, text: str) -> None:
    key, value = override.key_or_group, text.partition("=")[2]
    if override.is_sweep_override():
        raise InputError.of(key, value, "one value; flt sweep takes several")
    if _is_group(override) and override.value() not in choices(key):
        more = ["a file", "a folder", "a hub id such as org/name"] if key == "data" else []
        raise InputError.of(key, value, [*choices(key), *more])


def _check_keys(cfg: DictConfig, keys: Sequence[tuple[str, Override]]) -> None:
    for text, override in keys:
        _check_key(cfg, override, text)


def _check_key(base: DictConfig, override: Override, text: str) -> None:
    key = override.key_or_group
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if isinstance(node, DictConfig) and (name in node or parent in MAPPINGS):
        return
    known = list(node) if isinstance(node, DictConfig) else [*base, *(g for g in groups() if g not in base)]
    where = f"a key of {parent}: " if isinstance(node, DictConfig) and parent else ""
    why = no_such("key", name if where else key, map(str, known))
    raise InputError.of(key, text.partition("=")[2], f"{where}{', '.join(map(str, known))}", why)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Returns the overrides of every combination of comma-separated values. Hydra's syntax of sweeps is used.

    Raises:
        InputError: A value is wrong, or there are more than ``MOST_RUNS`` combinations.

    Example:
        >>> expand(["algo=hafl,fedit", "seed=0,1", "ranks=[2,4]"])[1]
        ['algo=hafl', 'seed=1', 'ranks=[2,4]']
    """
    parsed = [(override, _parse(override)) for override in overrides]
    values = [_swept(o) if o.is_sweep_override() else [text] for text, o in parsed]
    if math.prod(map(len, values)) > MOST_RUNS:
        raise InputError.of("sweep", f"{math.prod(map(len, values))} runs", f"at most {MOST_RUNS}")
    return [list(combination) for combination in itertools.product(*values)]


def _swept(override: Override) -> list[str]:
    """Returns the single overrides of a sweep over the values of a key."""
    key = override.key_or_group
    try:
        return [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)]
    except Exception as error:  # Hydra raises errors of many kinds, for example for glob(*) and for range(1,2,0)
        raise InputError.of(key, "?", "comma-separated values", first_line(error)) from None
