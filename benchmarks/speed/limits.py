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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import gpu, plain, workload
from benchmarks.speed.contestant import ONE_THREAD
from torch.profiler import ProfilerActivity, profile

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "linear")
REPEATS, STEPS, COPIED = 15, 3, 1 << 26
SHARINGS, SHARED_STEPS = 5, 8
"""Timings of which the median counts; steps under the profiler; float32 numbers that the copy test copies;
rounds of sharing, and steps of each process in one."""


def measure(source: Path) -> dict[str, float]:
    """Of the hand-written loop's step on one thread.

    Returns:
        ``step_ms``; ``gflops`` that the step reaches; ``peak_gflops`` of the widest product alone; ``copy_gbs``;
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
    return {**json.loads(done.stdout.splitlines()[-1]), "two_to_one": shared_cores(source)}


def sentence(found: dict[str, float]) -> str:
    """What :func:`measure` found, for people."""
    largest = max(("products", "moving", "python"), key=lambda key: found[key])
    name = {"products": "arithmetic", "moving": "memory bandwidth", "python": "Python"}[largest]
    shares = ", ".join(f"{key} {found[key]:.0%}" for key in ("products", "moving", "python"))
    rates = f"{found['gflops']:.0f} of {found['peak_gflops']:.0f} GFLOP/s, copies at {found['copy_gbs']:.1f} GB/s"
    two = f"two processes that share nothing take {found['two_to_one']:.2f} of one's time"
    return f"{name} ({shares}; a step {found['step_ms']:.0f} ms, {rates}; {two})"


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


def shared_cores(source: Path) -> float:
    """The wall time of two processes that take half of the loop's steps each, to that of one that takes them all.

    No engine can have a smaller one: the processes have nothing to tell each other.
    """
    command = [sys.executable, "-m", "benchmarks.speed.limits", str(source), "--wait"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both: list[Any] = [subprocess.Popen(command, env={**os.environ, **ONE_THREAD}, **pipes) for _ in range(2)]  # type: ignore[call-overload]  # keywords by name
    try:
        _told(both, 1)
        ratios = []
        for _ in range(SHARINGS):
            alone = _told(both[:1], 2 * SHARED_STEPS)
            ratios.append(_told(both, SHARED_STEPS) / alone)
        return statistics.median(ratios)
    finally:
        for its in both:
            its.stdin.close()
            its.wait()


def _told(processes: Sequence[Any], steps: int) -> float:
    """Seconds until all of the processes have taken so many steps."""
    began = time.perf_counter()
    for its in processes:
        its.stdin.write(f"{steps}\n")
        its.stdin.flush()
    for its in processes:
        its.stdout.readline()
    return time.perf_counter() - began


def _wait(source: Path) -> None:
    """Takes as many steps as each line of the input says."""
    torch.set_num_threads(1)
    given = workload.load(source)
    model, trained = given.model()
    for line in sys.stdin:
        for _ in range(int(line)):
            plain.train(model, trained, given.data, given.order[0, 0][:1], given.hyper)
        print("done", flush=True)


if __name__ == "__main__":
    if "--wait" in sys.argv:
        _wait(Path(sys.argv[1]))
    else:
        print(json.dumps(measure(Path(sys.argv[1]))))
