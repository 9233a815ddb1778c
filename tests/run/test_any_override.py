"""Any override is accepted, or refused with an InputError of one line, up to the checks of a run without training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.tools.fuzz.overrides import VALUES, attempt, keys, trained
from commands import in_empty_folder
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from random_examples import share

from flt.core.errors import InputError
from flt.run.compose import compose_config, expand
from flt.run.conf_groups import choices, groups

LONG = 5000
"""Most characters of a line."""
letters = st.text(max_size=12)
chosen = st.sampled_from(groups()).flatmap(lambda group: st.sampled_from([f"{group}={x}" for x in choices(group)]))
named = st.builds(
    "{}{}{}={}".format,
    st.sampled_from([""] * 20 + ["+", "++", "~", "@", "-"]),
    st.deferred(lambda: st.sampled_from([*keys(), *groups()])),
    st.sampled_from([""] * 20 + [".x", "@x", "@_global_", "[0]", "."]),
    st.sampled_from(VALUES) | letters | st.integers().map(str) | st.floats().map(str),
)
words = st.lists(named | named | chosen | letters | st.builds("{}={}".format, letters, letters), min_size=1, max_size=3)


def in_one_line(overrides: list[str]) -> None:
    for tried in (attempt, expand):
        with contextlib.suppress(InputError), one_line():
            tried(overrides)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Fails where an InputError has several lines, none, or a very long one."""
    try:
        yield
    except InputError as error:
        if "\n" in str(error) or not 0 < len(str(error)) < LONG:
            raise AssertionError(str(error)) from error
        raise


quietly = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@given(words)
@settings(quietly, max_examples=60, derandomize=True)
def test_any_override_is_accepted_or_refused_in_one_line(overrides: list[str]) -> None:
    in_one_line(overrides)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_ten_thousand_overrides_are_accepted_or_refused_in_one_line(number: int) -> None:
    """A thousand at a time, so that several processes share them. The seed is the number."""
    seed(number)(settings(quietly, max_examples=int(1000 * share()))(given(words)(in_one_line)))()


REFUSED = {
    "+=1": r"^override=\+=1: allowed is key=value for a key that is there$",
    "@grouping.eps=true": r"^override=@grouping\.eps=true: allowed is key=value for a key that is there$",
    "rule@data=mean": r"^override=rule@data=mean: allowed is key=value for a key that is there$",
    "batch_size=9223372036854775808": r"^batch_size=9223372036854775808: allowed is an integer below 2\^63$",
    "local.lr=" + "1" * 400: r"^local\.lr=1{400}: allowed is an integer below 2\^63$",
    "seed=" + "1" * 5000: r"^override=seed=1{1995}\.\.\.: Exceeds the limit",
    "name=\udcff": r"^override='name=\\udcff': allowed is key=value in UTF-8$",
    "name=a\0b": r"^override='name=a\\x00b': allowed is key=value in UTF-8$",
    "local.lr=1e308": r"^local\.lr=1e\+308: allowed is a number up to 1e\+30$",
    "plan.mu=-2e30": r"^plan\.mu=-2e\+30: allowed is a number up to 1e\+30$",
    "threads=1000000": r"^threads=1000000: allowed is an integer from 1 to 1024, or null$",
    "devices=1000000": r"^devices=1000000: allowed is an integer from 1 to 1024$",
    "adapter.rank=2147483648": r"^adapter\.rank=2147483648: allowed is an integer up to 65536$",
    "grouping.name=[-1]": r"^grouping=\[-1\]: allowed is everyone, kmeans",
    "model.adapt_layers={a: 1}": r"^model\.adapt_layers=\{'a': 1\}: allowed is all, or top<k>$",
}


@pytest.mark.parametrize("override", REFUSED, ids=lambda override: override[:20].encode("ascii", "ignore").decode())
def test_an_override_that_ended_in_a_traceback_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=REFUSED[override]):
        attempt([override])


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("seed=range(1,1000000000)", r"^sweep=10001 runs: allowed is at most 10000$"),
        ("seed=range(1,2,0)", r"^seed=\?: range\(\) arg 3 must not be zero; allowed is comma-separated values$"),
        ("algo=glob(*)", r"^algo=\?: .*; allowed is comma-separated values$"),
        ("local.lr=interval(0,1)", r"^local\.lr=\?: .*; allowed is comma-separated values$"),
    ],
)
def test_a_sweep_over_too_many_or_no_values_is_refused(override: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        expand([override])


LARGE = [
    "local.lr=1e30", "local.weight_decay=1e30", "local.clip=1e30", "plan.mu=1e30", "plan.lr_factor=1e30",
    "compression=channel compression.noise=1000", "compression=channel compression.tau=1e30",
    "compression=channel compression.power=1e30", "compression=channel compression.distances=[1e-30]",
    "server_optimizer=adagrad server_optimizer.tau=1e30", "server_optimizer=yogi server_optimizer.lr=1e30",
    "adapter.alpha=9223372036854775807", "batch_size=9223372036854775807",
]  # fmt: skip


@pytest.mark.parametrize("overrides", LARGE)
def test_a_round_with_the_largest_settings_is_trained_or_refused_in_one_line(
    overrides: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    with contextlib.suppress(InputError), one_line():
        trained(overrides.split())


def test_a_newline_in_a_value_is_allowed() -> None:
    assert compose_config(["data.prompts=['### {text}\n']"]).data.prompts == ["### {text}\n"]
