"""Configuration of a new run or a resumed run, built from the command line."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from flt.core.errors import InputError
from flt.core.files import last_name
from flt.core.plain_yaml import escaped
from flt.core.typed import typed
from flt.run.compose import RENAMED, compose_config, flat, load_config
from flt.run.conf_groups import choices, config_folder
from flt.run.loggers import check_installed
from flt.run.schema import TrainConfig
from flt.run.stored import BEFORE, read_settings, versions

LATER = (
    "rounds", "threads", "devices", "min_updates", "max_retries", "client_timeout", "checkpoint.keep", "cache.max_gb",
    "cache.keep", "export.base", "stop.accuracy", "stop.patience", "stop.simulated_hours", "engine.jobs", "logger",
    "report",
)  # fmt: skip
MAY_DIFFER = ("resume", "root", "algo", *LATER)
"""Keys whose values on the command line of a resume may differ from those in the saved configuration.

If the command line of the resume gives a key of LATER, the resumed run uses this value. ``rounds`` and ``stop`` set the
length of the run. ``min_updates``, ``max_retries`` and ``client_timeout`` decide when failures end the run. The other
keys of LATER don't change the results of the rounds, apart from rounding (``threads``, ``engine.jobs``).
"""
COSMETIC = ("name", "algo")
"""Keys that say how a run and its recipe are called. The parts of the recipe have keys of their own."""
COUNTING = ("plan", "schedule")
"""Parts that depend on the total number of rounds if their own key ``rounds`` is null."""
_log = logging.getLogger(__name__)


def fixed_settings(cfg: TrainConfig) -> dict[str, Any]:
    """Returns dotted key -> value of the settings that no resume may change: recipe, seed, data, model and so on.

    Checkpoints contain these settings as the identity of their run. Of a path, only the last name is kept, so that a
    run can be moved to another machine.
    """
    settings, free = flat(cfg), {*MAY_DIFFER, *COSMETIC}
    if any(settings.get(f"{part}.rounds", 0) is None for part in COUNTING):
        free.remove("rounds")
    return {key: value for key, value in settings.items() if key not in free}


def configure(overrides: Sequence[str]) -> TrainConfig:
    """Returns the configuration of a command line.

    With ``resume=``, the result is the saved configuration of the run to resume. Only the keys of LATER take their
    values from the command line, if they are given there.

    Raises:
        InputError: A key or value is wrong, a value differs from the one in the run to resume, or the package of a
            logger is missing.
    """
    cfg = load_config(overrides)
    if cfg.resume is None:
        check_installed(cfg.logger)
        return cfg
    folder = _find(cfg)
    if folder is None:
        where = f"{last_name(cfg.root)}/{cfg.name}"
        _log.warning("resume=%s: there is no run in %s yet, so a new one starts", cfg.resume, where)
        return dataclasses.replace(cfg, resume=None)
    saved, given = _saved(folder), set(_given(overrides))
    wanted = compose_config(overrides)
    if "algo" not in saved:  # written by an older version of flt; the name is compared below
        OmegaConf.update(saved, "algo", cfg.algo, force_add=True)
    defaults = compose_config([])
    for key in _lacking(saved, wanted):  # the older version behaved as the present one does with the key's default
        value = BEFORE[key] if key in BEFORE else OmegaConf.select(defaults, key)
        OmegaConf.update(saved, key, value, force_add=True)
    _compare(saved, wanted, given - set(MAY_DIFFER))
    if "algo" in given and (saved.algo != cfg.algo or saved.get("name", cfg.name) != cfg.name):
        raise InputError.of("algo", cfg.algo, str(saved.algo), "the run to go on with was started otherwise")
    if _counts_rounds(saved):
        _compare(saved, wanted, given & {"rounds"})
    for key in given & set(LATER):
        OmegaConf.update(saved, key, OmegaConf.select(wanted, key))
    saved.root, saved.resume = escaped(cfg.root), escaped(str(folder))
    resumed: TrainConfig = typed(TrainConfig, saved, "")
    check_installed(resumed.logger)
    return resumed


def _lacking(saved: DictConfig, wanted: DictConfig) -> list[str]:
    """Returns the keys that a saved configuration lacks because an older version of flt wrote it.

    Single settings within a part, such as ``rule.pad``, are left out. Those of the data have the same default in
    every file of conf/data.
    """
    whole = [str(key) for key in wanted if key not in saved]
    sections = [f.name for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(_type_of(f.name))]
    if isinstance(saved.get("data"), DictConfig) and "path" in saved.data:  # a user's own data have no settings
        sections.append("data")
    inner = [f"{s}.{key}" for s in sections if s in saved for key in wanted[s] if key not in saved[s]]
    return [*whole, *inner]


def _type_of(field: str) -> Any:
    return get_type_hints(TrainConfig)[field]


def _counts_rounds(saved: DictConfig) -> bool:
    """Returns whether the plan or the schedule depends on the total number of rounds.

    If one of them does, a resume may not change the total: with another total, the finished rounds would have differed.
    """
    return any(OmegaConf.select(saved, f"{part}.rounds", default=0) is None for part in COUNTING)


def _find(cfg: TrainConfig) -> Path | None:
    assert cfg.resume is not None
    if cfg.resume == "last":
        started = [path for path in versions(Path(cfg.root) / cfg.name) if os.path.isfile(path / "config.yaml")]
        return started[-1] if started else None
    folder = Path(cfg.resume)
    if not os.path.isfile(folder / "config.yaml"):  # Path.is_file would raise an error if access is denied
        raise InputError.of("resume", cfg.resume, "last, or the folder of a run", "there is no config.yaml in it")
    return folder


def _saved(folder: Path) -> DictConfig:
    saved = read_settings(folder, "resume")
    for section in (f.name for f in dataclasses.fields(TrainConfig) if dataclasses.is_dataclass(_type_of(f.name))):
        if section in saved and not isinstance(saved[section], DictConfig):
            raise InputError.of(
                "resume", folder, "a run with the config.yaml that flt wrote", f"{section} is no section"
            )
    for group, old in RENAMED:
        if isinstance(saved.get(group), DictConfig) and saved[group].get("name") == old:
            saved[group].name = RENAMED[group, old]
    return saved


def _given(overrides: Sequence[str]) -> Iterator[str]:
    """Yields the keys that a command line sets, directly or through the file that ``experiment=`` names."""
    for override in overrides:
        key, _, value = override.partition("=")
        yield key
        if key == "experiment" and (name := value.strip("'\" ")) in choices(key):
            yield from map(str, OmegaConf.load(config_folder() / key / f"{name}.yaml"))


def _compare(saved: DictConfig, wanted: DictConfig, keys: set[str]) -> None:
    """Checks that the values of some keys are the same in both configurations.

    Raises:
        InputError: Values differ. The message lists all keys whose values differ.
    """
    differing = {}
    for key in sorted(keys):
        old, new = (_plain(OmegaConf.select(cfg, key)) for cfg in (saved, wanted))
        if key == "engine":  # the run may have chosen engine.jobs itself, and a resume may change this key
            old, new = ({name: value for name, value in each.items() if name != "jobs"} for each in (old, new))
        if isinstance(old, dict) and isinstance(new, dict) and "name" in old:  # a part
            new = {name: value for name, value in new.items() if name in old}  # an older version lacks keys of today
        if old != new:
            differing[key] = (old, new)
    if differing:
        (key, (old, new)), *rest = differing.items()
        others = "".join(f", and {key}={new}, allowed is {old}" for key, (old, new) in rest)
        raise InputError.of(key, new, f"{old}{others}", "the run to go on with was started otherwise")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
