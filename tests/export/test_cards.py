"""A card's keys, types and values are those of an allowlist; everything else is one short line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flt.core.errors import InputError
from flt.export.cards import BASE_CARD, LABELS, LORA, OWN, Rule, check, integer, number, one_of, read


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (integer(0, 5), [0, 5], [-1, 6, True, 1.0, "1", None]),
        (number(0, 5), [1, 0.5, 5], [0, float("nan"), float("inf"), True, "1", 10**400]),
        (one_of(None, False), [None, False], [0, True, ""]),
        (BASE_CARD["package"], [None, "name/folder"], ["", "/etc", "a//etc", "a/../b", "a\\b", "a/./b", 1]),
        (OWN["folder"], ["", "bert"], ["a/b", "..", None]),
        (LABELS["texts"], [["a"], []], ["a", [1], None]),
        (LORA["velora_config"], [None, False, {}, []], [True, {"a": 1}, "x", 0.5]),
    ],
)
def test_a_rule_allows_values_of_its_types_and_range(rule: Rule, good: list[Any], bad: list[Any]) -> None:
    allows, _ = rule
    assert [value for value in good if not allows(value)] == []
    assert [value for value in bad if allows(value)] == []


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "???", "a{b", "x" * 1001])
def test_no_setting_of_an_adapter_is_resolved(text: str) -> None:
    with pytest.raises(InputError, match="card: adapter="):
        check("card", {"adapter": {"head": text}}, OWN)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "card.json=list"),
        ('{"scale": NaN}', "NaN is no number"),
        ('{"scale": 1e999}', "1e999 is no number"),
        ('{"texts": []}', "scale is missing"),
        ('{"scale": 1, "texts": [], "x": 1}', "there is no such key"),
        ('{"scale": "' + "x" * 10**6 + '"}', r"card.json: scale=x{2000}\.\.\.: allowed"),
    ],
)
def test_a_card_is_read_whole_or_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        read(tmp_path / "card.json", LABELS, *LABELS)
    assert len(str(caught.value)) < 2200
