"""Runs HAFL and draws its output: writes docs/run.svg for the README, and the logged picture docs/pairs.png.

.venv/bin/python benchmarks/pages/picture.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = [sys.executable, "-m", "flt", "train", "algo=hafl"]


def main() -> None:
    """Runs HAFL, records its output, and writes the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "COLUMNS": "100"}
        done = subprocess.run(COMMAND, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        events = EventAccumulator(f"{folder}/lightning_logs/hafl/version_0", size_guidance={"images": 0}).Reload()
        (DOCS / "pairs.png").write_bytes(events.Images("round.pictures/components")[-1].encoded_image_string)
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115  # The process closes it.
    console.print(Text("$ make train ALGO=hafl", style="bold"))
    console.print(Text.from_ansi(done.stdout.rstrip()))
    drawn = console.export_svg(title="flt")
    (DOCS / "run.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL))  # loads no fonts


if __name__ == "__main__":
    main()
