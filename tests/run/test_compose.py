"""The configuration: keys and types, precedence of overrides, names of models and data, and sweeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flt.algorithm.registry import PARTS
from flt.core.errors import InputError
from flt.core.typed import typed as build_typed
from flt.data.config import DataConfig
from flt.models.adapters.registry import ADAPTERS
from flt.models.config import ModelConfig
from flt.run import schema
from flt.run.compose import (
    choices,
    compose_config,
    expand,
    flat,
    groups,
    load_choice,
    load_config,
    to_yaml,
)
from flt.run.schema import TrainConfig

CLASSES: dict[str, type] = {"data": DataConfig, "model": ModelConfig}
OWN_NAME = {(group, name): kind for group, kinds in PARTS.items() for name, kind in kinds.items()}
FILES = [(group, name, kind) for group, kind in CLASSES.items() for name in choices(group)]
FILES += [("adapter", name, kind) for name, (kind, _) in ADAPTERS.items()]
FILES += [(group, name, kind) for (group, name), kind in OWN_NAME.items()]


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.init}


@pytest.mark.parametrize(("group", "name", "kind"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_keys_of_a_file_are_the_fields_of_its_class(group: str, name: str, kind: type) -> None:
    keys = set(load_choice(group, name))
    assert keys == fields(kind) | {"name"}


@pytest.mark.parametrize("key", [None, "partition", "cohort", "local", "eval", "stop", "checkpoint", "cache", "export"])
def test_keys_of_the_main_file_are_the_fields_of_its_classes(key: str | None) -> None:
    cfg = compose_config([])
    kind: Any = TrainConfig if key is None else next(f.type for f in dataclasses.fields(TrainConfig) if f.name == key)
    kind = getattr(schema, kind) if isinstance(kind, str) else kind
    assert set(cfg if key is None else cfg[key]) == fields(kind)


@pytest.mark.parametrize(("group", "table"), [*PARTS.items(), ("adapter", ADAPTERS)], ids=[*PARTS, "adapter"])
def test_every_part_has_a_file_and_every_file_a_part(group: str, table: dict[str, Any]) -> None:
    assert choices(group) == sorted(table)


def test_groups_are_the_folders_of_conf() -> None:
    assert {*PARTS, "algo", "data", "model", "adapter", "engine", "experiment", "fleet"} == set(groups())


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"name": "hafl", "rounds": 10, "ranks": [2, 4, 8]}),
        (["algo=fedit"], {"name": "fedit", "ranks": None}),
        (["algo=scaffold", "local.lr=0.2"], {"local.lr": 0.2, "local.optimizer": "sgd"}),
        (["local.lr=0.2", "algo=scaffold"], {"local.lr": 0.2}),
        (["algo=hafl", "rule=scaffold", "rule.weights=uniform"], {"rule.name": "scaffold", "rule.weights": "uniform"}),
        (["algo=hafl", "grouping=kmeans", "grouping.k=2"], {"selection.name": "freeze", "grouping.k": 2}),
        (["algo=hafl", "experiment=rank_tiers"], {"rounds": 20, "name": "hafl"}),
        (["experiment=rank_tiers", "rounds=3"], {"rounds": 3}),
        (["local.lr=1e-3", "local.clip=1"], {"local.lr": 1e-3, "local.clip": 1.0}),
        (["importance=gradient", "importance.uncertainty=off"], {"importance.uncertainty": "off"}),
        (["name=' a b '"], {"name": " a b "}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_command_line_wins_over_the_experiment_and_that_over_the_recipe(
    overrides: list[str], expected: dict[str, Any]
) -> None:
    found = flat(load_config(overrides))
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "group", "name", "path"),
    [
        ("model=embedded", "model", "embedded", None),
        ("model=distilbert/distilbert-base-uncased", "model", "hub", "distilbert/distilbert-base-uncased"),
        ("model=folder", "model", "hub", "folder"),
        ("model=./folder", "model", "hub", "./folder"),
        ("model=it's a folder", "model", "hub", "it's a folder"),
        ("data=org/name", "data", "hub", "org/name"),
        ("data=reviews.csv", "data", "file", "reviews.csv"),
        ("data=/a/b c/reviews.parquet", "data", "file", "/a/b c/reviews.parquet"),
        ("data=straße/x=1.jsonl", "data", "file", "straße/x=1.jsonl"),
        ("data='quoted/x.npz'", "data", "file", "quoted/x.npz"),
        ("data=digits", "data", "digits", None),
    ],
)
def test_models_and_data_are_chosen_by_name_hub_id_or_path(
    override: str, group: str, name: str, path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "it's a folder"):
        (tmp_path / folder).mkdir()
    chosen = getattr(load_config([override]), group)
    assert (chosen["name"], chosen["path"]) == (name, path)


@pytest.mark.parametrize(
    ("overrides", "group", "lacks"),
    [
        (["algo=fl_tac_unlocked", "grouping=dbscan"], "grouping", "cannot_link"),
        (["algo=fl_tac", "transfer=none", "grouping=everyone"], "grouping", "k"),
        (["algo=haflq", "compression=channel"], "compression", "ratio"),
        (["algo=c2a", "adapter=houlsby"], "adapter", "factor"),
    ],
    ids=" ".join,
)
def test_a_part_in_anothers_place_leaves_the_recipes_settings_of_that_behind(
    overrides: list[str], group: str, lacks: str
) -> None:
    cfg = load_config(overrides)
    assert lacks not in getattr(cfg, group)
    with pytest.raises(InputError, match=rf"^{group}.{lacks}=1: there is no such key; allowed is a key of {group}: "):
        load_config([*overrides, f"{group}.{lacks}=1"])


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("data.where={lang: [en, de]}", {"lang": ["en", "de"]}),
        ("data.where.lang=[en]", {"lang": ["en"]}),
        ("data.where={}", {}),
        ("data.merge={good: [a, b], bad: [c]}", {"good": ["a", "b"], "bad": ["c"]}),
        ("data.tasks={first: [a, b], second: [b, c]}", {"first": ["a", "b"], "second": ["b", "c"]}),
        ("data.label_texts={a: an apple}", {"a": "an apple"}),
    ],
)
def test_mappings_with_names_of_the_users_can_be_given(override: str, found: dict[str, Any]) -> None:
    key = override.partition("=")[0].split(".")[1]
    assert load_config(["data=file", override]).data[key] == found


@pytest.mark.parametrize("override", ["data.where=3", "data.where.lang=3", "data.nowhere.lang=[en]", "local={lang: 3}"])
def test_other_values_of_mappings_and_other_mappings_are_refused(override: str) -> None:
    with pytest.raises(InputError, match=override.partition("=")[0].replace("local", "override")):
        build_typed(DataConfig, load_config(["data=file", override]).data, "data")


def test_settings_that_both_parts_have_stay_the_recipes() -> None:
    cfg = load_config(["algo=fl_tac_unlocked", "grouping=agglomerative", "grouping.memory=false"])
    assert (cfg.grouping["cannot_link"], cfg.grouping["features"], cfg.grouping["memory"]) == (True, "changes", False)


def test_a_configuration_as_yaml_is_the_same_configuration_again() -> None:
    cfg = load_config(["algo=fl_tac", "ranks=[2,4]", "data=a/b.csv"])
    assert build_typed(TrainConfig, OmegaConf.create(to_yaml(cfg)), "") == cfg


def test_flat_keys_are_those_of_the_command_line() -> None:
    found = flat(load_config(["data.tasks={}"]))
    assert {"local.lr", "data.tasks.low", "rule.weights", "ranks"} <= set(found)


@pytest.mark.parametrize(
    ("overrides", "count", "one"),
    [
        (["algo=hafl,fedit", "seed=0,1"], 4, ["algo=fedit", "seed=0"]),
        (["seed=range(0,3)"], 3, ["seed=2"]),
        (["ranks=[2,4]", "seed=1"], 1, ["ranks=[2,4]", "seed=1"]),
        (["ranks=[2],[4]"], 2, ["ranks=[4]"]),
        ([], 1, []),
    ],
    ids=["two keys", "range", "a list is one value", "lists", "nothing"],
)
def test_a_sweep_is_every_combination(overrides: list[str], count: int, one: list[str]) -> None:
    combinations = expand(overrides)
    assert len(combinations) == count
    assert one in combinations


def test_a_mistake_leaves_the_next_composition_whole() -> None:
    with pytest.raises(InputError):
        load_config(["local={foo:1}"])
    assert load_config(["algo=fedit"]).name == "fedit"


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"weigths": 1}, "rule.weigths=1"), ({"weights": [1]}, "rule.weights"), ({"_target_": "os.system"}, "_target_")],
    ids=["unknown", "wrong type", "target"],
)
def test_a_part_takes_its_own_settings_only(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match="allowed is") as error:
        build_typed(PARTS["rule"]["mean"], settings, "rule")
    assert named in str(error.value)
    assert "\n" not in str(error.value)
