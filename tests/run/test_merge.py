"""``flt merge``: whole models with the logits of the adapter, which transformers loads without flt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers
from commands import QUICK, in_empty_folder
from exports import SOURCES, logits, pixels, words
from huggingface_hub import ModelCard
from slowly import slowly

import flt
from flt.api import train as train_cfg
from flt.cli.main import main
from flt.core.errors import InputError
from flt.export.places import exported_models
from flt.models.class_names import output_names
from flt.run.compose import load_config

AUTO = {"texts": "AutoModelForSequenceClassification", "images": "AutoModelForImageClassification",
        "decoder": "AutoModelForCausalLM"}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Trains quickly, and returns the folder of the export."""
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))

    def start(data: str, *overrides: str) -> Path:
        _, given = SOURCES[data](tmp_path)
        quick = [f"{key}={value}" for key, value in QUICK.items()]
        return train_cfg(load_config([*quick, "local.lr=0.05", *given, *overrides])).exported

    return start


def batch(data: str) -> dict[str, torch.Tensor]:
    return pixels() if data == "images" else words()


def stored_types(folder: Path) -> set[str]:
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # the file is no mapping


CASES = ["texts algo=hafl", "decoder algo=fedit", "images algo=fl_tac", "texts algo=fedsa_lora", "texts algo=flora"]
CASES += ["texts algo=fedit adapter=none plan.train=[head]", "texts algo=fedit model.random=true", "texts algo=fedavg"]
CASES += ["texts algo=flora export.base=delta", "images algo=sa_fedlora"]


@pytest.mark.parametrize("case", ["texts algo=fedit", *slowly(*CASES)])
def test_a_merged_model_has_the_logits_of_the_adapter(case: str, run: Callable[..., Path], tmp_path: Path) -> None:
    data, *_ = case.split()
    exported = run(*case.split())
    written = flt.merge(exported.parent, tmp_path / "merged", progress=False)
    models = exported_models(exported)
    assert written == {name: tmp_path / "merged" / name for name in models}
    for name, folder in models.items():
        adapter = flt.load(folder)
        merged = getattr(transformers, AUTO[data]).from_pretrained(written[name]).eval()
        torch.testing.assert_close(logits(merged, batch(data)), logits(adapter, batch(data)), rtol=0, atol=1e-5)
        assert ModelCard.load(written[name] / "README.md").data.library_name == "transformers"
        assert str(tmp_path) not in (written[name] / "config.json").read_text()
        beside = {path.name for path in folder.iterdir()} & {"classes.json", "tokenizer.json", "chat_template.jinja"}
        assert beside <= {path.name for path in written[name].iterdir()}
        if data != "decoder":
            assert merged.config.problem_type == "single_label_classification"
            tasks = json.loads((folder / "classes.json").read_text()).values()
            assert list(merged.config.id2label.values()) == output_names(tasks)


def test_a_type_of_numbers_is_written_and_kept(run: Callable[..., Path], tmp_path: Path) -> None:
    exported = run("texts", "algo=fedit")
    flt.merge("last", "half", dtype="bfloat16", progress=False)
    assert stored_types(tmp_path / "half") == {"BF16"}
    flt.merge("half", "again", progress=False)
    assert stored_types(tmp_path / "again") == {"BF16"}
    flt.merge("half", "whole", dtype="float32", progress=False)
    assert stored_types(tmp_path / "whole") == {"F32"}
    shutil.copytree(exported, tmp_path / "alone")
    with pytest.raises(InputError, match="its base was the folder bert"):
        flt.merge("alone", "out", progress=False)
    with pytest.raises(InputError, match="^base=./nowhere: no such folder"):
        flt.merge("alone", "out", base="./nowhere", progress=False)
    flt.merge("alone", "out", base="./bert", progress=False)
    assert (tmp_path / "out" / "model.safetensors").exists()
    pipe = transformers.pipeline("text-classification", model=str(tmp_path / "out"))
    assert pipe("a good film")[0]["label"] in json.loads((exported / "classes.json").read_text())["all"]


def test_a_group_alone_is_written_to_the_folder_itself(
    run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("images", "algo=fl_tac")
    groups = [path.name.removeprefix("group_") for path in tmp_path.glob("lightning_logs/*/version_0/adapter/group_*")]
    assert main(["merge", "last", "out=one", f"group={groups[0]}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote one"
    assert f"group {groups[0]}" in (tmp_path / "one" / "README.md").read_text()
    assert main(["merge", "last", "out=two", "group=77"]) == 2
    assert not (tmp_path / "two").exists()


def test_only_an_empty_or_new_folder_is_written_to(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = run("images", "algo=fedit")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "empty").mkdir()
    for out in ("full", "link", "full/notes.txt/x", str(exported), f"{exported}/x", str(exported.parent / "model")):
        with pytest.raises(InputError, match="^out="):
            flt.merge("last", out, progress=False)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    flt.merge("last", "empty", progress=False)
    assert (tmp_path / "empty" / "config.json").exists()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("flt.run.merge.write_cards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        flt.merge("last", "new/deep/out", progress=False)
    assert sorted(tmp_path.iterdir()) == before


def broken(folder: Path) -> Path:
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 20)
    return folder


def too_large(folder: Path) -> Path:
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    first = next(name for name in tensors if "classifier" in name)
    tensors[first] = torch.full_like(tensors[first], 1e6)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def of_a_stranger(folder: Path) -> Path:
    (folder / "flt_base.json").unlink()
    return folder


def unfinished(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder.parent


BAD: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "no run": (lambda folder: folder / "none", [], "there is no such folder"),
    "not a run": (lambda folder: folder.parent.parent.parent.parent, [], "run="),
    "unfinished": (unfinished, [], "resume=<its folder> goes on with it"),
    "broken weights": (broken, [], "adapter_model.safetensors is cut off or damaged"),
    "too large": (too_large, ["dtype=float16"], "dtype=float16: a weight is too large for it"),
    "no base": (of_a_stranger, [], "your own module"),
    "no out": (Path, ["out="], "out="),
    "another type": (Path, ["dtype=int8"], "dtype=int8: allowed is float32, bfloat16, float16"),
    "no group": (Path, ["group=0"], "group=0: allowed is no group, as the run has only one model"),
    "no number": (Path, ["group=a"], "group=a"),
    "another key": (Path, ["rank=2"], "merge=rank=2: allowed is out=, group=, dtype=, base="),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(
    case: str, run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words, error = BAD[case]
    folder = change(run("texts", "algo=fedit"))
    capsys.readouterr()
    out = [] if any(word.startswith("out=") for word in words) else ["out=merged"]
    assert main(["merge", str(folder), *out, *words]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert error in line
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]


REFUSED = {
    "images algo=c2a": "adapters of the kind c2a are layers of their own",
    "images algo=fedit adapter=houlsby": "adapters of the kind houlsby are layers of their own",
    "texts algo=fedit model.head=label_names": "its head compares texts with the names",
}


@pytest.mark.parametrize("case", slowly(*REFUSED))
def test_what_has_no_plain_model_says_how_it_is_loaded(case: str, run: Callable[..., Path]) -> None:
    exported = run(*case.split())
    with pytest.raises(InputError, match=f"{REFUSED[case]}.*flt.load loads it"):
        flt.merge(exported, "out", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["fedit", "fedavg"])
def test_a_user_s_own_module_is_merged_in_python(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toys import Toy, toy_data

    in_empty_folder(tmp_path, monkeypatch)
    clients = flt.partition(toy_data(), by="label", clients=2)
    result: Any = flt.fit(Toy(), clients, algo=algo, rounds=1, progress=False, overrides=["local.steps=1"])
    with pytest.raises(InputError, match=r"your own .*flt.load\(folder, model="):
        flt.merge(result.path, "out", progress=False)
