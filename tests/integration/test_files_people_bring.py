"""Files as people bring them: each is read as it is meant, and what was read is said, or it is refused in a line."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
from brought_files import BROUGHT, put, texts

from flt.core.errors import InputError
from flt.data.config import DataConfig
from flt.data.dataset_sources import load
from flt.data.file_formats import READERS
from flt.data.suffixes import SUFFIXES
from flt.run.compose import load_config


@pytest.mark.parametrize("what", BROUGHT)
def test_what_is_brought_is_read_and_said_or_refused(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    brought = BROUGHT[what]
    put(tmp_path / brought.name, brought.content)
    given = DataConfig(**{"name": "file", "path": str(tmp_path / brought.name), "validation": 0.0, **brought.settings})
    if brought.why:
        with pytest.raises(InputError, match=brought.why) as raised:
            load(given)
        assert "\n" not in str(raised.value)
        return
    with caplog.at_level(logging.INFO, "flt"):
        raw = load(given)
    (said,) = caplog.messages
    assert said.startswith(f"{brought.name}: {brought.said or ''}")
    if brought.said:
        assert said == f"{brought.name}: {brought.said}"
    train = raw.splits["train"]
    assert brought.first is None or train[raw.inputs[0]][0] == brought.first
    assert brought.classes is None or raw.label_names == brought.classes
    for split, labels in brought.labels.items():
        assert raw.splits[split][raw.label][:] == labels


def test_every_ending_has_a_reader() -> None:
    assert set(SUFFIXES) == set(READERS)


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("value", ["./data", "data", "data/reviews/de", "./data/reviews/de", "org/name", "data/"])
def test_a_folder_is_one_however_it_is_written(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, {"data/train.csv": texts(), "data/reviews/de/train.csv": texts(), "org/name/train.csv": texts()})
    monkeypatch.chdir(tmp_path)
    cfg = load_config([f"data={value}"])
    assert (cfg.data["name"], cfg.data["path"]) == ("hub", value)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: pytest.fail("asked the hub"))
    assert len(load(DataConfig("hub", value, validation=0.0)).splits["train"]) == 6


def test_a_choice_of_conf_goes_before_a_folder_and_a_folder_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config(["data=digits"]).data["path"] is None
    assert load_config(["data=./digits"]).data["path"] == "./digits"
    assert load_config(["data=org/name"]).data["path"] == "org/name"


@pytest.mark.parametrize("value", ["-", "/dev/stdin", "/dev/fd/63", "https://a.org/b.csv", "s3://a/b.parquet"])
def test_streams_and_addresses_are_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"^data=.*: streams and addresses aren't read, so save the data"):
        load_config([f"data={value}"])


@pytest.mark.parametrize("value", ["./nowhere", "/nowhere/a.zip", "~/nowhere"])
def test_a_path_of_nothing_that_is_read_is_refused(value: str) -> None:
    with pytest.raises(InputError, match=r"^data=.*: there is no such folder, and no file of this kind"):
        load_config([f"data={value}"])


def test_a_file_of_a_kind_that_is_not_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.xlsx", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^data=a\.xlsx: .*no file of this kind is read; allowed is a file"):
        load_config(["data=a.xlsx"])


@pytest.mark.parametrize("name", ["A.CSV", "a.jsonl.gz", "a.tsv.BZ2", "a.txt", "a.arrow", "a.feather", "a.ndjson"])
def test_every_kind_of_file_is_recognised(name: str) -> None:
    assert load_config([f"data={name}"]).data["name"] == "file"


def test_a_value_with_brackets_is_refused_with_the_way_to_quote_it() -> None:
    why = r'allowed is key=value; a value with such characters is quoted: "data\.label=\'label \(stars\)\'"$'
    with pytest.raises(InputError, match=why):
        load_config(["data.label=label (stars)"])
    assert load_config(["data.label='label (stars)'"]).data["label"] == "label (stars)"
    assert load_config(["data.text=review text", "data.column=user:id"]).data["column"] == "user:id"


@pytest.mark.parametrize("name", ["semicolon", "tab", ";", "|"])
def test_delimiters_can_be_written_on_the_command_line(name: str) -> None:
    assert load_config([f"data.delimiter='{name}'"]).data["delimiter"] == name
