"""Writes what a run found into docs/performance.md, between its markers, with a picture and the data beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results.worker import hardware, versions
from benchmarks.speed import curves, limits
from benchmarks.speed.cases import PEERS, ROOT

DOCS = ROOT / "docs"
BEGIN, END = "<!-- made by make bench: {} -->", "<!-- end of {} -->"
LABELS = {
    "hand": "hand-written loop", "exact": "the loop in float64", "two": "two processes",
    "two-batched": "two processes, batched", "flower": "Flower", "pfl": "pfl-research",
}  # fmt: skip


def publish(found: dict[str, Any], folder: Path = DOCS) -> None:
    """Replaces the parts of the page that this run measured; the others stay.

    Args:
        found: What ``Bench`` found.
        folder: Of the page.
    """
    path, data = folder / "performance.md", folder / "performance.json"
    kept = json.loads(data.read_text()) if data.exists() else {}
    made = {"command": "make bench BENCHARGS=--publish", "hardware": hardware(), "versions": {**versions(), **peers()}}
    lines = {**kept.get("lines", {}), **found.get("lines", {})}
    known = {**kept, **{key: its for key, its in found.items() if its}, "lines": lines, **made}
    data.write_text(json.dumps(known, indent=1) + "\n")
    text = path.read_text()
    for name, body in sections(known).items():
        text = between(text, name, body)
    path.write_text(text)
    if found.get("curves"):
        draw(found["curves"], folder / "performance.png")


def sections(found: dict[str, Any]) -> dict[str, str]:
    """Marker -> what stands there."""
    made = ", ".join(f"{name} {its}" for name, its in found["versions"].items())
    parts = {"made": f"`{found['command']}`, {found['hardware']}; {made}."}
    if found.get("lines"):
        parts["ratios"] = "\n".join(["```", *found["lines"].values(), "```"])
    for size in ("tiny", "minilm"):
        if size in found:
            rows = [(LABELS.get(n, n), _seconds(wall), _seconds(cpu), f"{d:.1e}") for n, wall, cpu, d in found[size]]
            parts[size] = table(("", "wall s", "CPU s", "weights apart"), rows)
    if found.get("curves"):
        points = table(("", "of a round", "", "wall s", "CPU s", "peak MB"), [*map(_row, found["curves"])])
        picture = "![Seconds of a round against cohort, clients, rank and processes](performance.png)"
        parts["curves"] = f"{picture}\n\n{points}"
    if found.get("limits"):
        parts["limits"] = "\n".join(f"- {name}: {limits.sentence(its)}" for name, its in found["limits"].items())
    if found.get("gpu"):
        heads = tuple(found["gpu"][0])
        parts["gpu"] = table(heads, [[_short(its) for its in row.values()] for row in found["gpu"]])
    return parts


def peers() -> dict[str, str]:
    """What the peers' environments pin that decides how fast they are."""
    pins = [line for name in PEERS for line in (ROOT / "benchmarks" / "speed" / f"{name}.txt").read_text().split()]
    found = dict(pin.split("==") for pin in pins)
    return {name: found[name] for name in ("flwr", "ray", "pfl")}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def between(text: str, name: str, body: str) -> str:
    """The text with another body between the markers of a name.

    Raises:
        ValueError: The markers aren't there.
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"performance.md has no {begin} ... {end}")
    return f"{before}{begin}\n{body}\n{end}{after}"


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per curve: seconds of a round, one line per contestant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves.CURVES)), curves.CURVES, strict=True):
        for name in curves.ENGINES:
            its = [point for point in points if point["curve"] == curve and point["name"] == name]
            if its:
                axes.plot([p["at"] for p in its], [p["wall"] for p in its], "o-", label=LABELS.get(name, name))
        axes.set(xlabel=curve, xscale="log", ylim=(0, None))
        axes.set_xticks(curves.CURVES[curve], [f"{at:,}" for at in curves.CURVES[curve]], minor=False)
        axes.minorticks_off()
    figure.axes[0].set_ylabel("seconds of a round")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(curves.ENGINES))
    figure.savefig(path, dpi=120)


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    name = LABELS.get(point["name"], point["name"])
    times = (f"{point['wall']:.2f}", f"{point['cpu']:.2f}", f"{point['peak_mb']:.0f}")
    return (point["curve"], f"{point['at']:,}", name, *times)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
