"""The report of one or several runs: a single HTML file that needs no network."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import flt
from flt.core.errors import InputError
from flt.core.files import expand_user, reported, write_atomically
from flt.reports import about, clients, clusters, components, curves
from flt.reports.charts import Section
from flt.reports.read import Recorded, find_runs, read
from flt.run.stored import REPORT

HERE = Path(__file__).parent
RELOAD = 20
"""Seconds after which the page of a run that isn't finished loads itself again."""


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes a report of one or several runs: an HTML file that can be read without flt and without a network.

    The report of one run shows its accuracy and loss over rounds and against bytes and time, its clients, partition,
    components and clusters, its settings, and how to load its models. The report of several runs compares their curves
    and lists the settings in which they differ.

    Args:
        runs: A run's folder, an export in it, ``last``, or a folder of runs; or several of these.
        out: File to write. None: ``report.html`` in the run's folder, or in the working folder for several runs.

    Returns:
        The file.

    Raises:
        InputError: There is no such run, a file of it is damaged, or the report can't be written.

    Example::

        flt.report("lightning_logs/hafl/version_0")
        flt.report(["lightning_logs/hafl", "lightning_logs/fedit"], out="comparison.html")
    """
    named = [runs] if isinstance(runs, str | Path) else list(runs)
    if not named:
        raise InputError.of("report", "", "one or more runs")
    folders = find_runs(named)
    path = expand_user(out) if out is not None else folders[0] / REPORT if len(folders) == 1 else Path(REPORT)
    text = one(folders[0]) if len(folders) == 1 else several(folders)
    with reported("out", path.name, "a file in a folder that can be written"):
        write_atomically(path, text.encode())
    return path


def one(run: str | Path, running: bool = False) -> str:
    """Returns the page of a run.

    Args:
        run: Folder of the run.
        running: Whether the run is being trained. The page then says so, and loads itself again from time to time.
    """
    recorded = read(run)
    with recorded.checked():
        stored, rounds = recorded.run, recorded.run.setting("rounds", 0)
        status = {"text": f"round {len(stored.history)} of {rounds}", "state": "running"} if running else None
        if not running and stored.exported is None:
            status = {"text": f"round {len(stored.history)} of {rounds}", "state": "not finished"}
        return _render(
            title=f"{stored.setting('algo', stored.label)} – {stored.label}",
            heading=str(stored.setting("algo", stored.label)),
            subtitle=about.subtitle(stored),
            label=stored.label,
            figures=curves.key_figures(stored),
            sections=_of_one(recorded),
            status=status,
        )


def several(runs: Sequence[str | Path]) -> str:
    """Returns the page that compares several runs."""
    stored = [read(run).run for run in runs]
    names = about.titles(stored)
    return _render(
        title=f"Comparison of {len(stored)} runs",
        heading=f"Comparison of {len(stored)} runs",
        subtitle=", ".join(sorted({str(run.setting("algo", run.label)) for run in stored})),
        label="",
        figures=[],
        sections=_of_several(stored, names),
        status=None,
    )


def _of_one(recorded: Recorded) -> list[Section]:
    stored, made = recorded.run, about.made(recorded)
    groups = [*clusters.groups(recorded), *clusters.task_map(recorded), *clusters.cluster_map(recorded)]
    groups += clusters.agreement(recorded)
    trained = [*components.trained(recorded), *components.importance(recorded), *components.by_client(recorded)]
    return [
        Section("rounds", "Rounds", charts=curves.of_one(stored)),
        Section("clients", "Clients", charts=clients.spread(recorded), tables=clients.worst(recorded)),
        Section("partition", "Partition", charts=clients.partition(recorded)),
        Section("components", "Components", _COMPONENTS, trained),
        Section("ranks", "Rank budget", charts=components.budget(recorded)),
        Section("groups", "Groups", charts=groups),
        Section("settings", "Settings", folded=[about.settings(stored)]),
        Section("load", "How to load the model", codes=about.loading(stored)),
        Section("made", "How it was made", tables=[made] if made else []),
    ]


def _of_several(stored: Sequence[Any], names: Sequence[str]) -> list[Section]:
    different = about.differences(stored, names)
    return [
        Section("results", "Results", tables=[curves.results(stored, names)]),
        Section("rounds", "Rounds", charts=curves.of_several(stored, names)),
        Section("settings", "Settings", tables=different[:1], folded=different[1:]),
    ]


def _render(sections: Sequence[Section], **parts: Any) -> str:
    """Fills the template. Only the hashes of flt's own scripts are allowed to run in the page."""
    shown = [section for section in sections if not section.is_empty]
    charts = [chart for section in shown for chart in section.charts]
    data: dict[str, Any] = {
        "charts": {
            chart.id: {
                "data": chart.traces,
                "layout": chart.layout | {"height": chart.height},
                "frames": [{"name": name, "data": traces} for name, traces in chart.frames],
            }
            for chart in charts
        }
    }
    plotly, plotly_hash = _plotly() if charts else ("", "")
    script, first = _file("page.js"), _file("theme.js")
    hashes = [_hash(text.encode()) for text in (script, first)] + ([plotly_hash] if charts else [])
    return _template().render(
        **parts, sections=shown, data=Markup(_embedded(data)), plotly=plotly, script=Markup(script),
        first=Markup(first), style=Markup(_file("page.css")), hashes=hashes, version=flt.__version__, reload=RELOAD,
        written=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), written_ms=int(time.time() * 1000),
    )  # fmt: skip


def _embedded(data: Any) -> str:
    """Returns JSON in which nothing can end the script element that contains it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _plotly() -> tuple[str, str]:
    """Returns Plotly's own script, compressed to less than a half for the page, and its hash.

    The file is found without an import of plotly, which would take longer than the rest of the report.
    """
    found = importlib.util.find_spec("plotly")
    places = found.submodule_search_locations if found is not None else None
    if not places:
        raise InputError.of("report", "plotly", "the package plotly, which flt needs", "it isn't installed")
    data = (Path(places[0]) / "package_data" / "plotly.min.js").read_bytes()
    packer = zlib.compressobj(1, wbits=31)  # gzip; a page that is a tenth smaller would take half as long again
    return base64.b64encode(packer.compress(data) + packer.flush()).decode(), _hash(data)


@functools.cache
def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")


def _hash(script: bytes) -> str:
    """Returns the hash of a script for the Content-Security-Policy. A browser reads every line's end as LF."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}"


_COMPONENTS = "A component is one rank-1 part of a layer's LoRA: a row of A and a column of B."
