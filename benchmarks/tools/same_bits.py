"""Runs every recipe in two checkouts and compares what they become: the export's bytes, bytes sent and metrics.csv.

    git worktree add ../before <commit>
    .venv/bin/python -m benchmarks.tools.same_bits ../before

Both run in the environment of this command, each in a process of its own, with the embedded default, 2 rounds and
4 clients. The exit code is 1 unless all recipes are the same.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SETTINGS = ["rounds=2", "clients=4", "threads=1", "seed=0"]
COLUMNS = ("recipe", "export", "bytes up", "bytes down", "metrics.csv")
RUNS = """
import json, sys
import flt.cli
main = flt.cli.main if callable(getattr(flt.cli, "main", None)) else __import__("flt.cli.main", fromlist=["main"]).main
for algo in json.loads(sys.argv[1]):
    assert main(["train", f"algo={algo}", f"root={sys.argv[2]}", *json.loads(sys.argv[3])]) == 0, algo
"""


def as_package(checkout: Path, folder: Path) -> Path:
    """Copies code and configurations as an installed wheel has them; returns the folder to import from."""
    shutil.copytree(checkout / "src" / "flt", folder / "flt", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(checkout / "conf", folder / "flt" / "conf")
    return folder


def recipes(checkout: Path) -> list[str]:
    """Names of the recipes of a checkout."""
    return sorted(path.stem for path in (checkout / "conf" / "algo").glob("*.yaml"))


def run(checkout: Path, algos: Sequence[str], settings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Trains the recipes of a checkout.

    Returns:
        Recipe -> sha256 of its export, bytes up, bytes down, sha256 of metrics.csv without the times.
    """
    with tempfile.TemporaryDirectory() as scratch:
        package, root = as_package(checkout, Path(scratch) / "src"), Path(scratch) / "runs"
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        given = [json.dumps(list(algos)), str(root), json.dumps(list(settings))]
        subprocess.run([sys.executable, "-c", RUNS, *given], env=environment, cwd=scratch, check=True)
        return {algo: figures(root / algo / "version_0") for algo in algos}


def figures(folder: Path) -> tuple[str, ...]:
    """Sums and bytes of one finished run."""
    with (folder / "metrics.csv").open() as file:
        rows = [
            {key: value for key, value in row.items() if not key.startswith("time/")} for row in csv.DictReader(file)
        ]
    last = rows[-1]
    total = [last["comm/total_up"], last["comm/total_down"]]
    return (exported(folder), *total, hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12])


def exported(folder: Path) -> str:
    """SHA-256 over names and bytes of the tensors that a run has exported."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("adapter/**/*.safetensors"), *folder.glob("model/**/*.safetensors")]):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def table(before: dict[str, tuple[str, ...]], after: dict[str, tuple[str, ...]]) -> str:
    """One row for each recipe; a figure that changed shows both values."""
    rows = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for algo, old in before.items():
        cells = [a if a == b else f"{a} -> {b}" for a, b in zip(old, after[algo], strict=True)]
        rows.append(" | ".join([algo, *cells]))
    return "\n".join(f"| {row} |" for row in rows)


def main() -> int:
    """Compares another checkout with this one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--only", help="comma-separated recipes; all without")
    given = parser.parse_args()
    here = Path(__file__).parents[2]
    algos = given.only.split(",") if given.only else recipes(given.before)
    before, after = (run(checkout, algos, SETTINGS) for checkout in (given.before, here))
    print(table(before, after))
    same = sum(before[algo] == after[algo] for algo in algos)
    print(f"{same} of {len(algos)} recipes are the same")
    return 0 if same == len(algos) else 1


if __name__ == "__main__":
    sys.exit(main())
