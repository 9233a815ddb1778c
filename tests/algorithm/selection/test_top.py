"""Which pairs a job holds and trains, against NumPy's argsort."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import jobs_of, layout_of, view_of

from flt.algorithm.selection.all import All
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.sets import deal
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.job import Job

RANK = 8
SCORES = {name: np.random.default_rng(seed).random(RANK).tolist() for seed, name in enumerate("xy")}
ALIVE = {"x": (0, 2, 3, 5, 7), "y": tuple(range(RANK))}
JOB = Job(0, 0, 3)

ranks = st.lists(st.integers(1, 10), min_size=1, max_size=8)


def scored(**given: object) -> View:
    return view_of(layout_of(RANK), scores=SCORES, **given)  # type: ignore[arg-type]


def top(layer: str, count: int, alive: tuple[int, ...]) -> tuple[int, ...]:
    known = np.array(SCORES[layer])[list(alive)]
    return tuple(sorted(np.array(alive)[np.argsort(-known, kind="stable")[:count]].tolist()))


# ---------------------------------------------------------------------------------------------- held and kept


@pytest.mark.parametrize("rank", [1, 3, 5, 8, 12])
@pytest.mark.parametrize("alive", [ALIVE, {"x": tuple(range(RANK)), "y": (6,)}], ids=["some alive", "one alive"])
def test_kept_are_the_highest_scores_among_the_living(rank: int, alive: dict[str, tuple[int, ...]]) -> None:
    expected = {name: top(name, rank, alive[name]) for name in alive}
    view, job = scored(alive=alive), Job(0, 0, rank)
    assert Freeze()(view, job, [job]) == (alive, expected)
    assert Truncate()(view, job, [job]) == (expected, expected)
    assert All()(view, job, [job]) == (alive, alive)


@pytest.mark.parametrize("part", [Freeze("first"), Truncate("first")], ids=str)
def test_first_takes_the_lowest_living_ids_whatever_the_scores(part: Freeze | Truncate) -> None:
    assert part(scored(alive=ALIVE), JOB, [JOB])[1] == {"x": (0, 2, 3), "y": (0, 1, 2)}


def test_random_is_drawn_anew_for_each_round_layer_and_seed() -> None:
    def kept(rounds: int, seed: int) -> dict[str, tuple[int, ...]]:
        return Truncate("random")(scored(rounds=rounds, seed=seed), JOB, [JOB])[0]

    drawn = [kept(rounds, seed) for rounds in range(20) for seed in range(2)]
    assert all(len(set(ids)) == 3 for found in drawn for ids in found.values())
    assert len({found["x"] for found in drawn}) > 10
    assert sum(found["x"] == found["y"] for found in drawn) < 10
    assert kept(3, 1) == drawn[7]


def test_every_pair_is_as_likely_as_any_other_at_random() -> None:
    """2000 draws of 3 out of 8: each pair 750 +- 5 * 22 times."""
    drawn = [Freeze("random")(scored(seed=seed), JOB, [JOB])[1]["y"] for seed in range(2000)]
    assert (abs(np.bincount(np.concatenate(drawn), minlength=RANK) - 750) < 110).all()


def test_a_job_is_served_by_the_scores_of_its_own_group() -> None:
    view = view_of(layout_of(RANK), groups=(0, 2, 3), assignment={(0, 0): 2})
    for gid, best in ((0, 6), (2, 4), (3, 1)):
        scores = {name: torch.eye(RANK)[best] for name in "xy"}
        view.state.groups[gid] = dataclasses.replace(view.state.groups[gid], scores=scores)
    kept = [Freeze()(view, Job(client, 0, 1), [])[1] for client in (0, 1)]
    assert kept == [{"x": (4,), "y": (4,)}, {"x": (6,), "y": (6,)}]


def test_scores_that_tie_in_part_are_taken_by_the_lowest_id() -> None:
    view = view_of(layout_of(4), scores={"x": [1.0, 2.0, 1.0, 1.0], "y": [0.0, 0.0, 3.0, 0.0]})
    assert Freeze()(view, Job(0, 0, 2), jobs_of(2, 2))[1] == {"x": (0, 1), "y": (0, 2)}


def test_a_layer_whose_scores_all_tie_is_dealt_even_where_they_are_not_zero() -> None:
    view = view_of(layout_of(4), scores={"x": [7.0] * 4, "y": [0.0, 0.0, 3.0, 4.0]})
    kept = [Freeze()(view, job, jobs_of(2, 2))[1] for job in jobs_of(2, 2)]
    assert sorted(kept[0]["x"] + kept[1]["x"]) == [0, 1, 2, 3]
    assert [found["y"] for found in kept] == [(2, 3), (2, 3)]


def test_dead_pairs_do_not_break_a_tie() -> None:
    view = view_of(layout_of(4), scores={"x": [9.0, 1.0, 1.0, 1.0], "y": [1.0] * 4}, alive={"x": (1, 2, 3), "y": (0,)})
    kept = [Freeze()(view, job, jobs_of(1, 2))[1]["x"] for job in jobs_of(1, 2)]
    assert sorted(kept[0] + kept[1]) == [1, 2, 3]


# ---------------------------------------------------------------------------------------------- dealing


@given(ranks, st.integers(1, 9), st.integers(0, 99))
def test_as_many_pairs_are_dealt_as_the_ranks_allow_in_every_layer(of: list[int], alive: int, seed: int) -> None:
    jobs = jobs_of(*of)
    ids = tuple(range(3, 3 + alive))
    view = view_of(layout_of(12), alive={"x": ids, "y": ids}, seed=seed)
    for layer in "xy":
        hands = [Freeze()(view, job, jobs)[1][layer] for job in jobs]
        assert [len(set(hand)) for hand in hands] == [min(rank, alive) for rank in of]
        assert all(hand == tuple(sorted(hand)) and set(hand) <= set(ids) for hand in hands)
        assert len(set().union(*hands)) == min(sum(of), alive)


@given(ranks, st.randoms(use_true_random=False))
def test_a_hand_does_not_depend_on_the_order_in_which_the_cohort_is_listed(of: list[int], random: object) -> None:
    jobs = jobs_of(*of)
    shuffled = random.sample(jobs, len(jobs))  # type: ignore[attr-defined]
    for part in (Freeze(), Truncate("random")):
        view = view_of(layout_of(RANK))
        assert [part(view, job, jobs) for job in jobs] == [part(view, job, shuffled) for job in jobs]


def test_jobs_of_one_client_have_hands_of_their_own() -> None:
    jobs = [Job(0, index, 2) for index in range(3)]
    hands = [deal(tuple(range(6)), job, jobs, np.random.default_rng(0)) for job in jobs]
    assert sorted(pair for hand in hands for pair in hand) == list(range(6))


def test_layers_are_dealt_apart_at_the_same_round() -> None:
    view = view_of(layout_of(RANK))
    kept = [Freeze()(view, job, jobs_of(4, 4))[1] for job in jobs_of(4, 4)]
    assert kept[0]["x"] != kept[0]["y"]


# ---------------------------------------------------------------------------------------------- exploring

KINDS = pytest.mark.parametrize("kind", [Freeze, Truncate])


@KINDS
@pytest.mark.parametrize("rank", [1, 2, 3, 7])
@pytest.mark.parametrize("explore", [0.1, 0.4, 0.9])
def test_the_lowest_of_the_top_make_room_for_as_many_pairs_from_outside_it(
    kind: type[Freeze], rank: int, explore: float
) -> None:
    """Of r_k pairs, explore * r_k rounded down or up are drawn, but no more than lie outside."""
    ranking = np.argsort(-np.array(SCORES["y"]), kind="stable").tolist()
    counts = set()
    for seed in range(60):
        kept = set(kind("score", explore)(scored(seed=seed), Job(0, 0, rank), [])[1]["y"])
        drawn = len(kept & set(ranking[rank:]))
        assert len(kept) == rank
        assert set(ranking[: rank - drawn]) <= kept
        counts.add(drawn)
    share = explore * rank
    assert counts == {min(int(np.floor(share)), RANK - rank), min(int(np.floor(share)) + 1, RANK - rank)}


@pytest.mark.parametrize(("rank", "explore"), [(1, 0.3), (2, 0.1), (3, 0.5), (4, 0.25)])
def test_on_average_the_share_that_was_asked_for_is_drawn_evenly_from_all_that_lie_outside(
    rank: int, explore: float
) -> None:
    """2000 draws: 5 standard deviations of a rounding are 0.5 * 5 / sqrt(2000) = 0.056 pairs."""
    best = set(top("y", rank, ALIVE["y"]))
    kept = [Freeze("score", explore)(scored(seed=seed), Job(3, 1, rank), [])[1]["y"] for seed in range(2000)]
    outside = [pair for ids in kept for pair in set(ids) - best]
    assert abs(len(outside) / 2000 - rank * explore) < 0.056
    counts = np.bincount(outside, minlength=RANK)[sorted(set(range(RANK)) - best)]
    assert (abs(counts / counts.mean() - 1) < 5 / np.sqrt(counts.mean())).all()


@KINDS
def test_without_exploring_the_sets_are_those_of_the_scores(kind: type[Freeze]) -> None:
    for seed in range(20):
        assert kind("score", 0.0)(scored(seed=seed), JOB, [JOB])[1] == {name: top(name, 3, ALIVE["y"]) for name in "xy"}


def test_dead_pairs_are_never_drawn_and_jobs_that_train_all_living_pairs_go_on_so() -> None:
    for seed in range(30):
        view = scored(alive=ALIVE, seed=seed)
        assert set(Freeze("score", 0.9)(view, Job(0, 0, 3), [])[1]["x"]) <= set(ALIVE["x"])
        assert Freeze("score", 0.9)(view, Job(0, 0, 8), []) == (ALIVE, ALIVE)


def test_while_all_scores_tie_exploring_changes_nothing() -> None:
    view, jobs = view_of(layout_of(RANK)), jobs_of(3, 2, 5)
    assert [Freeze("score", 0.5)(view, job, jobs) for job in jobs] == [Freeze()(view, job, jobs) for job in jobs]


def test_each_layer_job_and_round_explores_by_a_stream_of_its_own_whoever_else_takes_part() -> None:
    same = dict.fromkeys("xy", SCORES["y"])

    def kept(layer: str, client: int, index: int, rounds: int, cohort: tuple[int, ...] = (4, 4)) -> list[object]:
        views = [view_of(layout_of(RANK), scores=same, rounds=rounds, seed=seed) for seed in range(10)]
        return [Truncate("score", 0.7)(view, Job(client, index, 4), jobs_of(*cohort))[1][layer] for view in views]

    ways = [("x", 0, 0, 0), ("y", 0, 0, 0), ("x", 1, 0, 0), ("x", 0, 1, 0), ("x", 0, 0, 1)]
    found = [kept(*way) for way in ways]
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
    assert [kept(*way, cohort=()) for way in ways] == found


@KINDS
@pytest.mark.parametrize("explore", [-0.1, 1.0, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(kind: type[Freeze], explore: float) -> None:
    with pytest.raises(InputError, match=rf"^selection.explore={explore}: allowed is a number in \[0, 1\)$"):
        kind(explore=explore)


@pytest.mark.parametrize("by", ["first", "random"])
def test_exploring_where_no_score_is_read_is_refused(by: str) -> None:
    with pytest.raises(InputError, match=rf"^selection.explore=0.2: allowed is 0 with selection.by={by}$"):
        Freeze(by, 0.2)


# ---------------------------------------------------------------------------------------------- purity and refusals


@pytest.mark.parametrize("part", [Freeze(), Truncate("random")], ids=str)
def test_the_global_generators_are_neither_read_nor_moved(part: Freeze | Truncate) -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    first = part(view_of(layout_of(RANK)), JOB, jobs_of(3, 3))
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    np.random.seed(1)
    torch.manual_seed(1)
    assert part(view_of(layout_of(RANK)), JOB, jobs_of(3, 3)) == first


def shown() -> str:
    """Cohort, hands and clusters of one round."""
    from made import update_of

    from flt.algorithm.grouping.kmeans import KMeansGrouping
    from flt.server.client_sampling import FixedSize

    view = view_of(layout_of(RANK), rounds=2)
    groups = KMeansGrouping(2)(view, [update_of(view, (client, 0)) for client in range(6)])
    hands = [Freeze()(view, job, jobs_of(3, 2, 5)) for job in jobs_of(3, 2, 5)]
    clusters = {gid: [update.job for update in its] for gid, its in groups.members.items()}
    return repr((FixedSize(3)(range(9), 0, 2), hands, clusters))


@pytest.mark.slow
def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parents[1] / "support")])
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    code = "import numpy as np; np.random.seed(5); import test_top; print(test_top.shown())"
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert found.stdout.strip().splitlines()[-1] == shown()


def test_ranks_below_the_adapters_are_refused_by_all_alone() -> None:
    with pytest.raises(InputError, match="^selection=all: a client of rank 2 can't train all 8 components; allowed is"):
        All().check([8, 2, 4], 8)
    All().check([8, 8], 8)
    Freeze().check([8, 2], 8)
    Truncate().check([8, 2], 8)


@pytest.mark.parametrize("part", [Freeze, Truncate])
def test_an_unknown_order_is_refused_with_the_choices(part: type[Freeze]) -> None:
    with pytest.raises(InputError, match="^selection.by=best: allowed is score, first, random$"):
        part("best")
