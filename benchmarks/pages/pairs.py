"""Every part of a recipe with every other part, on FedIT with LoRA and two tasks."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.pages.toy_federation import toy
from omegaconf import OmegaConf

from flt.algorithm.recipe import Recipe
from flt.algorithm.registry import PARTS
from flt.core.errors import InputError
from flt.protocol.layout import Layout
from flt.run import build
from flt.run.assembly import served
from flt.run.compose import load_config
from flt.run.conf_groups import config_folder
from flt.run.federation import Federation
from flt.run.schema import TrainConfig

ROUNDS = 3
"""Enough for a first stage and for a cut after it."""
Part = tuple[str, str]
"""Its group, such as ``rule``, and its name."""


def defaults() -> dict[str, str]:
    """Group -> the part that a recipe has of it unless it says otherwise."""
    listed = OmegaConf.load(config_folder() / "train.yaml").defaults
    chosen = OmegaConf.merge(*(entry for entry in listed if entry != "_self_"))
    return {group: str(chosen[group]) for group in PARTS}


def parts() -> list[Part]:
    """All but those."""
    usual = defaults()
    return [(group, name) for group in PARTS for name in PARTS[group] if name != usual[group]]


def pairs() -> Iterator[tuple[Part, Part]]:
    """Any two that don't take the same place."""
    return ((one, two) for one, two in itertools.combinations(parts(), 2) if one[0] != two[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What parts are tried on.

    Attributes:
        cfg: The configuration whose parts are replaced.
        made: Clients with two jobs each.
        layout: Of its module, with LoRA.
    """

    cfg: TrainConfig
    made: Federation
    layout: Layout

    def recipe(self, *parts: Part) -> Recipe:
        """A recipe with these parts, each of which brings what it has no meaning without.

        Raises:
            InputError: They have no meaning together.
        """
        brought = {group: name for part in parts for group, name in self.company(part)}
        return self._built({**brought, **dict(parts)})

    def refusal(self, *parts: Part) -> str | None:
        """The line that refuses these parts; None where they go together."""
        return self._refused(lambda: self.recipe(*parts))

    @functools.cache  # noqa: B019  # a bench lives as long as the program
    def company(self, part: Part) -> tuple[Part, ...]:
        """What a part needs beside it to have a meaning: nothing, or the first other part that gives it one."""
        one_more = ((other,) for other in parts() if other[0] != part[0])
        tried = ((), *one_more)
        found = (more for more in tried if self._refused(lambda m=more: self._built(dict([*m, part]))) is None)
        return next(found, ())

    def _built(self, chosen: Mapping[str, str]) -> Recipe:
        cfg = dataclasses.replace(self.cfg, **{group: settings(group, name) for group, name in chosen.items()})
        tasks = self.made.tasks()
        return build.recipe(cfg, len(set(tasks.values())), tasks)

    def _refused(self, making: Any) -> str | None:
        try:
            served(making(), self.layout, self.made.clients)
        except InputError as error:
            return str(error)
        return None


@functools.cache
def settings(group: str, name: str) -> Any:
    """A part's default settings."""
    return OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))


@functools.cache
def bench() -> Bench:
    """The bench, made once."""
    cfg, made = load_config(["algo=fedit", f"rounds={ROUNDS}"]), toy("text", "per_task")
    return Bench(cfg, made, build.attach(cfg, made.module))
