"""The command ``flt compare``, which compares the runs of several methods and seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from flt.cli.words import read_words

HELP = """\
usage: flt compare RUN ... [key=value ...] [--json]

Compares runs: mean and standard deviation over seeds, and paired differences
between methods. RUN is a run's folder, a folder that contains runs, or last.

Runs that differ only in their seed are repetitions of one method. A method is a
recipe with its settings. Methods are compared if their runs solve the same
problem: the same data, partition, model, clients, rounds and so on. Otherwise
each problem has a table of its own, and the keys that differ are listed. Runs
that haven't finished are left out. Of several runs with the same settings and
seed, the newest counts.

  metric=test         metrics to compare: test, validation (last round), best
                      (round of the best validation score), clients (models as
                      received by the clients), or a column of metrics.csv.
                      Without it: the first of test, validation and clients
  target=0.9          also compares the rounds, bytes and time until the
                      validation score is reached
  baseline=fedit      recipe or method from which the differences are taken.
                      Without it: the first method, in the order of the runs
  out=folder          writes table.csv, runs.csv, table.tex (booktabs), and the
                      figures compare, rounds, bytes and final as png, pdf, svg
  width=3.3           width of the figures in inches, or single, or double.
                      Without it: compare has a double column, the others one
  root=lightning_logs folder in which last is looked for
  --json              prints all figures as JSON, and nothing else

  flt compare lightning_logs
  flt compare lightning_logs/fedit lightning_logs/hafl target=0.9 out=figures

flt sweep ends with such a comparison."""
KEYS = ("metric", "target", "baseline", "out", "width", "root")
FLAGS = ("json",)


@dataclasses.dataclass
class Options:
    """Settings of the command. The text HELP explains them."""

    metric: str | None = None
    target: float | None = None
    baseline: str | None = None
    out: str | None = None
    width: str | None = None
    root: str = "lightning_logs"


def run(arguments: Sequence[str]) -> int:
    """Prints the comparison, and writes its files if a folder is given.

    Raises:
        InputError: An argument is wrong, or a run can't be read.
    """
    words = read_words("compare", arguments, KEYS, FLAGS, (1, None))
    options = words.options(Options)
    from flt.reports.compare import compare
    from flt.reports.compare_result import check_width

    check_width(options.width)
    found = compare(
        words.runs, metric=options.metric, target=options.target, baseline=options.baseline, root=options.root
    )
    if "json" in words.flags:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=True, allow_nan=False))
    else:
        found.print()
    if options.out is not None:
        files = found.save(options.out, options.width)
        if "json" not in words.flags:
            print(f"written to {options.out}: {', '.join(path.name for path in files)}")
    return 0
