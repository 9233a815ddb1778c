"""The batched engine beside the serial one on a GPU, in bf16, and the share of the card's matrix rate they reach."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.speed import cases, pairing, plain, workload
from torch.utils.flop_counter import FlopCounterMode

BATCHES, LENGTHS, ROUNDS, SIDE = (4, 16, 64), (64, 256), 5, 8192
BF16 = ("--set", "precision=bf16-mixed")


def measure(folder: Path) -> list[dict[str, Any]]:
    """One row per size and engine; none, and a line that says so, without a GPU.

    Args:
        folder: Of workloads, logs and weights.
    """
    if not torch.cuda.is_available():
        print("gpu: skipped, no GPU", flush=True)
        return []
    rows, rate = [], matrix_rate()
    print(f"gpu: {torch.cuda.get_device_name()}, bf16 matrices {rate / 1e12:.0f} TFLOP/s", flush=True)
    for length in LENGTHS:
        for batch in BATCHES:
            rows += _row(folder / f"{length}-{batch}", length, batch, rate)
    return rows


def matrix_rate() -> float:
    """FLOP/s of a large bf16 product on this card: the median of some."""
    one = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    other, seconds = torch.randn_like(one), []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        one @ other
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / sorted(seconds)[len(seconds) // 2]


def flops(given: workload.Workload) -> int:
    """Floating-point operations of one client's step, forward and backward."""
    model, _ = given.model()
    with FlopCounterMode(display=False) as counter:
        batch = {key: its[given.order[0, 0, 0]] for key, its in given.data.items()}
        plain.loss(model, **batch).backward()
    return counter.get_total_flops()


def _row(folder: Path, length: int, batch: int, rate: float) -> list[dict[str, Any]]:
    size = workload.Size("minilm" if not workload.available("minilm") else "tiny")
    size = dataclasses.replace(size, length=length, batch=batch, examples=8 * batch, rounds=ROUNDS + pairing.CHECKED)
    source = workload.make(folder, size)
    work = flops(workload.load(source)) * size.cohort * size.steps
    rows, why = [], {}
    with cases.started([cases.contestant(its, source, folder, BF16) for its in cases.ONE_PROCESS], why) as there:
        if "serial" not in there:
            print(f"gpu: {why}", flush=True)
            return []
        timed = pairing.compare(there, "serial", ROUNDS)
    for name in timed.rounds:
        wall = timed.median(name, "wall")
        ratio, difference = timed.ratio(name, "serial", "wall").value, timed.differences[name]
        said = {"engine": name, "model": size.name, "length": length, "batch": batch, "wall": wall, "ratio": ratio}
        rows.append({**said, "share": work / wall / rate, "difference": difference})
        print(f"gpu: {rows[-1]}", flush=True)
    return rows
