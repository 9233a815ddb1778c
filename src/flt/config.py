"""The configuration: its types, and how a command line becomes one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flt.errors import InputError

JOBS = ("per_client", "per_task")
FILES = (".parquet", ".csv", ".tsv", ".jsonl", ".json", ".npz")


@dataclasses.dataclass
class PartitionConfig:
    """How examples are dealt to clients; conf/train.yaml says what each key means."""

    kind: str
    alpha: float
    min_examples: int
    min_share: float
    shards_per_client: int
    held_out: float


@dataclasses.dataclass
class CohortConfig:
    """Who takes part in a round."""

    sampling: str
    size: int | None
    rate: float


@dataclasses.dataclass
class LocalConfig:
    """How a client trains."""

    steps: int | None
    epochs: int | None
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    clip: float | None
    accumulate: int


@dataclasses.dataclass
class EvalConfig:
    """What is evaluated, and how often."""

    examples: int | None
    client_examples: int
    batch_size: int
    every: int


@dataclasses.dataclass
class CheckpointConfig:
    """How many checkpoints are kept."""

    keep: int


@dataclasses.dataclass
class TrainConfig:
    """A run. The values come from conf/train.yaml; the parts are typed by the dataclasses that they name.

    Raises:
        InputError: A number is out of range.
    """

    name: str
    root: str
    seed: int
    rounds: int
    clients: int
    ranks: list[int] | None
    jobs: str
    batch_size: int
    precision: str
    threads: int | None
    devices: int
    resume: str | None
    partition: PartitionConfig
    cohort: CohortConfig
    local: LocalConfig
    eval: EvalConfig
    checkpoint: CheckpointConfig
    data: dict[str, Any]
    model: dict[str, Any]
    adapter: dict[str, Any]
    engine: dict[str, Any]
    plan: dict[str, Any]
    schedule: dict[str, Any]
    selection: dict[str, Any]
    importance: dict[str, Any]
    grouping: dict[str, Any]
    rule: dict[str, Any]

    def __post_init__(self) -> None:
        for key in ("rounds", "clients", "batch_size", "devices"):
            if getattr(self, key) < 1:
                raise InputError.of(key, getattr(self, key), "an integer >= 1")
        if self.seed < 0:
            raise InputError.of("seed", self.seed, "an integer >= 0")
        if self.threads is not None and self.threads < 1:
            raise InputError.of("threads", self.threads, "an integer >= 1, or null")
        if self.ranks is not None and (not self.ranks or min(self.ranks) < 1):
            raise InputError.of("ranks", self.ranks, "a list of integers >= 1, or null")
        if self.jobs not in JOBS:
            raise InputError.of("jobs", self.jobs, JOBS)
        if not 0 <= self.partition.held_out < 1:
            raise InputError.of("partition.held_out", self.partition.held_out, "a number in [0, 1)")
        for key, least in (("examples", 1), ("client_examples", 0), ("batch_size", 1), ("every", 1)):
            value = getattr(self.eval, key)
            if value is not None and value < least:
                raise InputError.of(f"eval.{key}", value, f"an integer >= {least}")
        if self.checkpoint.keep < 1:
            raise InputError.of("checkpoint.keep", self.checkpoint.keep, "an integer >= 1")
        for group in ("adapter", "engine"):
            if getattr(self, group).get("name") not in choices(group):
                raise InputError.of(f"{group}.name", getattr(self, group).get("name"), choices(group))
        if self.name in ("", "..") or Path(self.name).name != self.name:
            raise InputError.of("name", self.name, "a folder's name")


def load_config(overrides: Sequence[str]) -> TrainConfig:
    """Composes conf/train.yaml with overrides such as ``algo=fedit`` or ``local.lr=1e-3``.

    Raises:
        InputError: A key isn't there, a value is of the wrong type, or a choice isn't among a group's files.
    """
    return typed(TrainConfig, compose_config(overrides), "")


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The composed configuration, not yet typed."""
    named = [mapped for override in overrides for mapped in _map_paths(override)]
    parsed = [_parse(override) for override in named]
    for text, override in zip(named, parsed, strict=True):
        _check_value(override, text)
    groups = [text for text, override in zip(named, parsed, strict=True) if _is_group(override)]
    base = _compose(groups)
    for text, override in zip(named, parsed, strict=True):
        if not _is_group(override):
            _check_key(base, override, text)
    return _compose(named)


def typed(kind: type[Any], settings: Any, prefix: str) -> Any:
    """Builds a dataclass from settings, checking names and types.

    Args:
        kind: The dataclass.
        settings: Its fields; missing ones take their defaults.
        prefix: What to call it in an error, such as ``rule``.

    Raises:
        InputError: A field isn't there or has the wrong type; or the dataclass refuses a value.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), settings)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = ".".join(part for part in (prefix, error.full_key or str(error.key)) if part)
        names = [f.name for f in dataclasses.fields(kind) if f.init]
        unknown = "not in" in str(error)
        value = OmegaConf.select(OmegaConf.create(settings), error.full_key or "", default="?")
        raise InputError.of(key, value, names if unknown else "a value of its type", _first_line(error)) from None


def choices(group: str) -> list[str]:
    """The files of a group of conf/."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


@functools.cache
def config_folder() -> Path:
    """Where conf/ is, in a checkout or in an installed wheel."""
    return Path(str(files("flt.conf").joinpath("train.yaml"))).parent


@functools.cache
def groups() -> list[str]:
    """Names of the folders of conf/."""
    return sorted(path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "__pycache__")


def to_yaml(cfg: TrainConfig) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(cfg)))


def flat(cfg: TrainConfig) -> dict[str, Any]:
    """Dotted key -> value, for loggers of hyperparameters."""

    def walk(value: Any, key: str) -> Iterable[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}" if key else name)
        else:
            yield key, value

    return dict(walk(dataclasses.asdict(cfg), ""))


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            cfg = compose("train", overrides=list(overrides))
            OmegaConf.resolve(cfg)
            return cfg
    except (HydraException, OmegaConfBaseException) as error:
        allowed, why = "key=value for keys that are there", _first_line(error.__cause__ or error)
        raise InputError.of("override", " ".join(overrides), allowed, why) from None


def _map_paths(override: str) -> list[str]:
    """``model=`` takes a folder or a hub id and ``data=`` a file or a hub id too, which no group of Hydra's does."""
    key, equals, value = override.partition("=")
    value = value.strip("'\"")
    if not equals or key not in ("data", "model") or value in choices(key):
        return [override]
    quoted = "'" + value.replace("'", "\\'") + "'"
    if key == "data":
        if value.endswith(FILES):
            return ["data=file", f"data.path={quoted}"]
        return ["data=hub", f"data.path={quoted}"] if value.count("/") == 1 else [override]
    if value.startswith(("/", ".", "~")) and not Path(value).expanduser().is_dir():
        raise InputError.of(
            "model", value, f"{', '.join(choices('model'))}, a hub id, or a folder", "there is no such folder"
        )
    return ["model=hub", f"model.path={quoted}"] if "/" in value or Path(value).is_dir() else [override]


def _parse(override: str) -> Override:
    try:
        if "=" not in override:
            raise InputError.of("override", override, "key=value")
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise InputError.of("override", override, "key=value", _first_line(error)) from None


def _is_group(override: Override) -> bool:
    return override.key_or_group in groups()


def _check_value(override: Override, text: str) -> None:
    key, value = override.key_or_group, text.partition("=")[2]
    if override.is_sweep_override():
        raise InputError.of(key, value, "one value; flt sweep takes several")
    if _is_group(override) and override.value() not in choices(key):
        raise InputError.of(key, value, choices(key))


def _check_key(base: DictConfig, override: Override, text: str) -> None:
    key = override.key_or_group
    if override.is_add() or override.is_delete() or override.is_force_add():
        raise InputError.of("override", text, "key=value for a key that is there")
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if isinstance(node, DictConfig) and name in node:
        return
    known = list(node) if isinstance(node, DictConfig) else [*base, *(g for g in groups() if g not in base)]
    where = f"a key of {parent}: " if isinstance(node, DictConfig) and parent else ""
    raise InputError.of(key, text.partition("=")[2], f"{where}{', '.join(map(str, known))}", "there is no such key")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination of comma-separated values, as Hydra's basic sweeper reads them.

    Example:
        >>> expand(["algo=hafl,fedit", "seed=0,1", "ranks=[2,4]"])[1]
        ['algo=hafl', 'seed=1', 'ranks=[2,4]']
    """
    parsed = [(override, _parse(override)) for override in overrides]
    values = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()] if o.is_sweep_override() else [text]
        for text, o in parsed
    ]
    return [list(combination) for combination in itertools.product(*values)]
