"""Bad messages of every kind: one line, nothing executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import BAD
from bad_messages import MESSAGES

from flt.core.errors import InputError
from flt.protocol.messages import decode


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
