"""The page on what a bounded memory of FL-TAC loses: updates that are clustered again."""

from __future__ import annotations

import dataclasses

import numpy as np
from benchmarks.pages.fl_tac_memory import FULL, Recorded, Recorder, measured, row
from methods import CHANGES, METHODS, TASKS, clients_of
from toys import toy_federator

from flt.algorithm.grouping.base import Clustering
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.callbacks.clusters import Clusters


def test_clustering_the_updates_of_a_run_again_gives_the_figures_of_the_run_itself() -> None:
    recipe = dataclasses.replace(METHODS["fl_tac"][0], grouping=KMeansGrouping(2, **CHANGES, **FULL))
    recorder, clusters = Recorder(), Clusters(TASKS)
    federator = toy_federator(recipe, clients_of(5, jobs=2), rounds=3, callbacks=[recorder, clusters])
    federator.fit()
    assert isinstance(recorder.grouping, Clustering)
    run = Recorded(recorder.rounds, recorder.grouping, TASKS)
    full, narrow = measured(run), measured(run, memory_rounds=None, memory_width=5)
    assert full.accuracy == [metrics["round/clustering_acc"] for metrics in federator.history]
    assert clusters.found is not None
    last = clusters.found.features.astype(np.float64)
    first, second = np.triu_indices(len(last), 1)
    np.testing.assert_allclose(full.distances[-1], np.linalg.norm(last[first] - last[second], axis=1), rtol=1e-6)
    assert (full.kept, narrow.kept) == (len(last[0]), 5)
    assert row("full", [full], [full]).endswith("| 1.000 | 1.000 |")
    assert not row("narrow", [narrow], [full]).endswith("| 1.000 | 1.000 |")
