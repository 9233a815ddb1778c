"""Compares FlexLoRA's SVD from the stacked factors with the SVD of the dense product: writes docs/flexlora.md.

.venv/bin/python benchmarks/pages/flexlora.py
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor

from flt.algorithm.low_rank import factors

PAGE = Path(__file__).parents[2] / "docs" / "flexlora.md"
CLIENTS, RANK, REPEATS = 10, 8, 5
WIDTHS = (384, 768, 1536)
"""Widths of the square layers."""


def stacked(bs: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Returns the best product of rank RANK, by QR of the stacked factors and the SVD of a core (clients x rank)^2."""
    left, _, right = factors(torch.cat(bs, dim=1), torch.cat(rows))
    return left[:, :RANK] @ right[:RANK]


def dense(bs: list[Tensor], rows: list[Tensor]) -> Tensor:
    """Returns the best product of rank RANK, by the SVD of the mean product itself."""
    mean = sum((b @ a for b, a in zip(bs, rows, strict=True)), torch.zeros(len(bs[0]), rows[0].shape[1]).double())
    u, values, v = torch.linalg.svd(mean, full_matrices=False)
    return (u[:, :RANK] * values[:RANK]) @ v[:RANK]


def seconds(work: Callable[[list[Tensor], list[Tensor]], Tensor], *given: list[Tensor]) -> tuple[float, Tensor]:
    """Returns the time of one call in seconds, and its result."""
    began = time.perf_counter()
    found = work(*given)
    return time.perf_counter() - began, found


def row(width: int) -> str:
    """Returns a line of the table: the ratio of the times, and the distance of the two products."""
    generator = torch.Generator().manual_seed(width)
    bs, rows = (
        [torch.randn(*shape, generator=generator, dtype=torch.float64) / width for _ in range(CLIENTS)]
        for shape in ((width, RANK), (RANK, width))
    )
    ratios, apart = [], 0.0
    stacked(bs, rows), dense(bs, rows)  # The first calls take longer, because libraries are loaded.
    for _ in range(REPEATS):
        (ours, found), (theirs, expected) = seconds(stacked, bs, rows), seconds(dense, bs, rows)
        ratios.append(ours / theirs)
        apart = max(apart, float((found - expected).norm() / expected.norm()))
    if apart > 1e-9:
        raise SystemExit(f"width {width}: the products are {apart:.1e} apart")
    print(f"{width}: {statistics.median(ratios):.4f}, {apart:.0e} apart", flush=True)
    span = f"{statistics.median(ratios):.4f} ({min(ratios):.4f}-{max(ratios):.4f})"
    return f"| {width} x {width} | {span} | {apart:.0e} |"


def main() -> None:
    """Times every width and writes the page."""
    torch.set_num_threads(1)
    lines = [
        "# FlexLoRA without the dense matrix",
        "",
        f"FlexLoRA averages the products B A of {CLIENTS} clients, and computes a truncated SVD of rank {RANK}",
        "of their mean. This page compares two ways to compute this SVD, for one layer in float64. `rule:",
        "svd` uses QR decompositions of the stacked factors and the SVD of a small core. The other way forms",
        "the dense mean and computes its SVD. The column *time* is the time of the first way divided by that",
        f"of the second: median and range over {REPEATS} pairs of calls. The column *distance* is the relative",
        "distance of the two results in the Frobenius norm.",
        "",
        "| layer | time, stacked to dense | distance |",
        "|---|---|---|",
        *map(row, WIDTHS),
        "",
        f"Made by `.venv/bin/python benchmarks/pages/flexlora.py`, 1 thread of an {platform.machine()} CPU, "
        f"Python {platform.python_version()}, torch {version('torch').partition('+')[0]}.",
    ]
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
