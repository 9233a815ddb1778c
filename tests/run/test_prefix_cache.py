"""The prefix cache: the same adapter as without it, nothing computed twice, and one line where it has no meaning."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from commands import in_empty_folder
from slowly import slowly
from torch import Tensor, nn
from toys import toy_clients, toy_module

import flt
from flt.api import Result, train
from flt.core import cache
from flt.core.errors import InputError
from flt.core.locks import _held
from flt.data.examples import Collate, Examples
from flt.data.stores import TextStore
from flt.models import activations, backbones
from flt.models.activations import Activations, PrefixedStore
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.blocks import blocks
from flt.models.frozen_prefix import Prefix
from flt.run.compose import load_config
from flt.run.prefix_cache import prefixed
from flt.run.workload import federation

pytestmark = pytest.mark.slow  # whole runs and fits


TEXT = ("model.max_length=16", "clients=3", "local.steps=3", "batch_size=4", "local.lr=0.05", "eval.examples=20")
IMAGES = ("clients=3", "local.steps=3", "batch_size=4", "eval.examples=20")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flt_cache: Path) -> None:
    """Its prefix entries are this test's own; the embedded backbone stays where it is."""
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setattr(activations.cache, "folder", lambda: tmp_path / "cache")


def text(tmp_path: Path, *overrides: str) -> list[str]:
    """A run on a tiny BERT of three blocks, of which the upper one is adapted."""
    if not (tmp_path / "bert").exists():
        tiny.save_bert(tmp_path / "bert", seed=5)
        tiny.save_reviews(tmp_path / "reviews.csv")
    given = {override.partition("=")[0] for override in overrides}
    layers = [] if "model.adapt_layers" in given else ["model.adapt_layers=top1"]
    rounds = [] if "rounds" in given else ["rounds=1"]
    algo = [] if "algo" in given else ["algo=hafl"]
    return [*algo, f"model={tmp_path}/bert", f"data={tmp_path}/reviews.csv", *TEXT, *layers, *rounds, *overrides]


def run(arguments: Sequence[str]) -> Result:
    cache.release()
    return train(load_config(arguments))


def adapter(result: Result) -> dict[str, Tensor]:
    return {name: value for name, value in result.module.named_parameters() if "lora" in name or "classifier" in name}


def distance(one: Result, other: Result) -> float:
    pairs = zip(adapter(one).values(), adapter(other).values(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["flora", *slowly("fedex_lora")])
def test_a_rule_that_writes_into_adapted_layers_leaves_what_lies_below_alone(algo: str, tmp_path: Path) -> None:
    common = text(tmp_path, f"algo={algo}", "rounds=2")
    plain, cached, start = run(common), run([*common, "prefix_cache=on"]), run([*common, "local.lr=1e-12"])

    def adapted(result: Result) -> dict[str, Tensor]:
        return {name: value for name, value in result.module.named_parameters() if "base_layer.weight" in name}

    assert adapted(cached)
    for name, value in adapted(cached).items():
        torch.testing.assert_close(value, adapted(plain)[name], rtol=0, atol=1e-5)
        assert not torch.allclose(value, adapted(start)[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("layers", "head"), [("top2", "label_names"), *slowly(("top1", "linear"))])
def test_the_adapter_after_one_round_is_that_of_a_run_without_the_cache(layers: str, head: str, tmp_path: Path) -> None:
    common = text(tmp_path, f"model.adapt_layers={layers}", f"model.head={head}")
    plain, cached = run(common), run([*common, "prefix_cache=on"])
    start = run([*common, "local.lr=1e-12"])
    assert distance(plain, cached) < 1e-5
    assert distance(plain, start) > 1e-2  # so that the line above says something
    assert cached.metrics["round/val_acc"] == plain.metrics["round/val_acc"]
    assert cached.metrics["test/loss"] == pytest.approx(plain.metrics["test/loss"], abs=1e-5)


@pytest.mark.slow
def test_in_bf16_the_adapter_is_that_of_a_run_without_the_cache(tmp_path: Path) -> None:
    common = text(tmp_path, "precision=bf16-mixed")
    plain, cached = run(common), run([*common, "prefix_cache=on"])
    assert distance(plain, cached) < 1e-5
    assert distance(plain, run(text(tmp_path))) > 1e-5  # so it was bf16


@pytest.mark.slow
def test_without_a_validation_split_the_held_out_examples_have_activations_too(tmp_path: Path) -> None:
    common = text(tmp_path, "data.validation=0")
    plain, cached = run(common), run([*common, "prefix_cache=on"])
    assert distance(plain, cached) < 1e-5
    assert cached.metrics["round/val_acc"] == plain.metrics["round/val_acc"]


@pytest.mark.slow
def test_images_work_alike(tmp_path: Path) -> None:
    common = ["algo=hafl", "rounds=1", "model.adapt_layers=top1", *IMAGES]
    plain, cached = run(common), run([*common, "prefix_cache=on"])
    assert distance(plain, cached) < 1e-5


@pytest.mark.slow
def test_ten_rounds_reach_the_same_adapter_and_accuracy(tmp_path: Path) -> None:
    # At a learning rate of 0.05 ten rounds of this tiny model amplify a last bit to 0.3: which pairs are kept may flip.
    common = text(tmp_path, "rounds=10", "local.lr=0.01")
    plain, cached = run(common), run([*common, "prefix_cache=on"])
    assert distance(plain, cached) < 1e-4
    assert distance(plain, run([*common, "local.lr=1e-12"])) > 1e-2  # so that the line above says something
    found, expected = ([m["round/val_acc"] for m in result.round_metrics] for result in (cached, plain))
    assert found == expected


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_bit_with_the_cache(tmp_path: Path) -> None:
    common = text(tmp_path, "prefix_cache=on")
    assert distance(run(common), run([*common, "model.gradient_checkpointing=true"])) == 0


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_adapter_with_the_cache_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # traced and differentiated as ever, and without the C++, which takes half a minute
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    common = text(tmp_path, "local.steps=2", "clients=2")
    plain, compiled = run(common), run([*common, "compile=true"])
    assert compiled.module.model._compiled_call_impl is not None
    assert distance(plain, compiled) < 1e-4
    assert distance(plain, run([*common, "compile=true", "prefix_cache=on"])) < 1e-4


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Examples whose activations were computed."""
    computed: list[int] = []
    original = activations.Activations._compute

    def compute(self: activations.Activations, store: Any, rows: Any, check: bool = False) -> Tensor:
        computed.append(len(rows))
        return original(self, store, rows, check)

    monkeypatch.setattr(activations.Activations, "_compute", compute)
    return computed


def test_each_example_is_computed_once_and_a_second_run_computes_one_to_learn_the_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, computed = text(tmp_path, "prefix_cache=on", "eval.examples=10"), counting(monkeypatch)
    run(arguments)
    made = federation(load_config(arguments))
    jobs = [job for client in made.clients for job in client.data]
    examples = sum(len(job.train) + len(job.held_out) for job in jobs) + 10 + len(next(iter(made.test.values())))
    probes = 3  # one for each of train, validation and test
    assert sum(computed) == examples + probes
    computed.clear()
    run(arguments)
    assert sum(computed) == probes


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "model.max_length=5",
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in ("precision=bf16-mixed", "model.random=true", "seed=1", "model.attention=eager")
        ),
    ],
)
def test_another_length_precision_model_or_data_is_another_entry(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(text(tmp_path, "prefix_cache=on"))
    before, computed = {entry.key for entry in cache.entries() if entry.kind == "prefix"}, counting(monkeypatch)
    run([*text(tmp_path, "prefix_cache=on"), change])
    assert sum(computed) > 50
    assert before < {entry.key for entry in cache.entries() if entry.kind == "prefix"}


def test_other_texts_of_the_same_lengths_and_other_rows_of_the_same_texts_are_other_entries(tmp_path: Path) -> None:
    bert = backbones.load(
        backbones.ModelConfig("hub", str(tiny.save_bert(tmp_path / "bert")), max_length=8), "text", 2, 0
    )
    prefix = Prefix(bert.model, blocks(bert.model)[:2])
    made = Activations(prefix, {"model": "m", "data": "d"}, Collate(), "32-true", 10**9, torch.device("cpu"))
    ids = np.array([2, 5, 3, 2, 6, 3, 2, 7, 3], dtype=np.int32)
    offsets = np.arange(4) * 3
    one, other = TextStore({"input_ids": ids}, offsets), TextStore({"input_ids": np.roll(ids, 3)}, offsets)
    for store, rows in ((one, [0, 1]), (other, [0, 1]), (one, [1, 2])):
        (found,) = made.beside([Examples(store, np.zeros(3)).view(rows)])
        for i in range(2):
            batch = {name: value[None] for name, value in store.row(rows[i]).items()}
            torch.testing.assert_close(found[i]["prefix"], prefix.activations(batch)[0], rtol=0, atol=1e-5)
    assert len([entry for entry in cache.entries() if entry.kind == "prefix"]) == 3


def test_a_store_is_pickled_as_the_name_of_its_file(tmp_path: Path) -> None:
    cfg = load_config(text(tmp_path, "prefix_cache=on"))
    made = federation(cfg)
    layout = attach(made.module, LoraSettings(), 0, "top1")
    found = prefixed(made, layout, cfg, torch.device("cpu"), show=False)
    examples = found.clients[0].data[0].dataset
    data = pickle.dumps(examples.store)
    assert len(data) < examples.store.values.nbytes
    i = int(found.clients[0].data[0].train[0])
    torch.testing.assert_close(pickle.loads(data).row(i)["prefix"], examples[i]["prefix"])


@pytest.mark.slow
def test_the_entries_say_what_they_are_and_a_limit_holds(tmp_path: Path) -> None:
    run(text(tmp_path, "prefix_cache=on"))
    found = [entry for entry in cache.entries() if entry.kind == "prefix"]
    assert [entry.about["precision"] for entry in found] == ["32-true"] * 3
    assert all(entry.about["base_version"] == 0 and entry.about["blocks"] == 2 for entry in found)
    cache.clear("prefix")
    with pytest.raises(InputError, match="cache.max_gb=1e-05"):
        run(text(tmp_path, "prefix_cache=on", "cache.max_gb=1e-5"))
    assert not [entry for entry in cache.entries() if entry.kind == "prefix"]


@pytest.mark.slow
def test_a_resumed_run_ends_on_the_same_bits_also_when_the_cache_was_cleared(tmp_path: Path) -> None:
    arguments = text(tmp_path, "prefix_cache=on", "name=whole", "rounds=3")
    whole = run(arguments)
    cache.clear()
    half = [argument for argument in arguments if not argument.startswith(("name=", "rounds="))]
    run([*half, "name=half", "rounds=1"])
    cache.clear()
    resumed = run([*half, "name=half", "rounds=3", f"resume={tmp_path}/lightning_logs/half/version_0"])
    assert len(resumed.round_metrics) == 3
    assert distance(whole, resumed) == 0


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["model.dropout=0.1"], "model.dropout=0.1 draws anew"),
        (["plan=full"], "the plan trains the whole model"),
        (["model.adapt_layers=all"], "nothing lies below"),
        (["model.adapt_layers=top3"], "nothing lies below"),
        (["adapter.target_modules=[layer.0.attention.self.query]", "model.adapt_layers=all"], "nothing lies below"),
    ],
)
def test_what_is_not_the_same_in_every_step_is_refused_and_nothing_is_written(
    overrides: list[str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"prefix_cache=on: .*{why}"):
        run([*text(tmp_path, *overrides), "prefix_cache=on"])
    assert not (tmp_path / "lightning_logs").exists()
    assert not (tmp_path / "cache" / "prefix").exists()


def test_a_module_of_the_users_own_is_refused(tmp_path: Path) -> None:
    module, _ = toy_module()
    cfg = load_config(["algo=fedit", "prefix_cache=on"])
    with pytest.raises(InputError, match="prefix_cache=on.*user's own"):
        flt.fit(module, list(toy_clients().values()), cfg, progress=False)


def test_a_row_is_what_the_model_computes_for_it_alone(tmp_path: Path) -> None:
    cfg = load_config(text(tmp_path, "prefix_cache=on"))
    made = federation(cfg)
    layout = attach(made.module, LoraSettings(), 0, "top1")
    found = prefixed(made, layout, cfg, torch.device("cpu"), show=False)
    base = transformers.AutoModel.from_pretrained(tmp_path / "bert").eval()
    job = found.clients[1].data[0]
    assert isinstance(job.dataset.store, PrefixedStore)
    for position in job.train[:5]:
        item = dict(job.dataset[int(position)])
        item.pop("labels")
        activations = item.pop("prefix")
        with torch.no_grad():
            out = base(**{name: value[None] for name, value in item.items()}, output_hidden_states=True)
        torch.testing.assert_close(activations, out.hidden_states[2][0], rtol=0, atol=1e-5)
        assert len(activations) == job.dataset.lengths[int(position)]
    assert np.array_equal(job.train, made.clients[1].data[0].train)


@pytest.mark.parametrize("keep", [True, False])
def test_a_fit_ends_the_use_of_what_it_has_cached_and_removes_it_if_it_is_not_to_be_kept(
    keep: bool, tmp_path: Path
) -> None:
    cfg = load_config(text(tmp_path, "prefix_cache=on", f"cache.keep={str(keep).lower()}"))
    made = federation(cfg)
    flt.fit(made.module, made.clients, cfg, collate_fn=made.collate, progress=False)
    assert {found.kind for found in cache.entries()} == ({"prefix", "tokens"} if keep else set())
    assert cache._used == set()
    assert not _held


@pytest.mark.parametrize("keep", [True, False])
def test_processes_that_a_run_starts_remove_what_they_have_cached(keep: bool, tmp_path: Path) -> None:
    options = ["engine=distributed", "engine.strategy=ddp_fork", "devices=2", "prefix_cache=on"]
    run(text(tmp_path, *options, f"cache.keep={str(keep).lower()}"))
    assert {found.kind for found in cache.entries()} == ({"prefix", "tokens"} if keep else set())
