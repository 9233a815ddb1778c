"""The clients in a report, from records that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flt.callbacks.record_format import QUANTILES
from flt.reports.clients import spread, worst
from flt.reports.read import Recorded
from flt.run.stored import StoredRun

VALUES = [0.5, 0.25, None, 1.0, 0.75]
"""Value of each client; that of client 2 isn't finite."""


def recorded(metric: str) -> Recorded:
    head: dict[str, Any] = {"jobs": [[client, 0] for client in range(5)], "of": 5, "examples": [10, 20, 30, 40, 50]}
    head |= {"tasks": [""], "task": [0] * 5}
    rounds = [{"round": n, "clients": {f"received/{metric}": {"values": VALUES}}} for n in (1, 2)]
    return Recorded(StoredRun(Path("hafl/version_0"), {}, [], {}, None), {**head, "ranks": [8] * 5}, rounds)


def test_the_bands_are_numpy_s_quantiles_over_the_clients_that_have_a_value() -> None:
    (chart,) = spread(recorded("val_acc"))
    quantiles = np.quantile([value for value in VALUES if value is not None], QUANTILES)
    drawn = [trace["y"] for trace in chart.traces]
    lowest, highest, *_, median = drawn
    assert (lowest, highest) == ([quantiles[0]] * 2, [quantiles[-1]] * 2)
    assert median == [pytest.approx(0.625)] * 2
    assert {round(row[-1], 6) for row in drawn} <= {round(float(value), 6) for value in quantiles}


@pytest.mark.parametrize(
    ("metric", "order"), [("val_acc", ["2", "1", "0", "4", "3"]), ("val_perplexity", ["2", "3", "4", "0", "1"])]
)
def test_the_worst_clients_come_first_whichever_way_the_metric_goes(metric: str, order: list[str]) -> None:
    (table,) = worst(recorded(metric))
    assert [row[0] for row in table.rows] == order
    assert table.rows[0] == ["2", "30", "–"]


@pytest.mark.parametrize("ranks", [[8] * 5, [2, 4, 8, 2, 4]])
def test_the_worst_jobs_of_several_tasks_have_the_name_of_their_task(ranks: list[int]) -> None:
    found = recorded("val_acc")
    found.head.update(tasks=["sst2", "qqp"], task=[0, 1, 1, 0, 0], ranks=ranks)
    (table,) = worst(found)
    assert table.columns[:3] == ["client", "task", "examples"]
    assert [row[1] for row in table.rows] == ["qqp", "qqp", "sst2", "sst2", "sst2"]
    assert len({len(row) for row in (table.columns, *table.rows)}) == 1
