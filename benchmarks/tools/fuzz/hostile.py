"""Updates with hostile values, shapes and counts, under every rule. What is exported has to be finite in all cases."""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from benchmarks.pages.toy_federation import toy
from benchmarks.tools.fuzz.running import Make
from torch import Tensor

from flt.protocol.messages import Update
from flt.run.compose import load_config
from flt.run.conf_groups import choices
from flt.run.run import Run
from flt.server.callback import FedCallback
from flt.server.federator import Federator

BASES = (
    ["algo=fedit"], ["algo=hafl"], ["algo=scaffold"], ["algo=fedex_lora"], ["algo=flora"], ["algo=flexlora"],
    ["algo=hetlora"], ["algo=fedadam"], ["algo=fl_tac"], ["algo=fedavg"], ["algo=sa_fedlora"],
    *(["algo=fedit", f"rule={rule}"] for rule in ("krum", "multi_krum", "median", "trimmed_mean", "norm_bound")),
)  # fmt: skip
SHORT = ["rounds=2", "local.steps=1", "batch_size=4", "clients=2", "threads=1"]
NUMBERS = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3.4e38, 1e-45, 0.0, 1e12)
COUNTS = (0, -1, 1, 2**31, 2**62, 2**63 - 1)


class Attack(FedCallback):
    """Adds a transform that changes the updates of client 1.

    Attributes:
        draw: Generator of the changes.
        done: What was changed.
    """

    def __init__(self, draw: random.Random) -> None:
        self.draw, self.done = draw, ""

    def on_fit_start(self, federator: Federator) -> None:
        """Adds the transform."""
        federator.transforms = (*federator.transforms, self.changed)

    def changed(self, updates: list[Update]) -> Any:
        """Returns the updates of a client, changed if it is client 1."""
        if updates[0].job[0] != 1:
            return updates
        if self.draw.random() < 0.05:
            return self.draw.choice((None, [None], 3, updates * 2, "x"))
        return [self._one(update) for update in updates]

    def _one(self, update: Update) -> Update:
        kind = self.draw.choice(("values", "values", "values", "kind", "counts", "scores", "scalars", "kept", "job"))
        self.done += f"{kind} "
        if kind in ("values", "kind") and update.tensors:
            name = self.draw.choice(sorted(update.tensors))
            names = [name] if self.draw.random() < 0.5 else list(update.tensors)
            change = self._filled if kind == "values" else self._retyped
            changed = {each: change(update.tensors[each]) for each in names}
            return dataclasses.replace(update, tensors={**update.tensors, **changed})
        if kind == "counts":
            key = self.draw.choice(("examples", "steps", "round", "base_version"))
            return dataclasses.replace(update, **{key: self.draw.choice(COUNTS)})
        if kind == "scores":
            scores = {layer: (ids, self._filled(values)) for layer, (ids, values) in update.scores.items()}
            return dataclasses.replace(update, scores=scores)
        if kind == "scalars":
            value = self.draw.choice((*NUMBERS, -1.0))
            return dataclasses.replace(update, scalars=dict.fromkeys(update.scalars, value), metrics={"x": value})
        if kind == "kept":
            kept = {layer: self.draw.choice(((), (0,), ids[::-1], (*ids, 99))) for layer, ids in update.kept.items()}
            return dataclasses.replace(update, kept=kept)
        return dataclasses.replace(update, job=self.draw.choice(((0, 0), (7, 0), (1, 7), (-1, 0))))

    def _filled(self, tensor: Tensor) -> Tensor:
        filled = torch.full_like(tensor, self.draw.choice(NUMBERS))
        return torch.where(torch.rand(tensor.shape) < 0.5, filled, tensor) if self.draw.random() < 0.3 else filled

    def _retyped(self, tensor: Tensor) -> Tensor:
        huge = torch.full_like(tensor, 1e300, dtype=torch.float64)
        return self.draw.choice((tensor.long(), tensor.bool(), tensor.half(), huge, tensor.reshape(-1), tensor[:0]))


def attempt(words: list[str], attack: Attack) -> None:
    """Trains two rounds under an attack, and checks that what is exported is finite.

    Raises:
        InputError: The run is refused or ended in one line.
        AssertionError: A number of the export isn't finite.
    """
    cfg = load_config([*words, f"root={tempfile.mkdtemp(dir='.')}"])
    result = Run(cfg, toy("image", cfg.jobs), own=[attack], show=False)()
    for path in result.exported.rglob("*.safetensors"):
        for name, tensor in safetensors.torch.load(path.read_bytes()).items():
            assert bool(tensor.isfinite().all()), f"{name} isn't finite after {attack.done}"


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes an attack under some recipe, where failing jobs end the run or don't."""
    words = [*draw.choice(BASES), *SHORT, *draw.choice(([], ["min_updates=1"], ["min_updates=1", "max_retries=1"]))]
    if draw.random() < 0.2:
        words.append(f"compression={draw.choice(choices('compression'))}")
    if "clients=2" in words and any(word in words for word in ("rule=krum", "rule=multi_krum")):
        words += ["rule.hostile=0.0"]
    attack = Attack(draw)
    return " ".join(words), lambda: attempt(words, attack)


FUZZERS: dict[str, Make] = {"hostile": example}
