"""Bad messages of every kind: one line, nothing executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from test_bad_inputs import BAD, HUGE, MARK, MESSAGE, OVERLAP, VAST, Evil, rewritten

from flt.core.errors import InputError
from flt.protocol.codec import decode, encode
from flt.protocol.messages import Plan

MESSAGES = {
    "a pickle": pickle.dumps(Evil()),
    "a pickled tensor": pickle.dumps(torch.ones(2)),
    "nothing": b"",
    "cut off": encode(Plan())[:-3],
    "a huge header": HUGE,
    "a tensor of a huge size": VAST,
    "tensors that overlap": OVERLAP,
    "a tensor that goes past the end": rewritten(
        {**MESSAGE, "x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8
    ),
    "safetensors of others": safetensors.torch.save({"x": torch.ones(1)}),
    "a class that isn't known": safetensors.torch.save(
        {}, metadata={"flt": json.dumps({"c": "os.system", "f": {"command": f"touch {MARK}"}})}
    ),
    "a tensor that isn't there": safetensors.torch.save({}, metadata={"flt": '{"t": "7"}'}),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_a_bad_message_is_refused_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        decode(MESSAGES[what])
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_there_are_at_least_forty_bad_inputs() -> None:
    assert len(BAD) + len(MESSAGES) >= 40


def test_the_documentation_has_what_is_said_of_each_of_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert [what for what in [*BAD, *MESSAGES] if f"| {what} |" not in page] == []
