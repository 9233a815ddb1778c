"""The bases of the parts: what a new part has to say, and what its defaults answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from toys import toy_clients, toy_federator, weights_of

from flt.algorithm.base import Part, SelectionPart
from flt.algorithm.importance import GradientSensitivity
from flt.algorithm.recipe import Recipe
from flt.algorithm.registry import PARTS
from flt.algorithm.rule.mean import Mean
from flt.algorithm.rule.stacking import Stacking
from flt.algorithm.view import View
from flt.core.errors import InputError
from flt.protocol.job import Job
from flt.protocol.layout import LORA_FACTORS
from flt.protocol.messages import Ids


@dataclasses.dataclass(frozen=True)
class EvenIds(SelectionPart):
    """A whole selection rule: every job trains components with even ids only."""

    works_on = LORA_FACTORS

    def __call__(self, view: View, job: Job, cohort: Sequence[Job]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        even = {name: tuple(i for i in ids if i % 2 == 0)[: job.rank] for name, ids in view.state.active.items()}
        return even, even


def test_a_selection_rule_of_one_method_trains_what_it_selects_and_nothing_else() -> None:
    federator = toy_federator(Recipe(Mean(), selection=EvenIds()), toy_clients(3), rounds=2)
    before = {name: weight.clone() for name, weight in weights_of(federator).items()}
    federator.fit()
    for layer in federator.server.layout.layers.values():
        moved = (weights_of(federator)[layer.b] != before[layer.b]).any(dim=0)
        assert moved.tolist() == [i % 2 == 0 for i in range(len(moved))]


def test_a_selection_rule_of_one_method_is_refused_where_a_rule_needs_all_components() -> None:
    with pytest.raises(InputError, match=r"^rule Residual with selection EvenIds: .*; allowed is all$"):
        Recipe(PARTS["rule"]["residual"](), selection=EvenIds())


@pytest.mark.parametrize("kind", PARTS)
def test_every_part_is_of_its_kind_and_refuses_no_module_that_has_all_roles(kind: str) -> None:
    federator = toy_federator(Recipe(Mean(), importance=GradientSensitivity()), toy_clients(2))
    for name, part in PARTS[kind].items():
        assert issubclass(part, Part), name
        assert part.kind == kind, name
    federator.server.recipe.check(federator.server.layout)


def test_a_part_that_refuses_another_names_both_and_what_is_allowed() -> None:
    line = str(Mean().clash(Stacking(), "no reason", "nothing"))
    assert line == "rule Mean with rule Stacking: no reason; allowed is nothing"
