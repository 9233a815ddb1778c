"""FlexLoRA's SVD from the stacked factors beside that of the dense mean product: writes docs/flexlora.md.

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
"""Of a square layer."""


def stacked(bs: list[Tensor], rows: list[Tensor]) -> Tensor:
    """The best product of the rank, by QR of the stacked factors and the SVD of a core of (clients x rank)^2."""
    left, _, right = factors(torch.cat(bs, dim=1), torch.cat(rows))
    return left[:, :RANK] @ right[:RANK]


def dense(bs: list[Tensor], rows: list[Tensor]) -> Tensor:
    """The same by the SVD of the mean product itself."""
    mean = sum((b @ a for b, a in zip(bs, rows, strict=True)), torch.zeros(len(bs[0]), rows[0].shape[1]).double())
    u, values, v = torch.linalg.svd(mean, full_matrices=False)
    return (u[:, :RANK] * values[:RANK]) @ v[:RANK]


def seconds(work: Callable[[list[Tensor], list[Tensor]], Tensor], *given: list[Tensor]) -> tuple[float, Tensor]:
    """Time of one call, and what came of it."""
    began = time.perf_counter()
    found = work(*given)
    return time.perf_counter() - began, found


def row(width: int) -> str:
    """A line of the table: the ratio of paired calls, and how far the two products are apart."""
    generator = torch.Generator().manual_seed(width)
    bs, rows = (
        [torch.randn(*shape, generator=generator, dtype=torch.float64) / width for _ in range(CLIENTS)]
        for shape in ((width, RANK), (RANK, width))
    )
    ratios, apart = [], 0.0
    stacked(bs, rows), dense(bs, rows)  # the first calls load what they need
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
        f"The truncated SVD of the mean product of {CLIENTS} clients' factors of rank {RANK}, one layer, float64: from",
        "the QR decompositions of the stacked factors and the SVD of a small core (`rule: svd`), beside the SVD of the",
        f"dense mean. Time of the first over the second, median and range of {REPEATS} paired calls, and the relative",
        "distance of the two products in Frobenius norm.",
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
