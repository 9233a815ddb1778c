"""Lines of errors."""

from __future__ import annotations

from flt.core.errors import LONGEST, InputError


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    line = str(InputError.of("\x1b]0;title\x07key", "\x1b[2J\u202evalue", "a\u0000", "why\r\nnot"))
    assert line == r"\x1b]0;title\x07key=\x1b[2J\u202evalue: why not; allowed is a\x00"
    assert str(InputError.of("é", "☃ 語", "ü")) == "é=☃ 語: allowed is ü"


def test_a_long_part_of_a_line_is_shortened() -> None:
    line = str(InputError.of("key", "x" * 10 * LONGEST, "short"))
    assert line == f"key={'x' * LONGEST}...: allowed is short"
