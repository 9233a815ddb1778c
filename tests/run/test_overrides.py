"""The overrides of a configuration make the same configuration again."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.run.compose import compose_config
from flt.run.conf_groups import choices
from flt.run.overrides import _flat, difference, hydra_value, overrides_of


def composed(*overrides: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(compose_config(overrides), resolve=True)
    return found


@pytest.mark.parametrize("recipe", choices("algo"))
def test_a_recipe_is_one_override(recipe: str) -> None:
    assert overrides_of(composed(f"algo={recipe}")) == [f"algo={recipe}"]
    assert difference(composed(f"algo={recipe}")) == {}


@pytest.mark.parametrize(
    "given",
    [
        ["algo=hafl", "data=dolly", "rounds=3", "ranks=[1,2]", "local.lr=1e-3", "local.steps=null", "local.epochs=2"],
        ["algo=fl_tac", "grouping=dbscan", "rule.weights=examples", "data.test=0.25"],
        ["algo=fedit", "rule=trimmed_mean", "rule.trim=0.1", "adapter=houlsby", "engine=batched", "compile=true"],
        ["algo=fedit", "experiment=rank_tiers", "model=org/name", "data=./it's here.csv", "data.text='a: b, c'"],
        ["algo=c2a", "data=glue", "data.use=[sst2]", "data.sets.sst2.subset=other", "task_rounds={sst2: [1, null]}"],
        ["algo=hafl", r"data.prompts=['Q \${x} {a}']", "data.where={lang: [en, de]}", "name='1e3'", r"root='\${oc}'"],
    ],
)
def test_the_overrides_make_the_configuration_again(given: list[str]) -> None:
    made = composed(*given)
    again = overrides_of(made)
    assert composed(*again) == made
    assert len(again) <= len(given) + 3


def test_every_key_fed_back_makes_the_configuration_again() -> None:
    made = composed("algo=hafl", "data=dolly", "rule.pad=sent", "local.clip=1", "ranks=[3]", "data.text='x y'")
    groups = [f"{group}={made[group]['name']}" for group in ("data", "model", "rule", "selection", "importance")]
    keys = {key: value for key, value in _flat(made) if not key.endswith(".name") and key != "algo"}
    assert composed("algo=hafl", *groups, *(f"{key}={hydra_value(value)}" for key, value in keys.items())) == made


@pytest.mark.parametrize(
    "text", ["a'b", "a\\", "a\\'b", "\\\\'", "x y", "${a}", "\\${a}", "5", "1e3", "on", "a=b", "a,b", "", " x", "[x]",
             "{x}", "nan", "NULL", "a: b", "#a", "é", "a\tb", '"q"', "'", "-5", ".5", "-", ".", "../a", "./a@b+c%d"],
)  # fmt: skip
def test_a_text_comes_back_as_it_was(text: str) -> None:
    assert composed(f"data.text={hydra_value(text)}")["data"]["text"] == text


@pytest.mark.parametrize("name", ["a b", "a,b", "a:b", "(x)", "[x]", "{x}", "a=b", "a\\b", "5 stars"])
def test_the_name_of_a_class_comes_back_as_it_was(name: str) -> None:
    made = composed(f"data.merge={hydra_value({name: ['x', name]})}")
    assert made["data"]["merge"] == {name: ["x", name]}


def test_what_differs_from_a_recipe_is_named_by_key_or_group() -> None:
    made = composed("algo=fedit", "data=dolly", "data.text=other", "rule=median", "local.lr=0.1")
    assert difference(made) == {"data": "dolly", "data.text": "other", "rule": "median", "local.lr": 0.1}


ONE_TASK = {**composed("data=dolly")["data"], "tasks": {"one": ["open_qa"]}}  # Hydra merges, and removes no task


@pytest.mark.parametrize(
    "change",
    [
        {"data": {"name": "own"}},
        {"data": ONE_TASK},
        {"algo": "unheard"},
        {"newer": 3},
        {"rule": {"name": "mean", "x": 1}},
    ],
)
def test_settings_that_no_command_line_makes_are_one_line(change: dict[str, Any]) -> None:
    made = {**composed("algo=fedit"), **change}
    with pytest.raises(InputError, match=r"allowed is a setting that a command line can make|there is no such key"):
        overrides_of(made)
    difference(made)
