"""``flt generate``: one prompt, a file of prompts, or lines that are typed or come from a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from causal_runs import causal_run, copied

import flt
from flt.cli import generate as command
from flt.cli.main import main
from flt.inference.text_generator import Answer

WARM = ["temperature=3", "seed=4", "max_new_tokens=6"]
SETTINGS = {"temperature": 3.0, "seed": 4, "max_new_tokens": 6}


def answer(prompt: object, name: str = "one", **settings: object) -> str:
    found = flt.generate(causal_run(name), prompt, **{**SETTINGS, **settings})  # type: ignore[call-overload]  # as given
    assert isinstance(found, str)
    return found


def test_the_answer_is_all_that_standard_output_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(causal_run("one")), "prompt=good book", *WARM]) == 0
    assert capsys.readouterr().out == f"{answer('good book')}\n"


def test_texts_of_other_columns_are_given_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    expected = answer({"prompt": "good book", "context": "bad=film"})
    for words in (["prompt=good book", "context=bad=film"], ["field.instruction=good book", "field.context=bad=film"]):
        assert main(["generate", str(causal_run("one")), *words, *WARM]) == 0
        assert capsys.readouterr().out == f"{expected}\n"


def test_a_dash_takes_standard_input_as_the_prompt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("good\nbook\n"))
    assert main(["generate", str(causal_run("one")), "prompt=-", "raw=true", *WARM]) == 0
    assert capsys.readouterr().out == f"{answer('good book', raw=True)}\n"  # to the tokenizer, a line break is a space


def test_each_group_answers_under_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(causal_run("groups")), "prompt=good", "group=all", *WARM]) == 0
    expected = "".join(f"group_{k}:\n{answer('good', 'groups', group=k)}\n" for k in (1, 2))
    assert capsys.readouterr().out == expected


def test_a_file_of_prompts_becomes_a_file_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "questions.txt").write_text("good book\n\nvery bad film\n")
    out = tmp_path / "answers.jsonl"
    words = ["generate", str(causal_run("one")), f"prompts={tmp_path / 'questions.txt'}", "max_new_tokens=4"]
    assert main([*words, f"out={out}"]) == 0
    assert capsys.readouterr().out == ""
    found = [json.loads(line) for line in out.read_text().splitlines()]
    for row, prompt in zip(found, ["good book", "very bad film"], strict=True):
        text = flt.generate(causal_run("one"), prompt, max_new_tokens=4)
        assert {key: row[key] for key in ("prompt", "answer")} == {"prompt": prompt, "answer": text}
        assert row["finish_reason"] in ("stop", "length")
    assert main(words) == 0
    assert capsys.readouterr().out == out.read_text()


def test_a_table_of_prompts_is_answered_by_each_group(tmp_path: Path) -> None:
    rows = [{"instruction": "good", "context": "bad film", "id": 7}, {"instruction": "book", "context": "", "id": 8}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "answers.jsonl"
    words = ["generate", str(causal_run("groups")), f"prompts={tmp_path / 'q.jsonl'}", f"out={out}", "group=all"]
    assert main([*words, "batch_size=2", "max_new_tokens=3"]) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["group"], row["instruction"]) for row in found] == [
        ("group_1", "good"), ("group_1", "book"), ("group_2", "good"), ("group_2", "book"),
    ]  # fmt: skip
    texts = flt.generate(
        causal_run("groups"),
        [{"prompt": "good", "context": "bad film"}, "book"],
        group=2,
        max_new_tokens=3,
        batch_size=2,
    )
    assert [row["answer"] for row in found[2:]] == texts


def test_lines_of_a_pipe_are_answered_one_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "good book", "", "/seed 9", "good book", "/context very bad", "film", "/context", "/top_p 2", "/nothing",
        "/settings", "/help", "/group 2", "good", "/group 9", "/group all", "good", "/exit", "never read",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert main(["generate", str(causal_run("groups")), "--interactive", "group=1", *WARM]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        answer("good book", "groups", group=1),
        answer("good book", "groups", group=1, seed=9),
        answer({"prompt": "film", "context": "very bad"}, "groups", group=1, seed=10),
        answer("good", "groups", group=2, seed=11),
        answer("good", "groups", group=2, seed=12),
    ]
    for line in (
        "error: top_p=2.0: allowed is a number in (0, 1]",
        "error: command=/nothing: allowed is /temperature <value>, ",
        "seed=11",
        "group=group_1",
        "  /exit                 ends",
        "error: group=9: there is no such model in this run; allowed is group_1, group_2, all",
        "error: group=all: allowed is one of the run's models",
    ):
        assert line in printed.err


def test_the_end_of_a_pipe_ends_without_a_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["generate", str(causal_run("one")), "--interactive"]) == 0
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        def answer(self, prompts: object, sampling: object, stream: object) -> list[Answer]:
            stream("red \x1b[31m text\n")  # type: ignore[operator]  # a function
            return [Answer("red \x1b[31m text\n", "stop")]

    monkeypatch.setattr(sys, "stdout", Terminal())
    command.say(Hostile(), "p", None)  # type: ignore[arg-type]  # stands in for a generator
    assert sys.stdout.getvalue() == "red \\x1b[31m text\n\n"  # type: ignore[attr-defined]  # the one above


@pytest.mark.slow
def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_ends(tmp_path: Path) -> None:
    run = copied("one", tmp_path)
    leader, follower = pty.openpty()
    code = (  # an answer that never ends, until a signal comes
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background command ignores it
        "from flt.inference import text_generator as t\n"
        "own = t.TextGenerator.answer\n"
        "def answer(self, prompts, sampling, stream=None):\n"
        "    if 'book' in prompts[0]:\n"
        "        stream('begun ')\n"
        "        time.sleep(60)\n"
        "    return own(self, prompts, sampling, stream)\n"
        "t.TextGenerator.answer = answer\n"
        "from flt.cli.main import main\n"
        f"sys.exit(main(['generate', {str(run)!r}, '--interactive', *{WARM!r}]))\n"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(follower)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([leader], [], [], 1)[0]:
                shown += os.read(leader, 4096).decode()
        shown = shown[shown.index(text) + len(text) :]

    until("> ")
    os.write(leader, b"book\n")
    until("begun ")
    os.write(leader, b"\x03")
    until("(stopped)")
    until("> ")
    os.write(leader, b"good\n")
    until(" ".join(answer("good", seed=5).split()) or "> ")
    until("> ")
    os.write(leader, b"half a line\x03")
    until("> ")
    os.write(leader, b"\x04")
    assert started.wait(30) == 0
    os.close(leader)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "generate=: no run is named; allowed is 1 of: a run's folder, or last"),
        (["RUN"], 'generate=RUN: allowed is one of prompt="...", prompts=<file>, or --interactive'),
        (["RUN", "prompt=a", "--interactive"], "generate="),
        (["RUN", "prompt=a", "prompts=b.txt"], "generate="),
        (["nowhere", "prompt=a"], "run=nowhere: there is no such folder; allowed is a run's folder"),
        (["RUN", "prompt=a", "temprature=1"], "generate=temprature=1: the nearest is temperature; allowed is prompt="),
        (["RUN", "prompt=a", "temperature=warm"], "temperature=warm: "),
        (["RUN", "prompt=a", "top_k=1.5"], "top_k=1.5: "),
        (["RUN", "prompt=a", "max_new_tokens=100"], "max_new_tokens=100: the model has 16 positions"),
        (["RUN", "prompt=a", "raw=perhaps"], "raw=perhaps: "),
        (["RUN", "prompt="], "prompt=: allowed is a text for instruction or context or prompt"),
        (["RUN", "field.colour=red"], "colour=red: the run's prompts have no such text; allowed is instruction"),
        (["RUN", "prompt=a", "device=cuda:7"], "device=cuda:7: "),
        (["RUN", "prompt=a", "group=5"], "group=5: there is no such model in this run; allowed is no group"),
        (["RUN", "prompt=a", "out=a.jsonl"], "out=a.jsonl: allowed is a file of answers to prompts=<file>"),
        (["RUN", "prompts=none.txt"], "prompts=none.txt: there is no such file"),
        (["RUN", "prompts=p.txt", "out=a.txt"], "out=a.txt: allowed is a path that ends in .jsonl"),
        (["RUN", "prompts=p.txt", "out=none/a.jsonl"], "out=none/a.jsonl: allowed is a path that ends in .jsonl"),
        (["RUN", "prompts=p.txt", "batch_size=0"], "batch_size=0: allowed is an integer >= 1"),
        (["RUN", "--interactive", "group=all"], "group=all: allowed is one of the run's models"),
        (["RUN", "--loud"], "generate=--loud: allowed is --interactive"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("good\n")
    given = [str(causal_run("one")) if word == "RUN" else word for word in words]
    capsys.readouterr()
    assert main(["generate", *given]) == 2
    printed = capsys.readouterr()
    (said,) = printed.err.splitlines()
    assert said.replace(str(causal_run("one")), "RUN").startswith(f"error: {line}")
    assert printed.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.txt"]
