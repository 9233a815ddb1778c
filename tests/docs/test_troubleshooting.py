"""The error lines that docs/troubleshooting.md quotes: printed by the command above them, or written in the source."""

from __future__ import annotations

import ast
import contextlib
import functools
import re
import shutil
from pathlib import Path

import pytest
from pages import DOCS, PROCESSES, ROOT, Block, blocks, pattern, run
from tiny import save_bert, save_decoder

PAGE = DOCS / "troubleshooting.md"
BLOCKS = blocks(PAGE)
PRINTED = [block for block in BLOCKS if block.language == "console"]
QUOTED = [line for block in BLOCKS if block.language == "text" for line in block.text.splitlines()]
TINY = ["clients=3", "local.steps=5", "eval.examples=20", "eval.client_examples=4"]
TRAINS = ("local.lr", "faults.drop")
"""Keys of the commands that get as far as a round."""
COMMANDS = [
    pytest.param(block, id=" ".join(words[2:]), marks=[pytest.mark.slow] if {*words} & {*PROCESSES} else [])
    for block in PRINTED
    for words in block.commands
]
PARTS = re.compile(r"\.\.\.|^run=|[;:] allowed is |^[\w.]+=[\w.]+: (?:allowed is )?")
"""What the parts of a line are divided by: a line is put together from a key, a value, a reason and what is allowed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the page name: data with and without mistakes, tiny models, and a run, whole and broken."""
    folder = tmp_path_factory.mktemp("troubles")
    save_bert(folder / "encoder")
    save_decoder(folder / "decoder")
    (folder / "empty_folder").mkdir()
    rows = "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(60))
    files = {
        "tickets": f"text,label\n{rows}",
        "header": "text,label\n",
        "minus": "text,label\n" + "".join(f"word {i},{i % 3 - 1}\n" for i in range(60)),
        "nolabel": f"text,label\n{rows.replace('word 3,b', 'word 3,')}",
        "open": 'text,label\n"a word,a\nb,b\n',
        "new": "text\nword 1\n",
        "body": "body,label\nword 1,a\n",
        "refunds": "text,label\nword 1,billing\nword 2,refunds\n",
        "latin": "text,label\n" + "caf\xe9 \x93x\x94 \xe8\xe6\xfe,a\nb,b\n" * 30,
    }
    for name, text in files.items():
        (folder / f"{name}.csv").write_bytes(text.encode("latin-1"))
    with contextlib.chdir(folder):
        code, printed = run(["flt", "train", "algo=hafl", "data=tickets.csv", "model=./encoder", "rounds=1", *TINY])
        assert code == 0, printed
    shutil.copytree(folder / "lightning_logs/hafl/version_0", folder / "broken")
    weights = folder / "broken/adapter/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@functools.cache
def texts_of_the_source() -> list[str]:
    """All texts in src/flt; an f-string is one text, with its values left out by ``...``."""
    found: list[str] = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("block", COMMANDS)
def test_a_command_prints_the_line_below_it(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (words,) = block.commands
    given = {word.partition("=")[0] for word in words}
    tiny = [*TINY, "root=stopped"] if given & set(TRAINS) else []
    code, printed = run([*words, *tiny])
    assert code == 2
    assert not (folder / "lightning_logs/flora").exists()  # a run that is refused leaves no folder
    for line in block.printed:
        assert re.search(f"^{pattern(line)}", printed, re.MULTILINE), printed


@pytest.mark.parametrize("line", QUOTED)
def test_a_quoted_line_is_written_in_the_source(line: str) -> None:
    parts = [part for part in PARTS.split(line) if len(part) > 8]
    assert parts
    for part in parts:
        pieces = part.strip(" :;=").split("; the same command")
        assert all(any(piece in text for text in texts_of_the_source()) for piece in pieces), part


def test_most_lines_are_tried() -> None:
    assert len(PRINTED) > 2 * len(QUOTED)
    assert {line.split()[0] for block in PRINTED for line in block.printed} == {"error:"}
