"""The fixtures of every test, tried in a repository of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
from pathlib import Path

def test_a_run_appears_in_the_repository_meanwhile():
    run = Path(__file__).parent / "lightning_logs" / "somebodys" / "version_0"
    run.mkdir(parents=True)
    (run / "metrics.csv").touch()

def test_a_file_is_left_in_the_working_folder():
    Path("left").mkdir()
    Path("left/file").touch()

def test_the_working_folder_is_empty_and_not_the_repository():
    assert Path.cwd() != Path(__file__).parent
    assert not list(Path.cwd().iterdir())
"""


def test_runs_in_the_repository_fail_no_test_and_a_file_that_a_test_leaves_fails_that_test(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text())
    pytester.makepyfile(TESTS)
    found = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    found.assert_outcomes(passed=3, errors=1)
    found.stdout.fnmatch_lines(["*at teardown of test_a_file_is_left_in_the_working_folder*", "*left behind: left"])
