"""Plants small faults in the maths and in the round loop, and says which of them the tests let pass.

    .venv/bin/python -m benchmarks.tools.mutants                       120 mutants of seed 0, two at a time
    .venv/bin/python -m benchmarks.tools.mutants --list                what would be planted
    .venv/bin/python -m benchmarks.tools.mutants --only 7,31 --slow    two of them, with the slow tests too

A mutant changes one operator, changes one constant, drops one statement, or swaps two arguments; as many of each kind
are drawn. Each is planted in a copy of the checkout. The tests of its package run first, then all others, until one
fails. Tests run in processes that are forked from this one, which has the heavy imports; those that fail there without
any mutant are left out. The last line is ``<killed> of <mutants> killed``.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TARGETS = (
    "algorithm/**/*.py", "server/*.py", "client/fit.py", "client/trainer.py", "client/isolation.py", "client/loader.py",
    "protocol/*.py", "engines/serial.py", "engines/distributed.py",
)  # fmt: skip
"""Below src/flt: the maths of the parts, the round loop, and what travels."""
COPIED = ("src", "conf", "tests", "benchmarks", "docs", "setup.cfg", "README.md", "Makefile", "CHANGELOG.md")
LIBRARIES = (
    "torch",
    "lightning.pytorch",
    "transformers",
    "peft",
    "torchmetrics",
    "datasets",
    "sklearn",
    "hypothesis",
    "pytest",
)
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
KINDS = ("operator", "constant", "dropped", "swapped")
STAGE_LIMIT = 900
"""Seconds after which a stage of tests counts as failed: the mutant has made a test hang."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        kind: One of ``KINDS``.
        file: Path below the checkout.
        line: Line of the code that changes.
        start: Character at which the change begins, in the whole file.
        end: Character behind the last one that is replaced.
        text: What is put there.
        before: What stood there.
    """

    kind: str
    file: str
    line: int
    start: int
    end: int
    text: str
    before: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {_short(self.before)} -> {_short(self.text)}"


def mutants(root: Path, seed: int, count: int) -> list[Mutant]:
    """Draws mutants of a checkout, as many of each kind, sorted by file and line."""
    sites: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    paths = sorted({path for pattern in TARGETS for path in (root / "src" / "flt").glob(pattern)})
    for path in paths:
        for mutant in _sites(path.read_text(), path.relative_to(root).as_posix()):
            sites[mutant.kind].append(mutant)
    draw = random.Random(seed)
    chosen = [mutant for kind in KINDS for mutant in draw.sample(sites[kind], count // len(KINDS))]
    return sorted(chosen, key=lambda mutant: (mutant.file, mutant.line, mutant.start))


def _sites(source: str, file: str) -> Iterator[Mutant]:
    """Yields every mutant of a file."""
    tree = ast.parse(source)
    offsets = [0]
    for line in source.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))

    def mutant(kind: str, node: ast.AST, text: str) -> Mutant:
        start = offsets[node.lineno - 1] + _column(source, offsets, node.lineno, node.col_offset)
        end = offsets[node.end_lineno - 1] + _column(source, offsets, node.end_lineno, node.end_col_offset)
        return Mutant(kind, file, node.lineno, start, end, text, source[start:end])

    for node in _code(tree):
        yield from (mutant(kind, node, text) for kind, text in _changes(node))


def _column(source: str, offsets: Sequence[int], line: int, column: int) -> int:
    """The column in characters of one that ``ast`` counts in UTF-8 bytes."""
    return len(source[offsets[line - 1] : offsets[line]].encode()[:column].decode())


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes that a run evaluates: no annotation, no import, no error message, no text."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Assert):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                yield node.value
                yield from _code(node.value)
            continue
        if isinstance(node, ast.FunctionDef):
            for child in [*node.body, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
                yield child
                yield from _code(child)
            continue
        yield node
        yield from _code(node)


def _changes(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields the kind and the new text of each change of a node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield "operator", f"({ast.unparse(ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in OPERATORS:
        changed = ast.Compare(node.left, [OPERATORS[type(node.ops[0])]()], node.comparators)
        yield "operator", f"({ast.unparse(changed)})"
    elif isinstance(node, ast.BoolOp):
        yield "operator", f"({ast.unparse(ast.BoolOp(OPERATORS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield "constant", repr(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "dropped", "pass"
    elif isinstance(node, ast.Call) and _can_swap(node):
        yield "swapped", ast.unparse(ast.Call(node.func, [*node.args[1::-1], *node.args[2:]], node.keywords))


def _can_swap(call: ast.Call) -> bool:
    """True if a call has two arguments whose order matters."""
    symmetric = ast.unparse(call.func) in ("min", "max", "isinstance")
    return len(call.args) > 1 and not symmetric and not any(isinstance(its, ast.Starred) for its in call.args)


class Failed:
    """A pytest plugin that writes the ids of failed tests into a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            with self.path.open("a") as file:
                print(report.nodeid, file=file)


def failing(slow: bool) -> list[str]:
    """Returns the ids of the tests that fail in a forked process on a copy without a mutant."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, found = _checkout(Path(scratch)), Path(scratch) / "failed"
        _fails(folder, ["tests", *([] if slow else ["-m", "not slow"])], Failed(found))
        return sorted(set(found.read_text().split("\n")) - {""}) if found.exists() else []


def _checkout(scratch: Path) -> Path:
    for name in COPIED:
        _copy(ROOT / name, scratch / "checkout" / name)
    return scratch / "checkout"


def killed(mutant: Mutant, slow: bool, left_out: Sequence[str] = ()) -> tuple[str | None, float]:
    """Runs the tests on a mutant, those of its package first.

    Args:
        mutant: The fault.
        slow: Run the slow tests too.
        left_out: Ids of tests that don't count.

    Returns:
        The stage whose tests failed, or None if all passed; and seconds.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = _checkout(Path(scratch))
        path = folder / mutant.file
        source = path.read_text()
        path.write_text(source[: mutant.start] + mutant.text + source[mutant.end :])
        for stage, arguments in _stages(mutant, folder, slow):
            if _fails(folder, ["-x", *arguments, *(f"--deselect={test}" for test in left_out)]):
                return stage, time.monotonic() - began
    return None, time.monotonic() - began


def _stages(mutant: Mutant, folder: Path, slow: bool) -> Iterator[tuple[str, list[str]]]:
    """Yields names and pytest arguments of the stages: own tests, own package, the quick ones, the slow ones."""
    package = Path(mutant.file).relative_to("src/flt")
    quick = ["-m", "not slow"]
    own = [folder / "tests" / package.parent / f"test_{package.stem}.py", folder / "tests" / package.parent]
    for stage, place in zip(("file", "package"), own, strict=True):
        if place.exists():
            yield stage, [*quick, str(place)]
    yield "quick", [*quick, "tests", mutant.file]
    if slow:
        yield "slow", ["-m", "slow", "tests"]


def _fails(folder: Path, arguments: Sequence[str], *plugins: object) -> bool:
    """Runs pytest in a forked process on a copy of the checkout; true if a test fails, or the time is over."""
    child = os.fork()
    if not child:
        os.setsid()
        os._exit(_pytest(folder, arguments, plugins))
    limit = time.monotonic() + STAGE_LIMIT
    while time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) not in (0, 5)  # 5: no test was chosen
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _pytest(folder: Path, arguments: Sequence[str], plugins: Sequence[object]) -> int:
    import pytest

    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder / "src"), str(folder)]
    os.environ.update(PYTHONPATH=str(folder / "src"), PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    sys.dont_write_bytecode = True
    return int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=no", *arguments], plugins=plugins))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    elif source.exists():
        shutil.copy(source, target)


def _short(text: str) -> str:
    return " ".join(text.split())[:80]


def main() -> int:
    """Plants mutants and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--only", help="comma-separated numbers of mutants")
    parser.add_argument("--slow", action="store_true", help="run the slow tests too before a mutant counts as alive")
    parser.add_argument("--list", action="store_true", help="print the mutants and plant none")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write what was found to a JSON file")
    given = parser.parse_args()
    drawn = dict(enumerate(mutants(ROOT, given.seed, given.count)))
    chosen = {int(n): drawn[int(n)] for n in given.only.split(",")} if given.only else drawn
    if given.list:
        print("\n".join(f"{number:3} {mutant}" for number, mutant in chosen.items()))
        return 0
    for name in LIBRARIES:
        importlib.import_module(name)
    left_out = failing(given.slow)
    print(f"{len(left_out)} tests fail without a mutant and are left out: {', '.join(left_out)}", flush=True)
    found: dict[int, str | None] = {}
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, mp_context=context) as pool:
        waiting = {pool.submit(killed, mutant, given.slow, left_out): number for number, mutant in chosen.items()}
        for done in concurrent.futures.as_completed(waiting):
            number = waiting[done]
            found[number], seconds = done.result()
            print(f"{number:3} {found[number] or 'ALIVE':7} {seconds:4.0f} s  {chosen[number]}", flush=True)
            if given.out:
                given.out.write_text(json.dumps({str(n): [found[n], str(chosen[n])] for n in sorted(found)}, indent=1))
    dead = sum(stage is not None for stage in found.values())
    print(f"{dead} of {len(found)} killed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
