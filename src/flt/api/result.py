"""Result of a run, as a program or a notebook uses it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from flt.core import formatting
from flt.run import summary
from flt.run.finished import FinishedRun

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Result:
    """Result of a federation, which is the same in all processes of the run.

    In a notebook, a result is shown as a table.

    Attributes:
        module: The user's module with the trained weights, on its original device. If there are several models, it
            contains the model of the first group and the first head. If clients trained private tensors, it contains
            the model of the first client.
        metrics: Metrics of the last round, and of the evaluation on the test examples.
        path: Folder of the run.
        round_metrics: Metrics of every round. :attr:`history` is the same as a data frame.
        exported: Folder of the exported adapter or of the exported merged model.
        algo: Name of the recipe.
        has_own_module: Whether :func:`flt.fit` trained a module of its caller's.
        collate_fn: Function with which :func:`flt.fit` built batches. None: torch's default.
    """

    module: pl.LightningModule
    metrics: dict[str, float]
    path: Path
    round_metrics: list[dict[str, float]]
    exported: Path
    algo: str
    has_own_module: bool = False
    collate_fn: Callable[[list[Any]], Any] | None = None

    @classmethod
    def of(cls, run: FinishedRun) -> Result:
        """Returns the result of a finished run."""
        return cls(run.module, run.history[-1], run.path, run.history, run.exported, run.algo, run.own, run.collate)

    @property
    def history(self) -> pd.DataFrame:
        """Metrics of every round, as a new data frame: a row for each round, a column for each metric.

        The index is ``round``. A metric that wasn't measured in a round is NaN. ``metrics.csv`` has the same content.
        """
        import pandas as pd

        keys = sorted({key for metrics in self.round_metrics for key in metrics} - {"round"})
        return pd.DataFrame(self.round_metrics, columns=["round", *keys]).set_index("round")

    def predict(self, data: Any = None, out: str | Path | None = None, **settings: Any) -> Any:
        """Predicts with the trained model. The arguments are those of :func:`flt.predict`, apart from the run.

        After :func:`flt.fit`, ``data`` is a data set, and the predictions are what the module's ``predict_step``
        returns. The module itself stays as it is.
        """
        from flt.inference.predict import predict

        return predict(self.path, data, out, **{**self._with_module(), **settings})

    def evaluate(self, data: Any = None, split: str | None = None, **settings: Any) -> Any:
        """Evaluates the trained models on labelled data. The arguments are those of :func:`flt.evaluate`.

        After :func:`flt.fit`, ``data`` is a data set, and the metrics are those that the module's ``validation_step``
        logs. The module itself stays as it is.
        """
        from flt.inference.evaluate import evaluate

        return evaluate(self.path, data, split, **{**self._with_module(), **settings})

    def report(self, out: str | Path | None = None) -> Path:
        """Writes the run's report with :func:`flt.report`, and returns its file.

        Args:
            out: HTML file to write. None: ``report.html`` in the run's folder.
        """
        from flt.reports.page import report

        return report(self.path, out)

    def _with_module(self) -> dict[str, Any]:
        """Returns the arguments with which a caller's module predicts: a copy, into which weights are loaded."""
        if not self.has_own_module:
            return {}
        return {"module": copy.deepcopy(self.module), "collate_fn": self.collate_fn}

    def __repr__(self) -> str:
        """Returns one line: recipe, rounds, the best known score of the global model, bytes, and folder."""
        rounds = len(self.round_metrics)
        cells = [self.algo, f"{rounds} round{'s' if rounds > 1 else ''}", *self._score()]
        for way in ("up", "down"):
            if (total := self.metrics.get(f"comm/total_{way}")) is not None:
                cells.append(f"{formatting.size(total)} {way}")
        return f"Result({', '.join(cells)}, {self.path})"

    def _score(self) -> list[str]:
        """Returns the score on the test examples, else on the validation examples, else that of the clients' models."""
        groups = {"test ": "test/", "": "round/", "clients' ": "clients/"}
        for label, prefix in groups.items():
            figures = formatting.between(self.metrics, prefix)
            figures = formatting.received_metrics(self.metrics) if prefix == "clients/" else figures
            if (name := formatting.score(figures) or formatting.loss(figures)) is not None:
                return [f"{label}{name} {figures[name]:.4f}"]
        return []

    def _repr_html_(self) -> str:
        """Returns the summary that a run prints at its end as an HTML table."""
        head, *rows = summary.cells(self.round_metrics)
        rows += [("recipe", self.algo, ""), ("folder", str(self.path), "")]
        body = "".join(_row(row) for row in rows)
        columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        return f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table>"


def _row(cells: tuple[str, ...]) -> str:
    name, value, more = map(escape, cells)
    shown = f"<td>{value}</td><td>{more}</td>" if more else f'<td colspan="2">{value}</td>'
    return f'<tr><th scope="row">{name}</th>{shown}</tr>'
