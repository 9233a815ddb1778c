"""flt_inputs.json: what is written is read again, and a forged file is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flt.core.errors import InputError
from flt.export.folder import _OWN
from flt.export.inputs import INPUTS, ModelInputs, TaskInputs, inputs_text, read_inputs

TASKS = {
    "sst2": TaskInputs("text", ("sentence",), "label", "label_name", merge={"up": ["good", "g*"]}),
    "mrpc": TaskInputs("pair", ("a", "b")),
    "dolly": TaskInputs("causal", ("q",), response="r", prompts=("{{x}} {q}:",)),
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    inputs = ModelInputs(TASKS, 64, "bf16-mixed", "2", ((0, 0), (3, 1)), ("sst2",))
    (tmp_path / INPUTS).write_text(inputs_text(inputs))
    assert read_inputs(tmp_path) == inputs
    assert _OWN.fullmatch(INPUTS)


def test_an_export_of_an_earlier_version_has_no_such_file(tmp_path: Path) -> None:
    assert read_inputs(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"more": 1}, "flt_inputs.json=more: there is no such key"),
        ({"version": 2}, "flt_inputs.json: version=2: allowed is 1"),
        ({"max_length": "9"}, "flt_inputs.json: max_length=9: allowed is an integer from 1"),
        ({"precision": "16"}, "flt_inputs.json: precision=16: allowed is"),
        ({"jobs": [[-1]]}, "flt_inputs.json: jobs="),
        ({"tasks": []}, "flt_inputs.json: tasks="),
        ({"tasks": {"a": {"kind": "sound", "columns": []}}}, "flt_inputs.json: a: kind=sound: allowed is"),
        ({"tasks": {"a": {"kind": "text"}}}, "flt_inputs.json: a=an object: columns is missing"),
        ({"tasks": {"a": {"kind": "text", "columns": ["x"], "run": "rm"}}}, "flt_inputs.json: a=run: there is no"),
    ],
)
def test_a_forged_file_is_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    card = {**json.loads(inputs_text(ModelInputs(TASKS))), **changes}
    (tmp_path / INPUTS).write_text(json.dumps(card))
    with pytest.raises(InputError) as error:
        read_inputs(tmp_path)
    assert str(error.value).startswith(line)
