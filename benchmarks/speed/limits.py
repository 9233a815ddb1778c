"""What a step runs into: arithmetic, memory bandwidth or Python, and the profile that says so.

.venv/bin/python -m benchmarks.speed.limits WORKLOAD
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from benchmarks.speed import gpu, plain, workload
from benchmarks.speed.contestant import ONE_THREAD
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "linear")
REPEATS, STEPS, COPIED = 15, 3, 1 << 26
"""Timings of which the median counts; steps under the profiler; float32 numbers that the copy test copies."""


def measure(source: Path) -> dict[str, float]:
    """Of the hand-written loop's step on one thread.

    Returns:
        ``step_ms``; ``gflops`` that the step reaches; ``peak_gflops`` of the products of its own shapes; ``copy_gbs``;
        and the shares of the step's time in matrix products (``products``), in the other operators, which move memory
        (``moving``), and outside of all operators (``python``: the interpreter, autograd, the dispatcher).
    """
    torch.set_num_threads(1)
    given = workload.load(source)
    model, trained = given.model()
    order = given.order[0, 0]

    def step() -> None:
        plain.train(model, trained, given.data, order[:1], given.hyper)

    step()
    seconds = _median(step)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        whole = (time.perf_counter() - began) * 1e6
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
    operators = {event.key for event in seen.key_averages() if event.key.startswith("aten::")}
    inside = {name.removeprefix("aten::"): spent[name.removeprefix("aten::")] for name in operators}
    products = sum(its for name, its in inside.items() if name.startswith(PRODUCTS))
    moving = sum(inside.values()) - products
    shares = {"products": products / whole, "moving": moving / whole}
    return {
        "step_ms": seconds * 1e3,
        "gflops": gpu.flops(given) / seconds / 1e9,
        "peak_gflops": _product_rate(given) / 1e9,
        "copy_gbs": _copy_rate() / 1e9,
        **shares,
        "python": max(0.0, 1 - sum(shares.values())),
    }


def in_a_process(source: Path) -> dict[str, float]:
    """:func:`measure` in a process of its own, on one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.limits", str(source)],
        env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def sentence(found: dict[str, float]) -> str:
    """What :func:`measure` found, for people."""
    largest = max(("products", "moving", "python"), key=lambda key: found[key])
    name = {"products": "arithmetic", "moving": "memory bandwidth", "python": "Python"}[largest]
    shares = ", ".join(f"{key} {found[key]:.0%}" for key in ("products", "moving", "python"))
    rates = f"{found['gflops']:.0f} of {found['peak_gflops']:.0f} GFLOP/s, copies at {found['copy_gbs']:.1f} GB/s"
    return f"{name} ({shares}; a step {found['step_ms']:.0f} ms, {rates})"


def _product_rate(given: workload.Workload) -> float:
    """FLOP/s of the encoder's widest product, tokens times hidden to intermediate."""
    tokens, hidden = given.size.batch * given.size.length, given.config["hidden_size"]
    one, other = torch.randn(tokens, hidden), torch.randn(hidden, given.config["intermediate_size"])
    return 2 * tokens * hidden * other.shape[1] / _median(lambda: one @ other)


def _copy_rate() -> float:
    """Bytes per second, read and written, of copying what no cache holds."""
    one, other = torch.ones(COPIED), torch.zeros(COPIED)
    return 2 * 4 * COPIED / _median(lambda: other.copy_(one))


def _median(run: Callable[[], object]) -> float:
    def timed() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return statistics.median(timed() for _ in range(REPEATS))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
