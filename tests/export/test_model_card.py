"""Model cards: their figures are those of the run, and their code names the class of an input."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from commands import QUICK, in_empty_folder, train
from exports import SOURCES
from huggingface_hub import ModelCard
from PIL import Image
from slowly import mostly_slowly, slowly

from flt.api import train as train_cfg
from flt.export.card_seal import is_own_card, sealed
from flt.export.model_card import ModelFacts, RunFacts, card, facts_in, overview
from flt.export.places import exported_models
from flt.run.compose import load_config
from flt.run.conf_groups import choices

Run = Callable[..., Path]
TRICKY = "**x** <b>|`a`\n## h"
NAMES = (TRICKY, "good film", "```\nrm", "\u202eevil")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Trains quickly, with a licence beside the base, and returns the folder of the export."""
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))

    def start(data: str, *overrides: str) -> Path:
        base, given = SOURCES[data](tmp_path)
        if data != "images":
            (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A base\n")
        quick = [f"{key}={value}" for key, value in QUICK.items()]
        cfg = load_config([*quick, "local.lr=0.05", *given, *overrides])
        if data == "texts":
            cfg = dataclasses.replace(cfg, data={**cfg.data, "tasks": {"film": ["0", "1"], "book": ["2", "3"]}})
        exported = train_cfg(cfg).exported.resolve()
        for folder in exported_models(exported).values():
            if data != "images":
                (folder / base.name).symlink_to(base)
        return exported

    return start


@pytest.fixture(scope="module")
def without_flt() -> Iterator[Callable[[str, Path], str]]:
    """What code prints in a process that lacks flt, which all tests of the file share."""
    script = Path(__file__).parents[1] / "support" / "card_code.py"
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    lines, orders = process.stdout, process.stdin

    def ask(code: str, folder: Path) -> str:
        print(json.dumps({"code": code, "folder": str(folder)}), file=orders, flush=True)
        answer: str = json.loads(lines.readline())
        return answer

    yield ask
    orders.close()
    assert process.wait() == 0


def code_of(text: str) -> str:
    found = re.search(r"^(`{3,})python\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[2]


def with_flt(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **names: Any) -> str:
    out = io.StringIO()
    monkeypatch.chdir(folder)
    with contextlib.redirect_stdout(out):
        exec(code, names)
    return out.getvalue()


def last_metrics(exported: Path) -> dict[str, float]:
    rows = list(csv.DictReader((exported.parent / "metrics.csv").open()))
    return {key: float(value) for key, value in rows[-1].items() if value}


LIBRARIES = {"adapter_config.json": "peft", "config.json": "transformers", "flt_adapter.json": "flt"}
CASES = [f"{data} algo={algo}" for algo in choices("algo") for data in ("texts", "images")]
CASES += ["decoder algo=fedit", "decoder algo=flora", "decoder algo=fedavg", "texts algo=fedit model.head=label_names"]
CASES += ["texts algo=fedit model.random=true", "texts algo=fedit adapter=houlsby", "texts algo=fl_tac heads=task"]


@pytest.mark.parametrize("case", mostly_slowly(CASES, ("texts algo=fedit", "images algo=c2a")))
def test_the_card_of_every_recipe_has_the_run_s_figures_and_code_that_works(
    case: str, run: Run, without_flt: Callable[[str, Path], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, algo, *_ = case.split()
    exported = run(*case.split())
    metrics, models = last_metrics(exported), exported_models(exported)
    for folder in models.values():
        text = (folder / "README.md").read_text()
        loaded = ModelCard.load(folder / "README.md")
        about = loaded.data.to_dict()
        own = next(library for file, library in LIBRARIES.items() if (folder / file).exists())
        plain = own != "flt" and "flt.load" not in text
        assert about["library_name"] == (own if plain else "flt")
        assert about["pipeline_tag"].startswith({"texts": "text-c", "images": "image-", "decoder": "text-g"}[data])
        assert {"flt", "federated-learning", algo.removeprefix("algo=")} <= set(about["tags"])
        assert about.get("license") == (None if data == "images" else "apache-2.0")
        assert "base_model" not in about, "a folder of the user's isn't on the hub"
        for result in loaded.data.eval_results or []:  # clients alone have no global model
            key = {"accuracy": "acc", "loss": "loss", "perplexity": "perplexity"}[result.metric_type]
            names = {"test": [f"test/{key}", f"test/val_{key}"], "validation": [f"round/val_{key}"]}
            assert result.metric_value in [metrics.get(name) for name in names[result.dataset_split]]
        for key, value in re.findall(r"^\| `(\S+)` \| (\S+) \|$", text, re.MULTILINE):
            assert value == f"{metrics[key]:.4f}"
        assert facts_in(folder).metrics.items() <= metrics.items()
        assert str(tmp_path) not in text
        assert ("arXiv" in text) == ("arXiv" in loaded.data.flt["method"])
        said = without_flt(code_of(text), folder) if plain else with_flt(code_of(text), folder, monkeypatch)
        if data == "decoder":
            assert "Name three colours." in said
        else:
            names = [name for own in json.loads((folder / "classes.json").read_text()).values() for name in own]
            assert any(name in said for name in names), said
    if "" not in models:
        text = (exported / "README.md").read_text()
        assert re.findall(r"^\| \[.*?\]\((.*?)/README.md\)", text, re.MULTILINE) == list(models)


@pytest.mark.parametrize("library", slowly("lora", "model"))
def test_the_card_of_a_user_s_own_module_loads_it(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import flt

    in_empty_folder(tmp_path, monkeypatch)
    from toys import Toy, toy_data

    clients = flt.partition(toy_data(), by="label", clients=2)
    algo = "fedavg" if library == "model" else "fedit"
    result = flt.fit(Toy(), clients, algo=algo, rounds=1, progress=False, overrides=["local.steps=1"])
    exported = tmp_path / result.exported
    text = (exported / "README.md").read_text()
    assert f'flt.fit(Toy(), clients, algo="{algo}", rounds=1' in text
    names: dict[str, Any] = {"Toy": Toy}
    with_flt(code_of(text), exported, monkeypatch, **names)
    assert "pipeline_tag" not in ModelCard.load(exported / "README.md").data.to_dict()


@pytest.mark.slow
def test_the_card_of_a_model_with_an_image_processor_names_the_class_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_flt: Callable[[str, Path], str]
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    for name, grey in (("dark", 10), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 20), (grey + i,) * 3).save(tmp_path / "photos" / name / f"{i}.png")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**shape, image_size=8, patch_size=4)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    for algo in ("fedit", "fedavg"):
        assert train(f"algo={algo}", "data=./photos", "model=./vit", "partition.kind=iid", "clients=2") == 0
        (folder,) = tmp_path.glob(f"lightning_logs/{algo}/version_0/*/README.md")
        Image.new("RGB", (30, 30)).save(folder.parent / "picture.png")
        (folder.parent / "vit").symlink_to(tmp_path / "vit")
        said = without_flt(code_of(folder.read_text()), folder.parent)
        assert "dark" in said
        assert "light" in said


def test_a_changed_card_stays_and_flt_s_own_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    assert train("algo=fedit") == 0
    (exported,) = tmp_path.glob("lightning_logs/fedit/version_0/adapter")
    first = (exported / "README.md").read_text()
    assert train("algo=fedit", "rounds=2", "resume=last") == 0
    second = (exported / "README.md").read_text()
    assert "| rounds | 1 |" in first
    assert "| rounds | 2 |" in second
    (exported / "README.md").write_text(second + "My own words.\n")
    assert train("algo=fedit", "rounds=3", "resume=last") == 0
    assert (exported / "README.md").read_text().endswith("My own words.\n")
    assert "adapter/README.md is yours and stays" in caplog.text


def test_a_card_whose_text_was_changed_in_the_middle_is_not_flt_s_own(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(sealed("# Title\n\nsome words"))
    assert is_own_card(path)
    path.write_bytes(path.read_bytes().replace(b"some", b"own"))
    assert not is_own_card(path)


FACTS = RunFacts(
    algo="fedit",
    method=f"FedIT (arXiv 2305.05644). {TRICKY}",
    kind="text",
    base="org/base",
    data=TRICKY,
    command=f"flt train data='{TRICKY}'",
    prompts=["```{a}\n<!-- hidden -->"],
    metrics={TRICKY: 1.0, "round/val_acc": 0.5},
)


@pytest.mark.parametrize("prompts", [True, False])
@pytest.mark.parametrize("form", ["lora", "own", "merged"])
def test_no_name_becomes_markdown_html_or_code(form: Any, prompts: bool, tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, prompts=FACTS.prompts if prompts else [])
    text = card(facts, ModelFacts(form, TRICKY, NAMES, True)).decode()
    assert "\u202e" not in text
    body = text.split("\n---\n", 1)[1]
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", body, flags=re.DOTALL | re.MULTILINE)
    assert "<b>" not in outside
    assert outside.count("<!--") == 1, "the last line, by which flt knows its card"
    assert "**x**" not in outside
    assert "## h" not in [line.strip() for line in outside.splitlines()]
    (tmp_path / "README.md").write_text(text)
    assert facts_in(tmp_path) == facts
    compile(code_of(text), "card", "exec")


def test_a_card_says_which_column_is_the_content_of_a_message() -> None:
    keys = {"instruction": "content", "context": "context", "role": "column_role"}
    facts = dataclasses.replace(FACTS, kind="causal", prompts=["{instruction}"], message_keys=keys)
    text = card(facts, ModelFacts("merged", "", (), True, chats=True)).decode()
    assert "In a message of the user, instruction is the `content`, context is its `context`, role is" in text
    assert '"role": "user"' in code_of(text)
    alone = card(dataclasses.replace(facts, message_keys={}), ModelFacts("merged", "", (), True)).decode()
    assert "No chat template writes them." in alone
    assert '"role": "user"' not in code_of(alone)


def test_many_classes_are_read_from_their_file(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(300)]
    text = card(dataclasses.replace(FACTS, prompts=[]), ModelFacts("lora", "", names, True)).decode()
    assert "and 200 more" in text
    (tmp_path / "classes.json").write_text(json.dumps({"all": names}))
    line = next(line for line in code_of(text).splitlines() if line.startswith("id2label"))
    found: dict[str, Any] = {"json": json, "folder": str(tmp_path)}
    exec(line, found)
    assert found["id2label"] == dict(enumerate(names))


@pytest.mark.parametrize(
    "front",
    ["", "no card", "---\nflt: 3\n---\n", "---\nflt: {rounds: many}\n---\n", "---\n- a\n---\n", "---\n{\n---\n",
     "---\nflt: &a [*a]\n---\n", "---\nflt: {metrics: {test/acc: [1]}}\n---\n", "---\nflt: {metrics: {1: 2}}\n---\n",
     "---\nflt: {metrics: {test/acc: .nan}}\n---\n", "---\nflt: {strange: 1}\n---\n"],
)  # fmt: skip
def test_a_card_that_flt_did_not_write_says_nothing(front: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(front)
    assert facts_in(tmp_path) == RunFacts()


@pytest.mark.parametrize("base", ['my "bert"', "it's", "a\\nb", '"); print("no'])
def test_a_folder_of_any_name_is_a_text_in_the_code(base: str) -> None:
    facts = dataclasses.replace(FACTS, base=base, base_is_folder=True, prompts=[])
    line = next(line for line in code_of(card(facts, ModelFacts("lora")).decode()).splitlines() if "a copy" in line)
    found: dict[str, Any] = {}
    exec(line, found)
    assert found["base"] == f"./{base}"


def test_what_a_stranger_calls_a_module_or_a_kind_is_no_code(tmp_path: Path) -> None:
    facts = dataclasses.replace(FACTS, kind="", module="print('no') or Toy")
    assert "print" not in code_of(card(facts, ModelFacts("lora")).decode())
    (tmp_path / "README.md").write_text("---\nflt: {algo: hafl, kind: banana}\n---\n")
    assert facts_in(tmp_path) == RunFacts()


def test_a_metric_that_a_module_groups_by_a_slash_is_no_result_of_the_hub() -> None:
    facts = dataclasses.replace(FACTS, metrics={"test/mine/acc": 0.25, "test/acc": 0.5})
    results = ModelCard(card(facts, ModelFacts("lora", "", ["a", "b"], True)).decode()).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results or []] == [("accuracy", 0.5)]


def test_a_card_names_its_base_and_data_on_the_hub() -> None:
    facts = dataclasses.replace(FACTS, dataset="org/data")
    about = ModelCard(card(facts, ModelFacts("lora", "", ["a", "b"], True)).decode()).data
    assert about.base_model == "org/base"
    assert about.datasets == ["org/data"]
    assert about.library_name == "peft"
    assert ModelCard(overview(facts, {"group_1": "group 1"}).decode()).data.library_name is None
