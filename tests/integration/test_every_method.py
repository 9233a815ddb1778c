"""Every recipe of conf/algo is among the methods that the tests of all methods run."""

from __future__ import annotations

import dataclasses

import pytest
from methods import METHODS

from flt.algorithm.recipe import Recipe
from flt.run import build
from flt.run.compose import load_config
from flt.run.conf_groups import choices


def kinds(recipe: Recipe) -> list[str]:
    return [type(getattr(recipe, field.name)).__name__ for field in dataclasses.fields(recipe)]


KNOWN = [kinds(recipe) for recipe, _ in METHODS.values()]


@pytest.mark.parametrize("algo", choices("algo"))
def test_a_recipe_has_a_line_in_the_table_of_methods(algo: str) -> None:
    assert kinds(build.recipe(load_config([f"algo={algo}"]), tasks=2)) in KNOWN
