"""Config -> objects: parts by name, the sampler, ranks and the length of a fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from commands import in_empty_folder
from toys import Toy

from flt.algorithm.compression.methods import Quantised
from flt.algorithm.grouping.base import Everyone
from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.grouping.oracle import OracleGrouping
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.registry import PARTS, part
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.scaffold import Scaffold
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.selection.freeze import Freeze
from flt.algorithm.selection.truncate import Truncate
from flt.algorithm.transfer import CosineTransfer
from flt.core.errors import InputError
from flt.run import build
from flt.run.assembly import with_capacities
from flt.run.build import recipe, sampler
from flt.run.compose import load_config
from flt.server.client_sampling import FixedSize, Poisson


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("algo", "parts"),
    [
        ("fedit", {"rule": Mean()}),
        ("hafl", {"rule": Mean(), "selection": Freeze(), "importance": GradientSensitivity()}),
        (
            "haflq",
            {
                "rule": Mean(),
                "selection": Freeze(),
                "importance": GradientSensitivity(),
                "compression": Quantised(ratio=0.5),
            },
        ),
        ("fl_tac", {"rule": Mean(weights="uniform"), "grouping": KMeansGrouping(k=2)}),
        (
            "fl_tac_unlocked transfer=cosine",
            {
                "rule": Mean(weights="uniform"),
                "grouping": KMeansGrouping(k=2, features="changes", tensors="lora", cannot_link=True, memory=True),
                "transfer": CosineTransfer(),
            },
        ),
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
    groups = [field.name for field in dataclasses.fields(Recipe)]
    assert {group: getattr(made, group) for group in groups} == {
        group: parts.get(group, getattr(defaults, group)) for group in groups
    }


def test_the_oracle_alone_is_told_the_tasks() -> None:
    truth = {(0, 0): "a", (0, 1): "b"}
    found = recipe(load_config(["algo=fl_tac", "grouping=oracle"]), 2, truth).grouping
    assert found == OracleGrouping().with_tasks(truth)
    assert found.several
    assert recipe(load_config(["algo=fl_tac"]), 2, truth) == recipe(load_config(["algo=fl_tac"]), 2)


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in PARTS for name in PARTS[group]])
def test_every_part_is_built_by_its_name_alone(group: str, name: str) -> None:
    assert type(part(group, {"name": name})) is PARTS[group][name]


@pytest.mark.parametrize(
    "chosen", [{"name": "nope"}, {}, {"name": "mean", "_target_": "os.system"}, {"name": "os.system"}], ids=str
)
def test_anything_else_is_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="rule.*allowed is"):
        part("rule", chosen)


@pytest.mark.parametrize("chosen", [{"name": "nope"}, {}, {"name": "lora", "width": 3}], ids=str)
def test_an_adapter_that_isnt_there_or_has_no_such_setting_is_refused(chosen: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="^adapter.*allowed is"):
        build.attach(dataclasses.replace(load_config([]), adapter=chosen), Toy())


def test_one_task_makes_one_group() -> None:
    grouping = recipe(load_config(["algo=fl_tac"]), tasks=1).grouping
    assert not grouping.several
    assert not Everyone().several


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


def test_sa_fedlora_has_its_proximal_term_in_the_rounds_of_its_first_stage_alone() -> None:
    plan = recipe(load_config(["algo=sa_fedlora", "plan.until=2"]), tasks=1).plan
    assert [(plan(done).stage, plan(done).mu) for done in range(3)] == [("full", 0.01)] * 2 + [("adapter", 0.0)]
