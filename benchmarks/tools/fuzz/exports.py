"""Random damage to exported folders: cards of other values and types, weights of other shapes, damaged bytes."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
from benchmarks.pages.toy_federation import toy
from benchmarks.tools.fuzz.messages import mutated, retyped_tensor, swap
from benchmarks.tools.fuzz.running import Make

import flt
from flt.models.module import ClientModule
from flt.run.compose import load_config
from flt.run.run import Run

RECIPES = ("fedit", "fedex_lora", "c2a", "fedavg", "hetlora")
SHORT = ["rounds=1", "local.steps=1", "batch_size=4", "clients=2", "threads=1"]
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**9, int("9" * 400), "", "x", "os.system", "../../x", "([a-z]+)+$", "x" * 1000, [], ["x"],
    [[]], {}, {"x": 1}, {"([a-z.]+)+!": 10**6}, [1] * 1000, "LORA", "IA3", "all-linear",
]  # fmt: skip
KEYS = ("megatron_config", "megatron_core", "auto_mapping", "rank_pattern", "corda_config", "layers_pattern", "new")


@functools.cache
def exported(algo: str) -> Path:
    """Returns what a run of one round exported. It is trained once."""
    cfg = load_config([f"algo={algo}", *SHORT, f"root={tempfile.mkdtemp(prefix='flt-fuzz-export-')}"])
    return Run(cfg, toy("image", cfg.jobs), show=False)().exported


def damage(draw: random.Random, folder: Path) -> str:
    """Damages a file of an exported folder, and returns what was done."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data = path.read_bytes()
    action = draw.random()
    if action < 0.1:
        path.unlink()
        path.mkdir()
        return f"a folder called {path.name}"
    if action < 0.25:
        data = mutated(draw, data or b"\0")
    elif path.suffix == ".json":
        card = json.loads(data)
        if isinstance(card, dict) and draw.random() < 0.4:
            card[draw.choice(KEYS)] = draw.choice(VALUES)
        else:
            swap(draw, card, VALUES)
        data = json.dumps(card).encode()
    elif path.suffix == ".safetensors":
        tensors = safetensors.torch.load(data)
        retyped_tensor(draw, tensors)
        data = safetensors.torch.save(tensors, {"format": "pt"})
    path.write_bytes(data)
    return f"{path.name}: {data[:3000]!r}"


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a damaged copy of an export, and loads it."""
    algo = draw.choice(RECIPES)
    copied = Path(shutil.copytree(exported(algo), folder / "export"))
    text = damage(draw, copied)
    module = toy("image", "per_client").module
    assert isinstance(module, ClientModule)
    return f"{algo} {text}", lambda: flt.load(copied, module.model)


FUZZERS: dict[str, Make] = {"exports": example}
