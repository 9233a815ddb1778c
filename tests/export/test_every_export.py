"""What every recipe leaves, folder by folder, has the logits of the model that the run made: with flt and without."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import transformers
from commands import QUICK, in_empty_folder
from exports import AUTO, SOURCES, Ask, Made, check, logits, pixels, words
from slowly import mostly_slowly, slowly
from torch import Tensor

import flt
from flt.api import train as train_cfg
from flt.export.final_models import Model, final_models
from flt.run.compose import load_config
from flt.run.conf_groups import choices
from flt.run.resume import configure
from flt.server.federator import Federator

LOADED_BY_PEFT = ("lora", "none")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    """Runs a federation of images, or of texts on a tiny BERT."""
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(tmp_path))
    seen: list[Federator] = []

    def spy(federator: Federator) -> list[Model]:
        seen.append(federator)
        return final_models(federator)

    def start(data: str, *overrides: str) -> Made:
        monkeypatch.setattr("flt.run.run.final_models", spy)
        monkeypatch.setattr("flt.callbacks.tensorboard.write_state", lambda *_: None)  # pictures
        quick = {**QUICK, "rounds": 2, "local.lr": 0.05, "eval.client_examples": 0, "eval.test_examples": 10}
        base, given = SOURCES[data](tmp_path)
        cfg = load_config([*(f"{key}={value}" for key, value in quick.items()), *given, *overrides])
        if data == "texts":  # read where jobs are per task
            cfg = dataclasses.replace(cfg, data={**cfg.data, "tasks": {"film": ["0", "1"], "book": ["2", "3"]}})
        exported = train_cfg(cfg).exported
        return Made(cfg, seen[-1], exported, base, pixels() if data == "images" else words(), AUTO[data])

    return start


@pytest.fixture(scope="module")
def without_flt() -> Iterator[Ask]:
    """Logits of an export by peft and transformers in a process that lacks flt, which all tests of the file share."""
    packages = {str(Path(str(m.__file__)).parents[1]) for m in (torch, transformers, peft, safetensors)}
    script = Path(__file__).parents[1] / "support" / "plainly.py"
    process = subprocess.Popen(
        [sys.executable, "-IS", str(script), *sorted(packages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines, orders = process.stdout, process.stdin

    def ask(made: Made, folder: Path, classes: int) -> Tensor:
        batch = (made.exported.parent / "batch.safetensors").resolve()
        safetensors.torch.save_file(made.batch, batch)
        order = {"folder": str(folder.resolve()), "base": str(made.base), "batch": str(batch)}
        order |= {"auto": f"AutoModelFor{made.auto}", "classes": classes, "merged": made.exported.name == "model"}
        print(json.dumps(order), file=orders, flush=True)
        return torch.tensor(json.loads(lines.readline())["logits"])

    yield ask
    orders.close()
    assert process.wait() == 0, "it failed, or flt was imported there"


CASES = [f"{data} algo={algo}" for algo in choices("algo") for data in ("images", "texts")]
CASES += ["decoder algo=fedit", "decoder algo=flora", "decoder algo=fedavg"]
QUICKLY = ("images algo=c2a",)


@pytest.mark.parametrize("case", mostly_slowly(CASES, QUICKLY))
def test_every_folder_of_every_recipe_has_the_logits_of_its_model(
    case: str, run: Callable[..., Made], request: pytest.FixtureRequest
) -> None:
    made = run(*case.split())
    plain = made.cfg.adapter["name"] in LOADED_BY_PEFT
    check(made, request.getfixturevalue("without_flt") if plain else None)


DELTAS = [
    "images algo=flora adapter.rank=2",
    "images algo=flora",
    "images algo=sa_fedlora",
    "images algo=fedit plan=full",
    "images algo=fedex_lora plan.private=[head]",
    "texts algo=fedex_lora adapter.rank=1",
    "texts algo=flora ranks=[2,4,8] selection=truncate",
    "texts algo=sa_fedlora",
    "decoder algo=flora",
    "decoder algo=sa_fedlora",
]


@pytest.mark.parametrize("case", slowly(*DELTAS))
def test_a_base_s_change_is_a_part_of_an_adapter_that_peft_loads(
    case: str, run: Callable[..., Made], without_flt: Ask
) -> None:
    made = run(*case.split(), "export.base=delta")
    assert made.exported.name == "adapter"
    check(made, without_flt)


@pytest.mark.parametrize("export", slowly("merged", "delta"))
def test_a_model_without_an_adapter_is_merged_and_bottlenecks_never_are(export: str, run: Callable[..., Made]) -> None:
    made = run("images", "algo=fedavg", f"export.base={export}")
    assert made.exported.name == "model"
    check(made, None)
    made = run("images", "algo=c2a", "adapter=houlsby", "plan=full", f"export.base={export}")
    assert made.exported.name == "adapter"
    check(made, None)


OWN = [
    "images algo=local adapter=houlsby",
    "images algo=local adapter=c2a",
    "images algo=local adapter=c2a adapter.label_source=client",
    "texts algo=local adapter=c2a adapter.label_source=client",
    "images algo=c2a plan.private=[head]",
    "images algo=c2a adapter=houlsby plan.private=[head]",
    "images algo=fedit plan.private=[adapter] adapter=c2a adapter.label_source=client",
    "images algo=local adapter=c2a adapter.label_source=client jobs=per_task",
    "texts algo=fedsa_lora model.head=label_names",
    "texts algo=local adapter=houlsby model.head=label_names",
]
QUICK_OWN = ("texts algo=local adapter=c2a adapter.label_source=client",)


@pytest.mark.parametrize("case", mostly_slowly(OWN, QUICK_OWN))
def test_every_client_s_own_model_is_loaded_as_it_computes_on_the_client(case: str, run: Callable[..., Made]) -> None:
    made = run(*case.split())
    found = check(made, None)
    assert len(found) >= 3
    assert not torch.allclose(found[0], found[1], atol=1e-4)


GROUPS = [
    f"{tasks} jobs=per_task grouping=kmeans adapter={adapter}"
    for adapter in ("c2a", "houlsby", "c2a adapter.label_source=client")
    for tasks in ("algo=c2a", "algo=c2a data=digits_two")
]


@pytest.mark.parametrize("case", slowly(*GROUPS))
def test_every_group_of_bottlenecks_has_the_logits_of_its_model(case: str, run: Callable[..., Made]) -> None:
    found = check(run("images", *case.split(), "clients=4"), None)
    assert len(found) >= 2


@pytest.mark.slow
def test_a_client_s_model_has_the_loss_that_the_run_measured_on_that_client(run: Callable[..., Made]) -> None:
    settings = ["algo=local", "adapter=c2a", "adapter.label_source=client"]
    made = run("images", *settings, "eval.client_examples=50")
    module = made.federator.engine.local_trainer.module  # what the run returns: the first client's, at that client
    first = made.exported / f"client_{made.federator.updates[0].job[0]}"
    with torch.no_grad():
        torch.testing.assert_close(module.model(**made.batch).logits, logits(flt.load(first), made.batch))
    for update in made.federator.updates:
        client = update.job[0]
        data = made.federator.clients[client].data[0].validation_set(50)
        batch = torch.utils.data.default_collate([data[i] for i in range(len(data))])
        found = logits(flt.load(made.exported / f"client_{client}"), {"pixel_values": batch["pixel_values"]})
        loss = torch.nn.functional.cross_entropy(found, batch["labels"]).item()
        assert loss == pytest.approx(update.metrics["fitted/val_loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("algo=local adapter=c2a adapter.label_source=client", True),
        *slowly(
            ("algo=local adapter=c2a", False),
            ("algo=local adapter=c2a adapter.label_source=client adapter.use_label=false", False),
            ("algo=c2a adapter.label_source=client", False),
        ),
    ],
)
def test_a_card_tells_a_client_s_labels_where_its_own_model_computes_with_them_and_nowhere_else(
    settings: str, told: bool, run: Callable[..., Made]
) -> None:
    made = run("images", *settings.split(), "rounds=1")
    for model in final_models(made.federator):
        card = json.loads((made.exported / model.folder / "flt_adapter.json").read_text())
        counts = list(model.data.label_counts) if model.data is not None else None
        assert card["label_counts"] == (counts if told else [])


@pytest.mark.slow
def test_a_finished_run_is_exported_anew_in_the_other_way(run: Callable[..., Made]) -> None:
    made = run("images", "algo=flora", "rounds=1")
    assert made.exported.name == "model"
    again = train_cfg(configure(["algo=flora", "rounds=1", "resume=last", "export.base=delta"]))
    assert again.exported == made.exported.parent / "adapter"
    assert not made.exported.exists()
    torch.testing.assert_close(
        logits(flt.load(again.exported), made.batch), made.logits(final_models(made.federator)[0]), rtol=0, atol=1e-5
    )
