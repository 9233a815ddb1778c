"""The code of docs/new_algorithm.md, written into a copy of flt, trained with and tested."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, files

BLOCKS = files(DOCS / "new_algorithm.md")
"""File -> what the page puts into it."""
RULE, TABLE = "src/flt/algorithm/rule/geometric_median.py", "src/flt/algorithm/registry.py"
METHODS, TEST = "tests/support/methods.py", "tests/algorithm/rule/test_geometric_median.py"


def code_lines(source: str) -> int:
    """Lines that are neither empty nor a part of a docstring."""
    bare = re.sub(r'^ *"""(?:.*?)"""$', "", source, flags=re.MULTILINE | re.DOTALL)
    return sum(bool(line.strip()) for line in bare.splitlines())


def test_the_page_has_a_rule_of_some_40_lines_and_all_that_belongs_to_it() -> None:
    assert set(BLOCKS) == {
        RULE, TABLE, METHODS, "conf/rule/geometric_median.yaml", "conf/algo/rfa.yaml", TEST,
    }  # fmt: skip
    assert code_lines(BLOCKS[RULE]) <= 45
    assert all(len(line) <= 120 for block in BLOCKS.values() for line in block.splitlines())


def with_line(table: str, line: str) -> str:
    """The tests' table with a line more, and the import that it needs."""
    first, imported = '    "fedit": (FEDIT, {}),\n', BLOCKS[TABLE].splitlines()[0]
    assert first in table
    with_import = table.replace("from flt.algorithm.recipe import", f"{imported}\nfrom flt.algorithm.recipe import")
    return with_import.replace(first, f"{first}    {line}")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flt and its tests with the page's files in them."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("src", "tests", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "conf"))
    shutil.copytree(ROOT / "conf", folder / "src" / "flt" / "conf", dirs_exist_ok=True)  # as the wheel has it
    for file, block in BLOCKS.items():
        place = folder / file.replace("conf/", "src/flt/conf/")
        if file == TABLE:
            place.write_text(f"{place.read_text()}\n{block}")
        elif file == METHODS:
            place.write_text(with_line(place.read_text(), block))
        else:
            place.write_text(block)
    return folder


DRIVER = """
import json, sys
import pytest
from flt.cli.main import main
for arguments in json.loads(sys.argv[1]):
    print("exit code", main(["train", *arguments]), flush=True)
sys.exit(pytest.main(json.loads(sys.argv[2])))
"""
QUICK = ["algo=rfa", "rounds=2", "clients=3", "local.steps=1", "eval.examples=20", "eval.client_examples=0"]
MIX = ["jobs=per_task", "grouping=kmeans", "schedule=annealed", "importance=gradient", "name=mix", "rounds=4"]


@pytest.fixture(scope="module")
def ran(copy: Path) -> subprocess.CompletedProcess[str]:
    """The recipe's runs and tests, in one process."""
    runs = [QUICK, [*QUICK, *MIX], [*QUICK, "selection=truncate"]]
    tests = [TEST, "tests/integration/test_invariance.py", "tests/integration/test_trivial_cases.py"]
    tests += ["-k", "geometric_median or rfa", "-p", "no:cacheprovider", "-q"]
    tests += ["--rootdir", str(copy), "-o", "addopts=--import-mode=importlib", "-o", "markers=slow: slow"]
    path = os.pathsep.join([str(copy / "src"), str(copy / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, json.dumps(runs), json.dumps(tests)]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_recipe_trains_by_its_name(copy: Path, ran: subprocess.CompletedProcess[str]) -> None:
    assert re.findall(r"^exit code (\d)$", ran.stdout, re.MULTILINE) == ["0", "0", "2"], ran.stderr
    assert (copy / "lightning_logs" / "rfa" / "version_0" / "adapter" / "adapter_model.safetensors").is_file()
    assert "distances are between updates of the same components; allowed is all" in ran.stderr


@pytest.mark.slow
def test_its_tests_pass_and_those_of_every_method(ran: subprocess.CompletedProcess[str]) -> None:
    assert ran.returncode == 0, ran.stdout
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed.group(1)) >= 6, ran.stdout  # two of its own, and those of the tables
