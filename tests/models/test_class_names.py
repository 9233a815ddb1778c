"""Names of outputs in the configs of transformers models."""

from __future__ import annotations

import tiny
from torch import nn

from flt.models.class_names import LONGEST, name_models_inside, name_outputs, output_names


def test_tasks_of_the_same_classes_share_their_names() -> None:
    assert output_names([("bad", "good"), ("bad", "good")]) == ["bad", "good"]
    assert output_names([]) == []


def test_long_names_are_cut() -> None:
    assert [len(name) for name in output_names([("a" * 900,), ("b" * 900,)])] == [LONGEST]


def test_a_head_with_more_outputs_than_names_keeps_plain_names_for_the_rest() -> None:
    config = tiny.config("bert", num_labels=4)
    name_outputs(config, ["ham", "spam"])
    assert config.id2label == {0: "ham", 1: "spam", 2: "LABEL_2", 3: "LABEL_3"}
    name_outputs(config, list("abcdef"))
    assert list(config.id2label.values()) == list("abcd")
    assert config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_only_models_with_as_many_unnamed_outputs_get_names() -> None:
    named = tiny.classifier("bert", 2)
    name_outputs(named.config, ["no", "yes"])
    module = nn.ModuleList([tiny.classifier("bert", 2), tiny.classifier("bert", 3), named, nn.Linear(2, 2)])
    name_models_inside(module, ["ham", "spam"])
    found = [list(part.config.id2label.values()) for part in list(module)[:3]]  # type: ignore[union-attr]
    assert found == [["ham", "spam"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["no", "yes"]]
