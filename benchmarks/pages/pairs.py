"""Combines every part of a recipe with every part of another kind, on FedIT with LoRA and two tasks."""

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
"""Number of rounds: enough for a first stage, and for a cut by the schedule after it."""
Part = tuple[str, str]
"""Group of a part, such as ``rule``, and name of the part."""


def defaults() -> dict[str, str]:
    """Returns group -> name of its default part."""
    listed = OmegaConf.load(config_folder() / "train.yaml").defaults
    chosen = OmegaConf.merge(*(entry for entry in listed if entry != "_self_"))
    return {group: str(chosen[group]) for group in PARTS}


def parts() -> list[Part]:
    """Returns all parts except the default ones."""
    usual = defaults()
    return [(group, name) for group in PARTS for name in PARTS[group] if name != usual[group]]


def pairs() -> Iterator[tuple[Part, Part]]:
    """Yields all pairs of parts that belong to different groups."""
    return ((one, two) for one, two in itertools.combinations(parts(), 2) if one[0] != two[0])


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A small federation on which combinations of parts are built.

    Attributes:
        cfg: Configuration whose parts are replaced.
        made: Federation with two jobs per client.
        layout: Layout of its module, with LoRA.
    """

    cfg: TrainConfig
    made: Federation
    layout: Layout

    def recipe(self, *parts: Part) -> Recipe:
        """Returns a recipe with these parts, and with the parts that they need.

        Raises:
            InputError: The parts can't be combined.
        """
        brought = {group: name for part in parts for group, name in self.company(part)}
        return self._built({**brought, **dict(parts)})

    def refusal(self, *parts: Part) -> str | None:
        """Returns the error message that refuses these parts; None if they can be combined."""
        return self._refused(lambda: self.recipe(*parts))

    @functools.cache  # noqa: B019  # a bench lives as long as the program
    def company(self, part: Part) -> tuple[Part, ...]:
        """Returns the part that a part needs, as a tuple: empty if it needs none, else the first part that helps."""
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
    """Returns a part's default settings."""
    return OmegaConf.to_container(OmegaConf.load(config_folder() / group / f"{name}.yaml"))


@functools.cache
def bench() -> Bench:
    """Returns the bench, which is made once."""
    cfg, made = load_config(["algo=fedit", f"rounds={ROUNDS}"]), toy("text", "per_task")
    return Bench(cfg, made, build.attach(cfg, made.module))
