"""Modules that people bring to ``flt.fit`` with layers of peft, or with layers that LoRA fits badly.

Each is trained right, and whatever is exported loads with the same logits, or it is refused in one line at the start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import peft
import pytest
import tiny
import torch
import transformers
from commands import in_empty_folder
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import LoraModel
from slowly import mostly_slowly
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import flt
from flt.api import Result
from flt.core.errors import InputError
from flt.models.adapters.lora import LoraSettings, attach
from flt.models.peft_modules import check_mergeable, check_peft

SHORT = ("local.steps=2",)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    in_empty_folder(tmp_path, monkeypatch)
    return tmp_path


class Rows(Dataset):
    """Texts of a class each; a causal model's labels are the texts themselves."""

    def __init__(self, causal: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, len(tiny.WORDS), (24, 6), generator=generator)
        self.rows = [
            {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row if causal else torch.tensor(i % 3)}
            for i, row in enumerate(ids)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]


class Holder(pl.LightningModule):
    """Trains a transformers model by the model's own loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self(**batch).loss, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


def fit(module: pl.LightningModule, algo: str = "fedit", overrides: tuple[str, ...] = (), **settings: Any) -> Result:
    causal = settings.pop("causal", False)
    shares = flt.partition(settings.pop("data", Rows(causal)), by=None, clients=2)
    keys = (*SHORT, *overrides)
    return flt.fit(module, shares, algo, 2, batch_size=4, progress=False, overrides=keys, **settings)


@torch.no_grad()
def logits(module: nn.Module) -> Tensor:
    rows = Rows().rows
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("input_ids", "attention_mask")}
    return module.eval()(**batch).logits


def bert() -> Any:
    return tiny.classifier("bert")


def wrapped(**settings: Any) -> Any:
    return peft.get_peft_model(bert(), lora(**settings))


def lora(**settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], **settings})


def changed(model: Any, change: Callable[[Any], Any]) -> Any:
    change(model)
    return model


def named_by_the_user() -> Any:
    return peft.get_peft_model(bert(), lora(), adapter_name="mine")


def with_a_second(active: str) -> Any:
    model = wrapped()
    model.add_adapter("other", lora(target_modules=["query", "key"], r=3))
    model.set_adapter(active)
    return model


def twice() -> Any:
    return peft.get_peft_model(wrapped(), lora(target_modules=["key"]), adapter_name="outer")


def reloaded() -> Any:
    wrapped().save_pretrained("saved")
    return peft.PeftModel.from_pretrained(bert(), "saved")


WAYS: dict[str, Callable[[], Any]] = {
    "get_peft_model": wrapped,
    "get_peft_model without a task": lambda: wrapped(task_type=None),
    "an adapter with another name": named_by_the_user,
    "inject_adapter_in_model": lambda: peft.inject_adapter_in_model(lora(task_type=None), bert()),
    "add_adapter of transformers": lambda: changed(bert(), lambda m: m.add_adapter(lora(task_type=None))),
    "a mixed model of LoRA alone": lambda: peft.get_peft_model(bert(), lora(), mixed=True),
    "LoraModel itself": lambda: LoraModel(bert(), lora(), "default"),
    "two adapters, the first is active": lambda: with_a_second("default"),
    "two adapters, the second is active": lambda: with_a_second("other"),
    "PeftModel inside PeftModel": twice,
    "an adapter for inference": reloaded,
    "modules_to_save": lambda: wrapped(modules_to_save=["pooler"]),
    "modules_to_save without a task": lambda: wrapped(task_type=None, modules_to_save=["classifier", "pooler"]),
    "layers_to_transform": lambda: wrapped(layers_to_transform=[0, 2]),
    "patterns": lambda: wrapped(rank_pattern={"query": 3}, alpha_pattern={"value": 5}),
    "rank-stabilised": lambda: wrapped(use_rslora=True, r=4),
    "bias=all": lambda: wrapped(bias="all"),
    "bias=lora_only": lambda: wrapped(bias="lora_only"),
    "B that doesn't start at 0": lambda: wrapped(init_lora_weights=False),
    "gaussian": lambda: wrapped(init_lora_weights="gaussian"),
    "all linear layers": lambda: wrapped(target_modules="all-linear"),
    "the embedding in modules_to_save": lambda: wrapped(modules_to_save=["word_embeddings"]),
}
QUICK = ("get_peft_model", "an adapter with another name", "two adapters, the second is active")


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.mark.parametrize("algo", ["fedit", "flora", "fedavg"])
@pytest.mark.parametrize("way", mostly_slowly(WAYS, QUICK))
def test_what_is_exported_loads_on_the_module_with_and_without_peft(way: str, algo: str) -> None:
    before = logits(Holder(bert()))
    result = fit(Holder(seeded(WAYS[way])), algo)
    expected = logits(result.module)
    assert not torch.allclose(expected, before, atol=1e-3)
    for again in (bert(), seeded(WAYS[way])):
        torch.testing.assert_close(logits(flt.load(result.exported, Holder(again))), expected, atol=1e-5, rtol=1e-5)
    if result.exported.name == "adapter":
        plainly: Any = peft.PeftModel.from_pretrained(Holder(bert()), str(result.exported))  # type: ignore[arg-type]  # any module will do
        torch.testing.assert_close(logits(plainly), expected, atol=1e-5, rtol=1e-5)


def merged() -> Any:
    return changed(wrapped(), lambda model: model.merge_adapter())


def disabled() -> Any:
    return changed(wrapped(), lambda model: model.base_model.disable_adapter_layers())


def both_active() -> Any:
    model = wrapped(task_type=None)
    model.add_adapter("other", lora(task_type=None))
    return changed(model, lambda model: model.base_model.set_adapter(["default", "other"]))


def mixed() -> Any:
    model = peft.get_peft_model(bert(), lora(), mixed=True)
    model.add_adapter("other", peft.LoHaConfig(r=2, target_modules=["key"]))
    return model


def llama(**settings: Any) -> Any:
    return transformers.LlamaForCausalLM(tiny.config("llama", **settings))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "PiSSA": (lambda: wrapped(init_lora_weights="pissa"), "init_lora_weights=pissa: it changes the weights"),
    "a quick PiSSA": (lambda: wrapped(init_lora_weights="pissa_niter_4"), "init_lora_weights=pissa_niter_4"),
    "OLoRA": (lambda: wrapped(init_lora_weights="olora"), "init_lora_weights=olora"),
    "DoRA": (lambda: wrapped(use_dora=True), "query=DoRA"),
    "a bias of LoRA": (lambda: wrapped(lora_bias=True), "query=a bias of LoRA"),
    "tokens": (lambda: wrapped(trainable_token_indices=[1, 2]), "=TrainableTokens"),
    "parameters": (lambda: wrapped(target_modules=[], target_parameters=["query.weight"]), "=LoRA on a parameter"),
    "an embedding": (lambda: wrapped(target_modules=["word_embeddings"]), "=Embedding, which is neither linear"),
    "merged": (merged, "=an adapter that is merged"),
    "disabled": (disabled, "=adapters that are disabled"),
    "two active adapters": (both_active, "=several active adapters"),
    "a mixed model": (mixed, "peft_config[other]=LOHA"),
    "layers that are used twice": (
        lambda: peft.get_peft_model(llama(), lora(target_modules=["q_proj"], layer_replication=[[0, 2], [1, 3]])),
        "layer_replication=",
    ),
}


@pytest.mark.parametrize("algo", ["fedit", "fedavg"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_can_do_and_flt_can_not_is_one_line_at_the_start(case: str, algo: str, folder: Path) -> None:
    make, why = REFUSED[case]
    with pytest.raises(InputError) as caught:
        fit(Holder(make()), algo)
    assert why in str(caught.value)
    assert str(caught.value).startswith("module.model")
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": None},
    "OFT": {"oft_block_size": 4, "r": 0},
    "ROAD": {"group_size": 16},
    "VBLORA": {"vector_length": 4, "num_vectors": 8},
    "FOURIERFT": {"n_frequency": 4},
    "C3A": {"block_size": 4},
    "WAVEFT": {"n_frequency": 4},
    "XLORA": {"adapters": {"0": "saved"}, "hidden_size": 16},
}


def made_by(kind: peft.PeftType) -> Any:
    """A tiny Llama with the smallest adapter of a method."""
    config: Any = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    fields = config.__dataclass_fields__
    usual = {"num_virtual_tokens": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "r": 2}
    base = llama(use_cache=False)
    if kind is peft.PeftType.XLORA:
        peft.get_peft_model(llama(), lora(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained("saved")
    settings = {key: value for key, value in usual.items() if key in fields} | SETTINGS.get(kind.value, {})
    return peft.get_peft_model(base, config(**settings))


@pytest.mark.parametrize("kind", [kind for kind in peft.PeftType if kind is not peft.PeftType.LORA])
def test_every_other_method_of_peft_is_refused(kind: peft.PeftType) -> None:
    """The list is peft's own, so that a method which a newer peft adds is tried too."""
    with pytest.raises(InputError, match=rf"^module\.model\.peft_config\[default\]={kind.value}: [^\n]*$"):
        check_peft(Holder(made_by(kind)))


def test_a_base_from_which_an_adapter_was_removed_is_taken() -> None:
    base = peft.get_peft_model(bert(), peft.IA3Config(task_type="SEQ_CLS")).merge_and_unload()
    base.peft_config = {"default": peft.IA3Config()}  # what older versions of peft leave behind
    check_peft(Holder(base))


HEADS = (None, "model.classifier", "model.base_model.model.classifier")


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_peft_has_wrapped_is_trained_once_by_any_of_its_names(head: str | None) -> None:
    module = Holder(wrapped())
    result = fit(module, head=head)
    copy = "model.base_model.model.classifier.modules_to_save.default"
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert trained == {f"{copy}.weight", f"{copy}.bias"}
    torch.testing.assert_close(logits(flt.load(result.exported, Holder(bert()))), logits(result.module))


@pytest.mark.parametrize("head", ["model", "model.bert.encoder.layer.0.attention.self.query"])
def test_a_head_in_which_peft_has_put_adapters_is_refused(head: str) -> None:
    with pytest.raises(InputError, match=r"^adapter\.head=model[^\n]*$"):
        fit(Holder(wrapped()), head=head)


class Pictures(Dataset):
    """Pictures of a class each."""

    def __init__(self, dimensions: int) -> None:
        self.x = torch.randn(24, 2, *(6,) * dimensions, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], index % 3


class Convolutions(pl.LightningModule):
    """Convolutions of any number of dimensions, a linear layer, and a head."""

    def __init__(self, dimensions: int = 2, **settings: Any) -> None:
        super().__init__()
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = kind(2, 4, 3, padding=1), kind(4, 4, 3, stride=2, padding=1, **settings)
            self.norm, self.linear, self.head = nn.GroupNorm(1, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(torch.relu(self.first(x)))).flatten(2).mean(-1)
        return self.head(torch.relu(self.linear(x)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.3)


CONVOLVED = ["first", "second", "linear"]
ELEMENTWISE = ("fedit", "hafl", "fl_tac", "ffa_lora", "rolora", "fedsa_lora", "scaffold", "fedprox", "fedadam", "local")
PRODUCTS = {
    "flora": "rule=Stacking", "fedex_lora": "rule=Residual", "flexlora": "rule=Svd", "hetlora": "rule=Mean",
    "haflq": "compression=Quantised", "sa_fedlora": "schedule=Annealed",
}  # fmt: skip


@pytest.mark.parametrize("dimensions", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
@pytest.mark.parametrize("algo", mostly_slowly(ELEMENTWISE, ("fedit",)))
def test_convolutions_are_adapted_where_the_algebra_holds(algo: str, dimensions: int) -> None:
    data = Pictures(dimensions)
    result = fit(Convolutions(dimensions), algo, data=data, target_modules=CONVOLVED)
    inner = sorted(path for path in result.exported.iterdir() if path.is_dir())
    exported, x = (inner or [result.exported])[0], data.x
    with torch.no_grad():
        expected = result.module.eval()(x)
        torch.testing.assert_close(flt.load(exported, Convolutions(dimensions))(x), expected)
        plainly: Any = peft.PeftModel.from_pretrained(Convolutions(dimensions), str(exported))  # type: ignore[arg-type]  # any module will do
        torch.testing.assert_close(plainly.eval()(x), expected)
        assert not torch.allclose(Convolutions(dimensions)(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("algo", "named", "overrides"),
    [
        *((algo, named, ()) for algo, named in PRODUCTS.items()),
        ("hafl", "importance=Magnitude", ("importance=magnitude",)),
    ],
)
def test_recipes_that_form_products_of_matrices_refuse_convolutions(
    algo: str, named: str, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match=f"^{named}: [^\n]*first is a convolution[^\n]*$"):
        fit(Convolutions(), algo, overrides, data=Pictures(2), target_modules=CONVOLVED)


@pytest.mark.slow
def test_convolutions_are_merged_into_a_whole_model() -> None:
    overrides = ("plan=stages", "plan.until=1")
    result = fit(Convolutions(), "fedit", overrides, data=Pictures(2), target_modules=CONVOLVED)
    x = Pictures(2).x
    assert result.exported.name == "model"
    with torch.no_grad():
        expected = result.module.eval()(x)
        torch.testing.assert_close(flt.load(result.exported, Convolutions())(x), expected, atol=1e-5, rtol=1e-5)


class Attends(Convolutions):
    """Has the layers of torch that LoRA can't adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.words, self.recurrent = nn.MultiheadAttention(4, 2), nn.Embedding(5, 4), nn.LSTM(4, 4)


UNFIT: dict[str, tuple[Callable[[], Any], str]] = {
    "out_proj": (Attends, "attention.out_proj is a layer that is never called"),
    "attention": (Attends, "ends of the names of layers"),
    "words": (Attends, "words is Embedding"),
    "recurrent": (Attends, "recurrent is LSTM"),
    "norm": (Attends, "norm is GroupNorm"),
    "first": (lambda: Convolutions(groups=2), ""),
    "second": (lambda: Convolutions(groups=2), "second is a convolution with groups"),
}


@pytest.mark.parametrize("target", UNFIT)
def test_layers_that_lora_can_not_adapt_are_refused_at_the_start(target: str, folder: Path) -> None:
    make, why = UNFIT[target]
    if not why:
        fit(make(), data=Pictures(2), target_modules=[target])
        return
    with pytest.raises(InputError, match=rf"^adapter\.target_modules=[^\n]*{why}[^\n]*$"):
        fit(make(), data=Pictures(2), target_modules=[target])
    assert not list(folder.iterdir())


@pytest.mark.parametrize("settings", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "reflect"}], ids=str)
def test_convolutions_that_pefts_factors_can_not_follow_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="second is a convolution with groups, dilation or a padding mode"):
        fit(Convolutions(**settings), data=Pictures(2), target_modules=["second"])
    module = Convolutions(**settings)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["second"]), module)
    with pytest.raises(InputError, match=r"^module\.second=a convolution with groups"):
        fit(module, data=Pictures(2))


def test_an_attention_that_peft_has_adapted_is_refused() -> None:
    module = Attends()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["out_proj", "linear"]), module)
    with pytest.raises(InputError, match=r"^module\.attention\.out_proj=a layer that is never called"):
        fit(module, data=Pictures(2))


def weight_normed() -> Any:
    module = Convolutions()
    module.linear = nn.utils.parametrizations.weight_norm(module.linear)
    return module


class Tied(pl.LightningModule):
    """A plain language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words, self.inner, self.out = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.out.weight = self.words.weight

    def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
        return transformers.modeling_outputs.CausalLMOutput(
            logits=self.out(torch.tanh(self.inner(self.words(input_ids))))
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(**batch).logits.flatten(0, 1), batch["labels"].flatten())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.1)


def decoder(kind: str = "gpt2", **settings: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny.config(kind, initializer_range=0.5, use_cache=False, **settings)
        return transformers.AutoModelForCausalLM.from_config(config)


def saved_head() -> Any:
    return peft.get_peft_model(decoder(), lora(target_modules=["c_attn"], modules_to_save=["lm_head"]))


CAUSAL: dict[str, tuple[Callable[[], pl.LightningModule], dict[str, Any], Callable[[], pl.LightningModule]]] = {
    "GPT-2": (lambda: Holder(decoder()), {}, lambda: Holder(decoder())),
    "GPT-2, by the usual name": (lambda: Holder(decoder()), {"target_modules": ["c_attn"]}, lambda: Holder(decoder())),
    "GPT-2, with peft": (
        lambda: Holder(peft.get_peft_model(decoder(), lora(target_modules=["c_attn"]))), {}, lambda: Holder(decoder())
    ),
    "Llama": (lambda: Holder(decoder("llama")), {}, lambda: Holder(decoder("llama"))),
    "a plain tied model": (Tied, {}, Tied),
}  # fmt: skip


@pytest.mark.parametrize("algo", ["fedit", pytest.param("flora", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CAUSAL)
def test_only_adapters_of_a_language_model_are_trained_and_the_export_loads(case: str, algo: str) -> None:
    make, settings, bare = CAUSAL[case]
    result = fit(make(), algo, causal=True, **settings)
    trained = [name for name, parameter in result.module.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    expected = logits(result.module)
    torch.testing.assert_close(logits(flt.load(result.exported, bare())), expected, atol=1e-5, rtol=1e-5)
    if algo == "fedit":
        plainly: Any = peft.PeftModel.from_pretrained(bare(), str(result.exported))  # type: ignore[arg-type]  # any module will do
        torch.testing.assert_close(logits(plainly), expected)


def test_a_tied_head_that_is_asked_for_is_refused() -> None:
    for module, head in ((Tied(), "out"), (Holder(decoder("llama", tie_word_embeddings=True)), "model.lm_head")):
        with pytest.raises(InputError, match=rf"^adapter\.head={head}: its weights are those of [^\n]*$"):
            fit(module, head=head, causal=True)


TIED: dict[str, tuple[Callable[[], pl.LightningModule], dict[str, Any]]] = {
    "LoRA on the tied layer": (lambda: Holder(decoder()), {"target_modules": ["c_attn", "lm_head"]}),
    "LoRA on a plain tied layer": (Tied, {"target_modules": ["inner", "out"]}),
    "a copy of the tied layer": (lambda: Holder(saved_head()), {}),
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_weight_is_exported_as_an_adapter_and_never_merged(case: str, folder: Path) -> None:
    make, settings = TIED[case]
    with pytest.raises(InputError, match=r"^module\.[^\n]*=a tied weight: it is also [^\n]*$"):
        fit(make(), "flora", causal=True, **settings)
    assert not list(folder.iterdir())
    result = fit(make(), causal=True, **settings)
    bare = Tied() if isinstance(result.module, Tied) else Holder(decoder())
    torch.testing.assert_close(logits(flt.load(result.exported, bare)), logits(result.module))


def test_a_computed_weight_takes_lora_and_is_never_merged() -> None:
    result, x = fit(weight_normed(), data=Pictures(2)), Pictures(2).x
    with torch.no_grad():
        torch.testing.assert_close(flt.load(result.exported, weight_normed())(x), result.module.eval()(x))
    with pytest.raises(InputError, match=r"^module\.linear\.base_layer\.weight=a computed weight: [^\n]*$"):
        fit(weight_normed(), "flora", data=Pictures(2))


def test_quantised_weights_are_never_merged() -> None:
    module = Holder(wrapped())
    layout = attach(module, LoraSettings(), 0)
    layer = next(iter(layout.layers.values()))
    module.get_submodule(layer.base.removesuffix(".weight")).weight = nn.Parameter(
        torch.zeros(16, 16, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(InputError, match=r"=torch\.int8: [^\n]*allowed is weights that aren't quantised$"):
        check_mergeable(module, layout)


class Reads(Convolutions):
    """Reads the weight of a layer that it never calls, as some attentions do."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(torch.relu(self.first(x)))).flatten(2).mean(-1)
        return self.head(torch.relu(F.linear(x, self.linear.weight, self.linear.bias)))


@pytest.mark.parametrize("algo", mostly_slowly(["fedit", "hafl", "fl_tac", "fedsa_lora"], ["fedit", "fedsa_lora"]))
def test_a_layer_that_is_never_called_is_warned_of(algo: str, caplog: pytest.LogCaptureFixture) -> None:
    fit(Reads(), algo, data=Pictures(2), target_modules=["first", "linear"])
    warned = [record.message for record in caplog.records if "no client has trained" in record.message]
    assert warned == ["no client has trained LoRA on linear: is the layer ever called, or only its weight read?"]
    caplog.clear()
    fit(Convolutions(), algo, data=Pictures(2), target_modules=["first", "linear"])
    assert "no client has trained" not in caplog.text


class Endings(pl.LightningModule):
    """The name of the head is the end of the names of peft's own modules, and of layers of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.attn_out, self.drop_out = nn.Linear(2, 8), nn.Linear(8, 8), nn.Dropout(0.0)
            self.layout, self.out = nn.ModuleList([nn.Linear(8, 8)]), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.attn_out(torch.relu(self.first(x.flatten(2).mean(-1)))))
        return self.out(torch.relu(self.layout[0](self.drop_out(x))))

    training_step, validation_step = Convolutions.training_step, Convolutions.validation_step
    configure_optimizers = Convolutions.configure_optimizers


@pytest.mark.parametrize("targets", [["first"], ["first", "attn_out"], None], ids=str)
def test_a_head_whose_name_is_the_end_of_others_loads(targets: list[str] | None) -> None:
    data = Pictures(2)
    result = fit(Endings(), data=data, target_modules=targets)
    with torch.no_grad():
        expected = result.module.eval()(data.x)
        torch.testing.assert_close(flt.load(result.exported, Endings())(data.x), expected)
        plainly: Any = peft.PeftModel.from_pretrained(Endings(), str(result.exported))  # type: ignore[arg-type]  # any module will do
        torch.testing.assert_close(plainly.eval()(data.x), expected)
    assert result.module.out.weight.requires_grad  # type: ignore[union-attr]  # a linear layer
