"""Every YAML of conf/ names a command that starts it, and that command runs a round."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
import transformers
from commands import in_empty_folder, train
from omegaconf import OmegaConf
from tiny import save_decoder, save_instructions

from flt.run.compose import compose_config, load_config
from flt.run.conf_groups import BASE, config_folder

CONF = config_folder()
YAMLS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml") if path.stem != BASE)
COMMAND = re.compile(r"#\s+((?:make|flt) train\b.*)")
NAMES = list(OmegaConf.load(CONF / "data" / "newsgroups20.yaml").label_texts)
STAND_INS = {
    "path/to/encoder": "bert",
    "path/to/decoder": "gpt2",
    "path/to/vit": "vit",
    "distilbert/distilbert-base-uncased": "bert",
    "path/to/reviews.csv": "reviews.csv",
    "path/to/devices.csv": "devices.csv",
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]


def commands(yaml: str) -> list[str]:
    """The commands of a file's head comment; a comment may follow after several spaces."""
    head = [line for line in (CONF / yaml).read_text().splitlines() if not line.startswith("defaults")]
    found = (COMMAND.match(line) for line in head)
    return [re.split(r"\s{2,}#", match.group(1))[0].strip() for match in found if match]


def overrides(command: str) -> list[str]:
    """A command's overrides, as make passes them on."""
    words = shlex.split(command)
    pairs = [word.partition("=") for word in words[2:]]
    if words[0] == "flt":
        return words[2:]
    passed = [value.split() if key == "ARGS" else [f"{key.lower()}={value}"] for key, _, value in pairs]
    return [override for some in passed for override in some]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny text encoder, a tiny decoder and small data sets."""
    folder = tmp_path_factory.mktemp("examples")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=8
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    rows = [
        {"text": f"good film {i}", "label": i % 20, "label_name": NAMES[i % 20], "stars": i % 2} for i in range(160)
    ]
    transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        )
    ).save_pretrained(folder / "vit")
    images = np.random.default_rng(0).integers(256, size=(200, 32, 32, 3), dtype=np.uint8)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        labels = np.arange(200) % classes
        np.savez(folder / f"{name}.npz", x_train=images, y_train=labels, x_test=images[:100], y_test=labels[:100])
    languages = OmegaConf.load(CONF / "data" / "sib200.yaml").where.language
    topics = [
        {**row, "language": name, "split": s} for row in rows[:9] for name in languages for s in ("train", "test")
    ]
    datasets.Dataset.from_list(topics).to_parquet(folder / "multilingual_sib200.parquet")
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "newsgroups20.parquet")
    save_decoder(folder / "gpt2")
    save_instructions(folder / "dolly15k.parquet", categories=tuple(OmegaConf.load(CONF / "data" / "dolly.yaml").tasks))
    table.remove_columns("label_name").to_csv(folder / "reviews.csv")
    devices = [f"{client},1e9,1e6,1e6" for client in range(10)]
    (folder / "devices.csv").write_text("\n".join(["client,compute,down,up", *devices]))
    return folder


@pytest.mark.parametrize("yaml", YAMLS)
def test_the_head_comment_has_a_command_that_chooses_the_file(yaml: str) -> None:
    group, _, name = yaml.removesuffix(".yaml").rpartition("/")
    ways = (f"{group}={name}", f"{group}.") if group else ("algo=",)
    ways += {"data": ("data=org/", "data=nyu-mll/", "data=path/to/"), "model": ("model=distilbert/",)}.get(group, ())
    assert commands(yaml)
    for command in commands(yaml):
        assert any(word.startswith(ways) for word in overrides(command)), command
        compose_config([word for word in overrides(command) if not word.startswith("model=path/")])


SOME = re.compile(r"algo/(hafl|c2a|fl_tac_unlocked)\.|data/file")
"""Files whose first command is run by the fast tests; the slow ones run that of every file."""
CASES = [
    pytest.param(command, id=f"{yaml}: {command}", marks=[] if SOME.match(yaml) else [pytest.mark.slow])
    for yaml in YAMLS
    for command in commands(yaml)[:1]
    if "DEVICES=" not in command  # several processes can't be this one: tests/engines/test_launcher.py
]


@pytest.mark.parametrize("command", CASES)
def test_the_command_of_the_head_comment_runs_a_round(
    command: str, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_empty_folder(tmp_path, monkeypatch)
    monkeypatch.setenv("FLT_DATA", str(examples))
    table = datasets.Dataset.from_parquet(str(examples / "newsgroups20.parquet"))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset: {"train": table})
    for name, stand_in in STAND_INS.items():
        command = command.replace(name, str(examples / stand_in))
    wanted = [override for override in overrides(command) if not override.startswith("rounds=")]
    cfg = load_config(wanted)
    if cfg == load_config([f"algo={cfg.algo}"]):
        return  # a recipe as it is: tests/export/test_every_export.py runs them all
    short = ["model.max_length=8"] if "bert" in command or "gpt2" in command else []
    assert train(*wanted, *short, "batch_size=4") == 0
    (run,) = tmp_path.glob("lightning_logs/*/*")
    assert (run / "adapter").is_dir() or (run / "model").is_dir()
    assert len((run / "metrics.csv").read_text().splitlines()) == 2
