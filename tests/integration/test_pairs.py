"""Every part with every other part on LoRA: three rounds run, or the two are refused in one line that says why."""

from __future__ import annotations

import re

import pytest
from benchmarks.pages.pairs import ROUNDS, Part, bench, pairs, parts
from methods import clients_of
from slowly import mostly_slowly
from toys import toy_federator, weights_of

from flt.algorithm.recipe import Recipe
from flt.algorithm.selection.all import All

QUICK = ["selection=freeze grouping=kmeans", "schedule=annealed server_optimizer=adam", "grouping=kmeans rule=scaffold"]
ALL = [" ".join(f"{group}={name}" for group, name in pair) for pair in pairs() if "buffers" not in dict(pair)]
"""Without the policies for buffers, since a toy has none: tests/integration/test_buffers.py tries every recipe."""
LINE = re.compile(r"[^\n]+: [^\n]+; allowed is [^\n]+")


def of(words: str) -> list[Part]:
    return [(group, name) for group, _, name in (word.partition("=") for word in words.split())]


def tiers(recipe: Recipe) -> tuple[int, ...] | None:
    """Unequal ranks, where clients may have them."""
    return None if isinstance(recipe.selection, All) else (2, 8)


@pytest.mark.parametrize("pair", mostly_slowly(ALL, QUICK))
def test_two_parts_run_together_or_are_refused_with_a_reason(pair: str) -> None:
    line = bench().refusal(*of(pair))
    if line is not None:
        assert LINE.fullmatch(line)
        return
    recipe = bench().recipe(*of(pair))
    federator = toy_federator(recipe, clients_of(2, jobs=2, ranks=tiers(recipe)), rounds=ROUNDS, rank=8, steps=1)
    before = {name: value.clone() for name, value in weights_of(federator).items()}
    after = [group.weights for group in federator.fit().groups.values()]
    assert federator.state.rounds == ROUNDS
    assert all(value.isfinite().all() for weights in after for value in weights.values())
    assert any(not value.equal(before[name]) for weights in after for name, value in weights.items())


@pytest.mark.parametrize("part", parts(), ids=lambda part: "=".join(part))
def test_no_part_is_refused_whatever_is_beside_it(part: Part) -> None:
    assert bench().refusal(part) is None


def test_a_pair_keeps_its_own_parts_and_not_what_the_other_would_bring() -> None:
    found = bench().recipe(("schedule", "annealed"), ("importance", "magnitude"))
    assert type(found.importance).__name__ == "Magnitude"
    assert bench().company(("schedule", "annealed")) == (("importance", "gradient"),)
