"""Folders that a stranger sent: refused in one line, without imports, within bounds of memory and time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import QUICK, in_empty_folder
from exports import pixels, words
from forged import EVIL, FORGED, HARMLESS, PATTERNS
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from slowly import mostly_slowly

import flt
from flt.api import train as train_cfg
from flt.run.compose import load_config

KINDS = {
    "lora": ["algo=fedit"],
    "delta": ["algo=flora", "export.base=delta", "rounds=2"],
    "c2a": ["algo=c2a"],
    "houlsby": ["algo=c2a", "adapter=houlsby"],
    "merged": ["algo=flora"],
    "names": ["algo=fedit", "model.head=label_names"],
    "random": ["algo=fedit", "model.random=true"],
}
"""Kind of an export -> arguments of a run that leaves one."""
OF_TEXTS = ("names", "random")
MEMORY = 400 * 2**20
"""Bytes that a load may take in addition: the models are tiny; most of it is address space for mapped files."""
LIMIT = 30
"""Seconds after which a load counts as hanging."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export of each kind, made when the first test asks for it."""

    class Exports(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            folder = tmp_path_factory.mktemp(kind)
            quick = [f"{key}={value}" for key, value in QUICK.items() if f"{key}=2" not in KINDS[kind]]
            if kind in OF_TEXTS:
                model, data = tiny.save_bert(folder / "bert"), tiny.save_reviews(folder / "reviews.csv")
                quick += [f"model={model}", f"data={data}", "model.max_length=16", "batch_size=4"]
            with pytest.MonkeyPatch.context() as patch:
                in_empty_folder(folder, patch)
                self[kind] = folder / train_cfg(load_config([*quick, *KINDS[kind]])).exported
            return self[kind]

    return Exports()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_empty_folder(tmp_path, monkeypatch)


def copied(export: Path, folder: Path) -> Path:
    """Copies an export, its run's configuration, and its base, where it has one of its own."""
    shutil.copytree(export, folder / export.name)
    if (bert := export.parents[3] / "bert").is_dir():
        shutil.copytree(bert, folder / "bert")
    text = (export.parent / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(str(export.parents[3]), str(folder)))
    return folder / export.name


def load_in_a_child(folder: Path, batch: dict[str, torch.Tensor] | None = None) -> str:
    """What flt.load says in a process of its own, with little memory and time, and a package that marks its import."""
    package = folder.parent / "site" / EVIL
    package.mkdir(parents=True)
    for name in ("__init__", "payload"):
        (package / f"{name}.py").write_text(f"open({str(folder.parent / 'mark')!r}, 'w')\nclass Payload: pass\n")
    context = get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_load, args=(folder, batch, package.parent, there))
    process.start()
    there.close()
    said = here.recv() if here.poll(LIMIT) else "it hangs"
    process.kill()
    process.join()
    assert not (folder.parent / "mark").exists(), "what a card named was imported"
    return said


def _load(folder: Path, batch: Any, packages: Path, pipe: Any) -> None:
    sys.path.insert(0, str(packages))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    try:
        model = flt.load(folder)
        with torch.no_grad():
            pipe.send("loaded" if batch is None or bool(model(**batch).logits.isfinite().all()) else "not finite")
    except flt.InputError as error:
        pipe.send(str(error))
    except BaseException as error:
        pipe.send(f"\n{type(error).__name__}: {error}")
    finally:
        os._exit(0)  # nothing of the test's own process is to be ended twice


QUICK_CASES = (
    "peft: megatron_core", "pattern: target_modules", "every rank is huge", "base: labels", "random: hidden size",
    "own: rank", "lora: NaN", "c2a: beyond float32", "label names: scale isn't a number", "label names: width",
)  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
@pytest.mark.parametrize("case", mostly_slowly(FORGED, QUICK_CASES))
def test_a_forged_folder_is_refused_in_one_line(case: str, exports: dict[str, Path], tmp_path: Path) -> None:
    kind, forge, why = FORGED[case]
    folder = copied(exports[kind], tmp_path)
    forge(folder)
    said = load_in_a_child(folder)
    assert "\n" not in said
    assert "allowed is" in said
    assert "MemoryError" not in said
    assert "alloc" not in said
    assert len(said) < 3000
    assert any(part in said for part in why.split("|")), said


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_added_to_a_folder_is_not_obeyed(case: str, exports: dict[str, Path], tmp_path: Path) -> None:
    kind, forge = HARMLESS[case]
    folder = copied(exports[kind], tmp_path)
    forge(folder)
    assert load_in_a_child(folder, words() if kind in OF_TEXTS else pixels()) == "loaded"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_nobody_forged_is_loaded_within_the_same_bounds(
    kind: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    assert load_in_a_child(copied(exports[kind], tmp_path), words() if kind in OF_TEXTS else pixels()) == "loaded"


def test_there_are_enough_of_them() -> None:
    assert len(FORGED) >= 84


def test_every_setting_of_peft_is_either_allowed_or_refused_by_name() -> None:
    from flt.export.cards import LORA

    assert set(LoraConfig().to_dict()) - {"runtime_config"} <= set(LORA)


def test_peft_reads_no_card(exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("peft reads the card itself")

    for name in ("from_json_file", "from_pretrained", "from_peft_type"):
        monkeypatch.setattr(LoraConfig, name, read)
    flt.load(copied(exports["lora"], tmp_path))


def test_older_exports_have_plain_names_and_are_loaded(exports: dict[str, Path], tmp_path: Path) -> None:
    """Names without escapes and anchors, in a sorted list, were written before flt wrote patterns for whole names."""
    folder = copied(exports["lora"], tmp_path)
    expected = flt.load(folder)(**pixels()).logits
    card = json.loads((folder / "adapter_config.json").read_text())
    for key in ("rank_pattern", "alpha_pattern"):
        card[key] = {name.removeprefix("^").replace("\\", ""): value for name, value in card[key].items()}
    card["target_modules"] = sorted(card["rank_pattern"])
    (folder / "adapter_config.json").write_text(json.dumps(card))
    assert torch.equal(flt.load(folder)(**pixels()).logits, expected)


@pytest.mark.parametrize("key", PATTERNS)
def test_a_given_model_is_left_without_adapters_where_the_card_is_refused(
    key: str, exports: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(exports["lora"], tmp_path)
    base = flt.load(copied(exports["merged"], tmp_path / "merged"))
    names = [name for name, _ in base.named_modules()]
    card = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(card | {key: PATTERNS[key]}))
    with pytest.raises(flt.InputError, match=key):
        flt.load(folder, base)
    assert [name for name, _ in base.named_modules()] == names


def test_half_precision_is_loaded_as_float32(exports: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(exports["lora"], tmp_path)
    path = folder / "adapter_model.safetensors"
    held = {name: value.to(torch.bfloat16) for name, value in load_file(path).items()}
    path.unlink()
    save_file(held, path)
    assert {value.dtype for value in flt.load(folder).state_dict().values()} == {torch.float32}
