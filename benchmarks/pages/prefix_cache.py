"""Measures the time that the prefix cache and bf16 save on a sentence encoder: writes docs/prefix_cache.md.

FLT_DATA=<folder of data sets> .venv/bin/python benchmarks/pages/prefix_cache.py
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "2"

import torch

from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.client.trainer import LocalTrainer
from flt.core import cache
from flt.data.clients import JobData
from flt.models.adapters.lora import LoraSettings, attach
from flt.protocol.job import Job
from flt.protocol.state import ClientState
from flt.run import build
from flt.run.prefix_cache import prefixed
from flt.run.resume import configure
from flt.run.workload import federation
from flt.server.aggregation import ServerAggregation

EXAMPLES, EPOCHS, REPEATS, THREADS = 512, 5, 3, 2
PAGE = Path(__file__).parents[2] / "docs" / "prefix_cache.md"
PACKAGES = ("torch", "lightning", "transformers", "peft")
COMMON = [
    "algo=fedit", "data=newsgroups20", "model=minilm", "model.max_length=64", "model.adapt_layers=top2",
    "batch_size=16", "local.steps=null", f"local.epochs={EPOCHS}", "eval.client_examples=0", "eval.examples=20",
    "eval.test_examples=20",
]  # fmt: skip
ROWS = {
    "float32": [],
    "float32, prefix cache": ["prefix_cache=on"],
    "bf16": ["precision=bf16-mixed"],
    "bf16, prefix cache": ["precision=bf16-mixed", "prefix_cache=on"],
    "bf16, prefix cache, fused attention": ["precision=bf16-mixed", "prefix_cache=on", "model.attention=sdpa"],
}
BOUNDS = {"float32, prefix cache": 0.68, "bf16, prefix cache": 0.40}


def seconds(overrides: list[str]) -> tuple[float, float]:
    """Returns wall and CPU time of one fit. They include making the cache, but not loading data and model."""
    cfg = configure([*COMMON, *overrides])
    made = federation(cfg)
    layout, recipe = attach(made.module, LoraSettings(), 0, cfg.model["adapt_layers"]), Recipe(Mean())
    weights = {name: parameter.detach() for name, parameter in made.module.named_parameters()}
    server = ServerAggregation(recipe, layout, 1, 0, {})
    job = Job(0, 0, 8)
    payload = server.broadcast(server.initial(weights), job, [job])
    share = made.clients[0].data[0]
    examples = share.dataset.view(range(EXAMPLES))
    data = JobData(examples, torch.arange(EXAMPLES).numpy(), torch.arange(0).numpy())
    made.clients = [type(made.clients[0])(0, (data,))]
    made.validation = made.test = {}
    shutil.rmtree(cache.folder() / "prefix", ignore_errors=True)
    cache.release()
    wall, cpu = time.perf_counter(), time.process_time()
    if cfg.prefix_cache:
        made = prefixed(made, layout, cfg, torch.device("cpu"), show=False)
    local_trainer = LocalTrainer(made.module, layout, recipe, build.local_settings(cfg), {}, made.collate)
    update, _ = local_trainer.local_fit(made.clients[0].data[0], payload, ClientState(), 0)
    assert update.steps == EPOCHS * EXAMPLES // 16
    return time.perf_counter() - wall, time.process_time() - cpu


def page(times: dict[str, list[tuple[float, float]]]) -> str:
    """Returns the page: the table, its explanation, and the versions of the packages."""
    reference = times["float32"]
    lines = [
        "# Time that the prefix cache saves",
        "",
        f"One client trains {EPOCHS} epochs in batches of 16 on {EXAMPLES} posts of 20 Newsgroups, cut at 64",
        "tokens. The model is all-MiniLM-L6-v2 with LoRA on queries and values of its top two blocks. The",
        "time includes making the cache, which each repetition makes again. The table shows each time divided",
        f"by the time of float32 without the cache, as median and range over {REPEATS} repetitions. *Bound* is",
        "the largest allowed ratio of the wall times.",
        "",
        "| | wall time | CPU time | bound |",
        "|---|---|---|---|",
    ]
    for row, found in times.items():
        pairs = [[mine[i] / theirs[i] for mine, theirs in zip(found, reference, strict=True)] for i in (0, 1)]
        cells = [f"{statistics.median(p):.2f} ({min(p):.2f}-{max(p):.2f})" for p in pairs]
        lines.append(f"| {row} | {cells[0]} | {cells[1]} | {BOUNDS.get(row, '-')} |")
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in PACKAGES)
    lines += [
        "",
        "In bf16 on a CPU, `model.attention=auto` chooses transformers' `eager` attention. The last row has",
        "PyTorch's fused kernel instead, whose backward pass is slow in this case.",
        "",
        f"Made by `.venv/bin/python benchmarks/pages/prefix_cache.py`, {THREADS} threads of an {platform.machine()} CPU"
        f"{' with AMX bf16' if amx() else ''}, Python {platform.python_version()}, {versions}.",
    ]
    return "\n".join(lines) + "\n"


def amx() -> bool:
    """Returns whether the processor multiplies bf16 matrices in hardware."""
    with contextlib.suppress(OSError):
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    return False


def main() -> None:
    """Runs every row in turn, several times, and writes the page."""
    torch.set_num_threads(THREADS)
    times: dict[str, list[tuple[float, float]]] = {row: [] for row in ROWS}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FLT_CACHE"] = folder
        for repeat in range(REPEATS):
            for row, overrides in ROWS.items():
                times[row].append(seconds(overrides))
                print(f"{repeat + 1}/{REPEATS} {row}: {times[row][-1][0]:.1f} s", flush=True)
    PAGE.write_text(page(times))
    print(PAGE.read_text())
    for row, bound in BOUNDS.items():
        ratio = statistics.median(mine[0] / all[0] for mine, all in zip(times[row], times["float32"], strict=True))
        if ratio > bound:
            raise SystemExit(f"{row}: {ratio:.2f} is above {bound}")


if __name__ == "__main__":
    main()
