"""The versions that setup.cfg allows are those that the tests run on: from lowest.txt to constraints.txt."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).parents[2]
CFG = configparser.ConfigParser()
CFG.read(REPO / "setup.cfg")
TESTED = [
    Requirement(line)
    for section, key in (("options", "install_requires"), ("options.extras_require", "test"))
    for line in CFG[section][key].split()
]
"""What flt and its tests require. Extra ``quantised`` needs a GPU, and ``dev`` adds only what checks the code."""


def pinned(name: str) -> dict[str, Version]:
    """Returns the version of each package in a file of lines ``package==version``."""
    lines = [line for line in (REPO / name).read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    return bound


@pytest.mark.parametrize("requirement", TESTED, ids=lambda requirement: requirement.name)
def test_the_lowest_version_that_is_allowed_is_the_one_of_the_job_for_lowest_versions(requirement: Requirement) -> None:
    lowest = pinned("lowest.txt")[canonicalize_name(requirement.name)]
    assert lower_bound(requirement) == lowest
    assert requirement.specifier.contains(lowest)


@pytest.mark.parametrize("requirement", TESTED, ids=lambda requirement: requirement.name)
def test_the_version_that_is_installed_is_allowed(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pinned("constraints.txt")[canonicalize_name(requirement.name)])


def test_the_build_asks_for_the_setuptools_that_the_tests_build_with() -> None:
    (build,) = tomllib.loads((REPO / "pyproject.toml").read_text())["build-system"]["requires"]
    assert Requirement(build) in TESTED


def test_the_lowest_peft_is_one_that_does_not_import_what_a_card_names() -> None:
    """Version 0.18 imports any module that ``megatron_core`` names; flt's own check of cards comes before."""
    (peft,) = [requirement for requirement in TESTED if requirement.name == "peft"]
    assert lower_bound(peft) >= Version("0.20")
