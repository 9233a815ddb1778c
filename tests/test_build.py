"""Config -> objects: parts by name, clients and their jobs, and what is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import in_empty_folder

from flt import build
from flt.build import PARTS, Federation, federation, part, recipe, sampler
from flt.client import JobData
from flt.clustering import Everyone, KMeansGrouping
from flt.config import load_config
from flt.errors import InputError
from flt.ranks.importance import GradientSensitivity
from flt.ranks.selection import Freeze, Truncate
from flt.rules.mean import Mean
from flt.rules.scaffold import Scaffold
from flt.rules.stacking import Stacking
from flt.run import with_capacities
from flt.sampling import FixedSize, Poisson


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


def built(*overrides: str) -> Federation:
    return federation(load_config(["clients=4", *overrides]))


@pytest.mark.parametrize(
    ("algo", "parts"),
    [
        ("fedit", {"rule": Mean()}),
        ("hafl", {"rule": Mean(), "selection": Freeze(), "importance": GradientSensitivity()}),
        ("fl_tac", {"rule": Mean(weights="uniform"), "grouping": KMeansGrouping(k=2)}),
        ("scaffold", {"rule": Scaffold()}),
        ("flora", {"rule": Stacking()}),
        (
            "hafl selection=truncate rule.pad=parameter",
            {"rule": Mean(pad="parameter"), "selection": Truncate(), "importance": GradientSensitivity()},
        ),
        (
            "fl_tac grouping.k=3 grouping.n_init=2",
            {"rule": Mean(weights="uniform"), "grouping": KMeansGrouping(k=3, n_init=2)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recipe_is_its_parts(algo: str, parts: dict[str, Any]) -> None:
    made = recipe(load_config(f"algo={algo}".split()), tasks=2)
    defaults = recipe(load_config(["algo=fedit"]), tasks=2)
    groups = ("rule", "plan", "schedule", "selection", "importance", "grouping")
    assert {group: getattr(made, group) for group in groups} == {
        group: parts.get(group, getattr(defaults, group)) for group in groups
    }


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in PARTS for name in PARTS[group]])
def test_every_part_is_built_by_its_name_alone(group: str, name: str) -> None:
    assert type(part(group, {"name": name})) is PARTS[group][name]


@pytest.mark.parametrize(
    "chosen", [{"name": "nope"}, {}, {"name": "mean", "_target_": "os.system"}, {"name": "os.system"}], ids=str
)
def test_anything_else_is_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rule.*allowed is"):
        part("rule", chosen)


def test_one_task_makes_one_group() -> None:
    grouping = recipe(load_config(["algo=fl_tac"]), tasks=1).grouping
    assert not grouping.several
    assert not Everyone.several


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], FixedSize(None)),
        (["cohort.size=2"], FixedSize(2)),
        (["cohort.sampling=poisson", "cohort.rate=0.3"], Poisson(0.3)),
    ],
    ids=["all", "fixed", "poisson"],
)
def test_the_sampler_is_the_one_that_was_asked_for(overrides: list[str], expected: FixedSize | Poisson) -> None:
    assert sampler(load_config(overrides), 10) == expected


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "quantity", "shards", "by_column"])
def test_clients_share_the_training_split_without_overlap(kind: str) -> None:
    made = built(f"partition.kind={kind}", "data.column=label")
    shares = [np.concatenate([job.train, job.held_out]) for client in made.clients for job in client.data]
    together = np.concatenate(shares)
    assert len(made.clients) == 4
    assert np.array_equal(np.sort(together), np.arange(len(made.clients[0].data[0].dataset)))  # type: ignore[arg-type]


def test_each_task_is_dealt_on_its_own_and_has_labels_of_its_own() -> None:
    made = built("algo=fl_tac", "clients=6")
    assert set(made.tasks().values()) == {"low", "high"} == set(made.validation) == set(made.test)
    for job in (job for client in made.clients for job in client.data):
        assert len(job.label_counts) <= 2
        assert {int(job.training_set[i]["labels"]) for i in range(len(job.train))} <= {0, 1}
    assert made.module.model.config.num_labels == 2


def test_every_client_has_a_job_though_small_shares_are_dropped() -> None:
    made = built("algo=fl_tac", "clients=10")
    counts = [len(client.data) for client in made.clients]
    assert min(counts) >= 1
    assert max(counts) == 2
    assert any(count == 1 for count in counts)


@pytest.mark.parametrize(("examples", "size"), [("20", 20), ("null", 90), ("5000", 90)])
def test_the_global_model_is_evaluated_on_a_sample(examples: str, size: int) -> None:
    (validation,) = built("algo=fedit", f"eval.examples={examples}").validation.values()
    assert len(validation) == size  # type: ignore[arg-type]


@pytest.mark.parametrize(("examples", "size"), [("20", 20), ("null", 179), ("5000", 179)])
def test_the_test_split_is_sampled_on_its_own(examples: str, size: int) -> None:
    made, again = (built("algo=fedit", f"eval.test_examples={examples}", "eval.examples=30") for _ in range(2))
    (test,), (same,), (validation,) = made.test.values(), again.test.values(), made.validation.values()
    assert (len(test), len(validation)) == (size, 30)  # type: ignore[arg-type]
    labels = [int(test[i]["labels"]) for i in range(size)]
    assert labels == [int(same[i]["labels"]) for i in range(size)]
    assert max(np.bincount(labels)) - min(np.bincount(labels)) <= 3


def parts_of(made: Federation) -> list[list[int]]:
    return [job.train.tolist() for client in made.clients for job in client.data]


def test_the_deal_depends_on_the_seed_alone() -> None:
    first, again, other = (parts_of(built("algo=fedit", f"seed={seed}")) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_each_client_is_held_out(share: float) -> None:
    jobs: list[JobData] = [client.data[0] for client in built("algo=fedit", f"partition.held_out={share}").clients]
    for job in jobs:
        total = len(job.train) + len(job.held_out)
        assert abs(len(job.held_out) - share * total) <= 1
        assert sum(job.label_counts) == len(job.train)


@pytest.mark.parametrize(
    ("ranks", "expected"), [(None, [4, 4, 4, 4]), ([1, 2, 4], [1, 2, 4, 1]), ([3], [3, 3, 3, 3])], ids=str
)
def test_ranks_are_dealt_in_turn(ranks: list[int] | None, expected: list[int]) -> None:
    from toys import toy_clients, toy_module

    _, layout = toy_module(rank=4)
    made = with_capacities(list(toy_clients(4).values()), ranks, layout, recipe(load_config(["algo=hafl"]), 1))
    assert [client.rank for client in made.values()] == expected


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        (["local.steps=7"], {"max_steps": 7, "max_epochs": -1}),
        (["local.steps=null", "local.epochs=2"], {"max_epochs": 2}),
    ],
    ids=["steps", "epochs"],
)
def test_a_fit_lasts_for_steps_or_epochs(overrides: list[str], length: dict[str, int]) -> None:
    cfg = load_config(overrides)
    settings = build.local_settings(cfg)
    assert settings.length(recipe(cfg, 1).plan(0)) == length
