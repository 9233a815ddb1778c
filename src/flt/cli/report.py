"""The command ``flt report``, which writes runs as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from flt.cli.words import read_words

HELP = """\
usage: flt report RUN... [out=FILE]

Writes one HTML file that shows runs in a browser, without a network. RUN is a
run's folder, an export in it, last, or a folder of runs (lightning_logs).

One run    accuracy and loss over rounds and against bytes and time; clients,
           partition, components, groups and the task map; settings, how to load
           the model, and how the run was made
Several    the same curves together, and the settings in which the runs differ

  out      the file to write; without it, report.html in the run's folder, or in
           the working folder for several runs

A run writes the page itself: after its end, and about every 20 s while it runs
(report=false switches this off).

  flt report last
  flt report lightning_logs/hafl lightning_logs/fedit out=comparison.html"""


def run(arguments: Sequence[str]) -> int:
    """Writes the report and prints its path.

    Raises:
        InputError: There is no such run, a file of it is damaged, or the report can't be written.
    """
    words = read_words("report", arguments, keys=["out"], runs=(1, None))
    from flt.reports.page import report  # jinja2 and the readers of a run take a moment

    print(report(words.runs, words.settings.get("out")))
    return 0
