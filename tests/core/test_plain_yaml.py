"""YAML that isn't trusted: small, without aliases, and without interpolations in its values."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flt.core import plain_yaml
from flt.core.plain_yaml import check, escaped, read, unescaped

REFUSED = {
    "an alias": ("a: &x 1\nb: *x\n", "aliases"),
    "an interpolation": ("a: x ${b}\n", "interpolations"),
    "an interpolation in a list": ("a: [{b: [1, '${c}']}]\n", "interpolations"),
    "an interpolation after a collection as a key": ("? [a, b]\n: ${c}\n", "interpolations"),
    "an interpolation behind an escaped backslash": ("a: x \\\\${b}\n", "interpolations"),
    "an escape and an interpolation": ("a: \\${b} ${c}\n", "interpolations"),
    "an interpolation with an anchor": ("a: &x ${b}\n", "interpolations"),
    "an interpolation as the whole document": ("${b}", "interpolations"),
    "many levels": ("a: " + "[" * 31, "30 levels"),
    "many levels of keys": ("? " * 31 + "a", "30 levels"),
}
ALLOWED = [
    "a: x \\${b}\n",
    "${a}: b\n",
    "{'${a}': {'${b}': [c]}, d: e}\n",
    "a: $b {c}\n",
    "a: [[[]]]\n",
    "",
    "- 1\n- b: c\n",
]


@pytest.mark.parametrize("what", REFUSED)
def test_what_stands_for_more_than_it_says_is_refused(what: str) -> None:
    text, why = REFUSED[what]
    with pytest.raises(ValueError, match=why):
        check(text)


@pytest.mark.parametrize("text", ALLOWED)
def test_all_else_is_read_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    assert read(tmp_path / "file") == text


@pytest.mark.parametrize(("limit", "text"), [("LARGEST", "a: bcd"), ("MOST", "[1, 2, 3, 4]")])
def test_a_large_document_is_refused(limit: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_yaml, limit, 4)
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match="than 4 "):
        read(tmp_path / "file")


def test_omegaconf_makes_of_an_escaped_text_the_text_itself() -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(["\\", "${", "}", "a", " ", "$", "{", ":", "'", '"', "."], k=rng.randrange(1, 12)))
        assert OmegaConf.create({"of": escaped(text)}).of == text, repr(text)
        assert unescaped(escaped(text)) == text
        check(OmegaConf.to_yaml(OmegaConf.create({"of": escaped(text)})))
