"""Random overrides of the command line, up to the checks of a run without training."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pages.toy_federation import toy
from benchmarks.tools.fuzz.running import Make
from omegaconf import DictConfig

from flt.data.deal import TaskData, deal
from flt.data.encode import encode_images
from flt.data.tasks import load_all
from flt.run.assembly import assemble
from flt.run.build import WIDEST, engine_settings
from flt.run.compose import compose_config, expand, load_choice, load_config
from flt.run.conf_groups import choices, groups
from flt.run.resume import configure
from flt.run.run import Run
from flt.run.schema import TrainConfig

VALUES = (
    "0", "1", "-1", "2", "3", "1.5", "0.5", "true", "false", "null", "nan", "inf", "-inf", "1e400", "1e38", "1e-400",
    "1" * 400, "-" + "9" * 30, "1" * 5000, "9223372036854775807", "9223372036854775808", "2147483648", "1_000",
    "0x10", "1e5", "''", "a", "[]", "[1,2]", "[1,1]", "[-1]", "[0.5]", "[[1]]", "[null]", "[a]", "[1.0e30]", "{}",
    "{a: 1}", "{a: {b: 1}}", "{a: [1,2]}", "{all: [1,2]}", "{all: [2,1]}", "{all: [1]}", "{all: [*]}", "{name: mean}",
    "???", "${seed}", "${nowhere}", "${oc.env:NOWHERE}", "${a.b", "${oc.decode:x}", "[", "]", "{", "}", "\0", "é",
    "\udcff", "☃", "a b", "'a", '"a"', "1,2", "range(1,10)", "range(1,2,0)", "choice(1,2)", "sort(3,2)", "int(3)",
    "int(a)", "str(3)", "glob(*)", "interval(1,2)", "tag(a,b)", "shuffle(1,2)", "../x", "/etc", "a/b", "_base",
    "x" * 300, "{" * 50 + "}" * 50, "[" * 60 + "]" * 60, "\\", "\n", "%s", "~", "$", "*", "a:b", "'\\''",
)  # fmt: skip
LETTERS = "abc._-/@+~=[]{}$0,1'\"é: \n\\*#%"
USUAL = ("key", "key", "key", "key", "key", "key", "choice", "choice", "word")
SHORT: dict[str, Any] = {"rounds": 1, "devices": 1, "root": "lightning_logs", "threads": 1}
LAUNCHED = ("distributed", "sharded", "strategy")


@functools.cache
def keys() -> list[str]:
    """Returns all keys of the configuration, and of the choices of its groups."""
    found = set(_keys(compose_config([])))
    for group in sorted(set(groups()) - {"algo", "experiment"}):
        for name in choices(group):
            found |= {f"{group}.{key}" for key in _keys(load_choice(group, name))}
    return sorted(found)


def _keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        yield f"{prefix}{name}"
        if isinstance(value, DictConfig):
            yield from _keys(value, f"{prefix}{name}.")


def override(draw: random.Random) -> str:
    """Returns an override of some key, most often in the form key=value."""
    kind = draw.choice(USUAL)
    if kind == "choice":
        group = draw.choice([group for group in groups() if choices(group)])
        return f"{group}={draw.choice(choices(group))}"
    key = draw.choice([*keys(), *groups()]) if kind == "key" else _word(draw)
    if draw.random() < 0.1:
        key += draw.choice((".x", ".name", "._target_", ".", "..", ".0", "@x", "@_global_", "@:x", "@a:b", "[0]"))
    value = draw.choice(VALUES) if draw.random() < 0.85 else _word(draw)
    prefix = draw.choice(("+", "++", "~", "@", "-", "--")) if draw.random() < 0.06 else ""
    return f"{prefix}{key}{'=' if draw.random() < 0.97 else ''}{value}"


def _word(draw: random.Random) -> str:
    return "".join(draw.choice(LETTERS) for _ in range(draw.randrange(10)))


def overrides(draw: random.Random) -> list[str]:
    """Returns the overrides of one command line."""
    return [override(draw) for _ in range(draw.choice((1, 1, 2, 3)))]


def attempt(words: list[str]) -> TrainConfig:
    """Builds what a command line describes, without training.

    Raises:
        InputError: The command line is refused.
    """
    cfg = configure(words)
    engine_settings(cfg)
    causal = bool(cfg.data.get("response"))
    assemble(_small(cfg), toy("causal" if causal else "image", cfg.jobs))
    if cfg.data["name"] == "digits":
        data_of(cfg)
    return cfg


def data_of(cfg: TrainConfig) -> None:
    """Divides the digits among the clients as a configuration says."""
    for found in load_all(cfg):
        train = encode_images(found.raw.splits["train"], found.raw, 8, 1)
        parts = {task: of_task["train"] for task, of_task in found.tasks.items()}
        deal(cfg, [TaskData(task, {"train": train.view(*part)}) for task, part in parts.items()])


def trained(words: list[str]) -> None:
    """Trains a round or less of a tiny model with the settings of a command line.

    Raises:
        InputError: The command line is refused, or the training fails because of it.
    """
    cfg = attempt(words)
    if cfg.engine["name"] in LAUNCHED or cfg.resume is not None or cfg.compile:
        return
    Run(_small(cfg), toy("image", cfg.jobs), show=False)()


def _small(cfg: TrainConfig) -> TrainConfig:
    """Returns a configuration that takes less time, and the toy's own data and model."""
    local = dataclasses.replace(cfg.local)
    local.steps, local.epochs = (value and min(value, 2) for value in (local.steps, local.epochs))
    local.accumulate = min(local.accumulate, 4)
    adapter = {**cfg.adapter}
    if isinstance(adapter.get("rank"), int) and adapter["rank"] <= WIDEST:
        adapter["rank"] = min(adapter["rank"], 64)
    model = {"name": "toy", "adapt_layers": cfg.model.get("adapt_layers", "all")}
    return dataclasses.replace(cfg, **SHORT, local=local, adapter=adapter, model=model, data={"name": "own"})


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a command line that is checked; one in twenty is also a sweep."""
    words = overrides(draw)
    return repr(words), (lambda: attempt(words)) if draw.random() < 0.95 else (lambda: expand(words))


def run_example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a command line that is trained for a round."""
    words = overrides(draw)
    return repr(words), lambda: trained(words)


def load_example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a command line of which only the configuration is built."""
    words = overrides(draw)
    return repr(words), lambda: load_config(words)


FUZZERS: dict[str, Make] = {"overrides": example, "runs": run_example}
