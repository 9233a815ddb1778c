"""Tables of results inside of pages that people write."""

from __future__ import annotations

from pathlib import Path

import toy_results
from benchmarks.results import embedded, page

TEXT = "Before.\n\n<!-- made by make results TABLE={name} -->\nold\n<!-- end of {name} -->\n\nAfter.\n"


def test_a_marked_place_has_the_tables_of_its_page_and_the_rest_stays(tmp_path: Path) -> None:
    toy = toy_results.table(tmp_path)
    store = toy_results.finish(toy, tmp_path)
    mine, others = tmp_path / "mine.md", tmp_path / "others.md"
    mine.write_text(TEXT.format(name="toy"))
    others.write_text(TEXT.format(name="another"))
    assert embedded.publish([toy], store, tmp_path) == [mine]
    whole = page.text(toy, page.finished(toy, store))
    before, _, rest = mine.read_text().partition("<!-- made by make results TABLE=toy -->\n")
    table, _, after = rest.partition("<!-- end of toy -->\n")
    assert (before, after) == ("Before.\n\n", "\nAfter.\n")
    assert table.strip() in whole
    assert "| Fancy | **0.641 ± 0.016**" in table
    assert others.read_text() == TEXT.format(name="another")
    assert embedded.publish([toy], store, tmp_path) == []
