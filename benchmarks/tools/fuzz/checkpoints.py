"""Random damage to checkpoints, whose checksums are made right again. The run is then resumed for one more round."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pages.toy_federation import toy
from benchmarks.tools.fuzz.messages import VALUES, damaged, swap
from benchmarks.tools.fuzz.running import Make

from flt.callbacks.checkpoint import sealed
from flt.run.compose import load_config
from flt.run.run import Run
from flt.run.schema import TrainConfig

RECIPES = ("hafl", "scaffold", "fedex_lora", "fl_tac", "fedsa_lora", "fedadam", "sa_fedlora")
SHORT = ["rounds=2", "local.steps=1", "batch_size=4", "clients=2", "threads=1"]


@functools.cache
def finished(algo: str) -> tuple[TrainConfig, Path]:
    """Returns the configuration and the folder of a run with two finished rounds. It is trained once."""
    jobs = ["grouping=everyone"] if algo == "fl_tac" else []
    cfg = load_config([f"algo={algo}", *SHORT, *jobs, f"root={tempfile.mkdtemp(prefix='flt-fuzz-run-')}"])
    return cfg, Run(cfg, toy("image", cfg.jobs), show=False)().path


def damage(draw: random.Random, folder: Path) -> str:
    """Damages a file in the folder of the checkpoints, or puts a folder in its place. Returns what was done."""
    manifest = sorted(folder.glob("round_*.json"))[-1]
    content = json.loads(manifest.read_text())
    action = draw.choice(("state", "state", "state", "state", "private", "manifest", "folder"))
    names = [content["state"]] if action == "state" else sorted(content["files"])
    name = draw.choice(names)
    if action in ("state", "private"):
        data = damaged(draw, (folder / name).read_bytes())
        (folder / name).write_bytes(data)
        content["files"][name] = hashlib.sha256(data).hexdigest()
    elif action == "manifest":
        swap(draw, content, VALUES)
    else:
        name = draw.choice([name, manifest.name, "zz.safetensors", "round_0009.json", "clients/zz.safetensors"])
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)
        return f"a folder called {name}"
    manifest.write_text(json.dumps(sealed(content)))
    return f"{action} {name}: {content if action == 'manifest' else data!r}"


def example(draw: random.Random, folder: Path) -> tuple[str, Any]:
    """Makes a damaged copy of a finished run, and resumes it."""
    algo = draw.choice(RECIPES)
    cfg, path = finished(algo)
    copied = Path(shutil.copytree(path, folder / "version_0"))
    for old in sorted((copied / "checkpoints").glob("round_*.json"))[:-1]:
        old.unlink()  # the run can't go on from the checkpoint before
    text = damage(draw, copied / "checkpoints")
    resumed = dataclasses.replace(cfg, rounds=3, resume=str(copied), root=".")
    return f"{algo}: {text}", lambda: Run(resumed, toy("image", cfg.jobs), show=False)()


FUZZERS: dict[str, Make] = {"checkpoints": example}
