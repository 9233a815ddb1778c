"""The licence of a base, as its config or its card names it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from flt.models.license import license_of

CARDS = {
    "---\nlicense: apache-2.0\n---\n# A model": "apache-2.0",
    "---\r\nlicense: mit\r\n---\r\n": "mit",
    "---\nlicense: [mit]\n---\n": "",
    "---\nlicense: <b>mine</b>\n---\n": "",
    "---\nlicense: &a mit\nother: *a\n---\n": "",
    "license: mit": "",
    "---\n{": "",
    "": "",
}


@pytest.mark.parametrize("text", CARDS)
def test_the_licence_is_that_of_the_card_if_it_is_a_plain_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(text.encode())
    assert license_of(str(tmp_path), SimpleNamespace(), local=True) == CARDS[text]


def test_the_licence_of_the_config_comes_first_and_a_missing_card_has_none(tmp_path: Path) -> None:
    assert license_of(str(tmp_path), SimpleNamespace(license="mit"), local=True) == "mit"
    assert license_of(str(tmp_path), SimpleNamespace(), local=True) == ""
    assert license_of("org/missing", SimpleNamespace(), local=True) == ""
