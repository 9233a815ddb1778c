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
        (LORA["auto_mapping"], [None, {}, {"base_model_class": "Bert"}], [False, [], {"a": None}, {"a": {"b": "c"}}]),
        (LORA["revision"], [None, "main"], [1, ["main"], "x" * 1001]),
        (LORA["task_type"], [None, "SEQ_CLS", "CAUSAL_LM"], ["", "OTHER", 1, ["SEQ_CLS"]]),
        (LORA["init_lora_weights"], [True, False, "gaussian", "eva"], [None, 1, "pissa", "pissa_niter_4", "loftq"]),
        (LORA["layers_to_transform"], [None, 0, [], [0, 2]], [-1, True, [True], ["0"], "0", 2**31]),
        (LORA["use_rslora"], [True, False], [None, 1, "yes"]),
        (LORA["bias"], ["none", "lora_only"], ["all", None, "evil_only"]),
        (LORA["r"], [1, 2**16], [0, 2**16 + 1, True, 1.0]),
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
