"""Bad input of every kind, and how it is refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import safetensors.torch
import torch
from commands import finished_run, train

from flt.callbacks.checkpoint import sealed

MARK = "executed"
"""A file that appears in the working folder where a pickle or a name of a function is obeyed."""


class Evil:
    """Unpickling it makes the mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARK}",)


def csv(text: str | bytes) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        (folder / "data.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["data=data.csv"]

    return prepare


def file(name: str, data: bytes | Callable[[Path], Any]) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        if callable(data):
            data(folder / name)
        else:
            (folder / name).write_bytes(data)
        return [f"data={name}"]

    return prepare


def model(change: Callable[[Path], Any]) -> Callable[[Path], list[str]]:
    """A folder with a tiny encoder that something has happened to."""

    def prepare(folder: Path) -> list[str]:
        from transformers import BertConfig, BertForSequenceClassification

        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        (folder / "data.csv").write_text("text,label\n" + "".join(f"word {i},{i % 2}\n" for i in range(60)))
        BertForSequenceClassification(BertConfig(vocab_size=40, **shape)).save_pretrained(folder / "model")
        (folder / "model" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
        (folder / "model" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        change(folder / "model")
        return ["data=data.csv", "model=./model"]

    return prepare


def rewritten(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(data: bytes) -> Callable[[Path], list[str]]:
    return model(lambda folder: (folder / "model.safetensors").write_bytes(data))


HUGE = struct.pack("<Q", 1 << 60) + b"{}"


MESSAGE = {"__metadata__": {"flt": '{"t": "x"}'}}
"""What makes a header that of a message, which is the tensor x."""


VAST = rewritten({**MESSAGE, "x": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 8]}}, b"\0" * 8)


OVERLAP = rewritten(
    {
        **MESSAGE,
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "y": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
    },
    b"\0" * 12,
)


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def weights_of_nan(folder: Path) -> None:
    held = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in held.items()}
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(broken, {"format": "pt"}))


def adapter_alone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    card = {"peft_type": "LORA", "base_model_name_or_path": "./nowhere", "r": 2, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(card))


def pickled_adapter(folder: Path) -> None:
    card = {"peft_type": "LORA", "base_model_name_or_path": str(folder), "r": 2, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(card))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Evil()))


def own_code(folder: Path) -> None:
    card = json.loads((folder / "config.json").read_text())
    card |= {"model_type": "evil", "architectures": ["Evil"], "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(card))
    (folder / "evil.py").write_text(f"import os\nos.system('touch {MARK}')\nclass Evil: pass\n")


def run_folder(change: Callable[[Path], Any]) -> Callable[[Path], list[str]]:
    """Returns what prepares a finished run that something has happened to, and the arguments to continue it."""

    def prepare(folder: Path) -> list[str]:
        change(finished_run(folder, "before"))
        return ["algo=fedit", "name=before", "rounds=2", "resume=last"]

    return prepare


def manifest(**changes: Any) -> Callable[[Path], list[str]]:
    def change(run: Path) -> None:
        (path,) = (run / "checkpoints").glob("*.json")
        path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **changes})))

    return run_folder(change)


def of_another_model(folder: Path) -> list[str]:
    """The checkpoint of a run with another rank, under a configuration that says otherwise."""
    arguments = manifest()(folder)
    assert train("algo=fedit", "name=other", "adapter.rank=2") == 0
    logs = folder / "lightning_logs"
    for path in (logs / "before" / "version_0" / "checkpoints").iterdir():
        path.unlink()
    for path in (logs / "other" / "version_0" / "checkpoints").iterdir():
        path.rename(logs / "before" / "version_0" / "checkpoints" / path.name)
    return arguments


def given(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


LONG = "x" * 300
"""Longer than a system lets a file's name be."""


ROWS = "".join(f"{i},{i % 2}\n" for i in range(60))


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    # ------------------------------------------------------------------------------------------------- configuration
    "a key that isn't there": (given("local.learning_rate=1"), "local.learning_rate=1: there is no such key"),
    "a word for a number": (given("rounds=ten"), "rounds=ten"),
    "a fraction for an integer": (given("batch_size=1.5"), "batch_size=1.5"),
    "nothing for a number": (given("rounds="), "rounds="),
    "no round": (given("rounds=0"), "rounds=0"),
    "a negative seed": (given("seed=-1"), "seed=-1"),
    "no client": (given("clients=0"), "clients=0"),
    "more clients than examples": (given("clients=100000"), "clients=100000"),
    "a rank of zero": (given("adapter.rank=0"), "adapter.rank=0"),
    "a rank in words": (given("adapter.rank=eight"), "adapter.rank=eight"),
    "ranks that are none": (given("ranks=[4,0]"), "ranks=[4, 0]"),
    "a recipe that isn't there": (given("algo=fedsomething"), "algo=fedsomething"),
    "an engine that isn't there": (given("engine=parallel"), "engine=parallel"),
    "a part's name past its group": (given("rule.name=os.system"), "rule=os.system"),
    "a target to call": (given("rule._target_=os.system", f"rule.arg=touch {MARK}"), "rule._target_=os.system"),
    "a target in a whole part": (given("rule={_target_: os.system, name: mean}"), "rule"),
    "a key that is added": (given("+rule._target_=os.system"), "override=+rule._target_=os.system"),
    "a key without a name that is added": (given("+=1"), "override=+=1: allowed is key=value"),
    "a key at another place": (given("@grouping.eps=true"), "override=@grouping.eps=true: allowed is key=value"),
    "an integer of 64 bits": (given("batch_size=9223372036854775808"), "batch_size=9223372036854775808: allowed is an"),
    "more threads than torch takes": (given("threads=1000000"), "threads=1000000: allowed is an integer from 1 to"),
    "a rank beyond the memory": (given("adapter.rank=2147483648"), "adapter.rank=2147483648: allowed is an integer up"),
    "no equals sign": (given("rounds"), "override=rounds"),
    "an open bracket": (given("ranks=[1,2"), "override=ranks=[1,2"),
    "a sweep in a run": (given("seed=0,1"), "seed=0,1"),
    "an interpolation that leads nowhere": (given("seed=${nowhere}"), "override="),
    "a name that is a path": (given("name=../../up"), "name=../../up"),
    "a name that is none": (given("name=''"), "name="),
    "an infinite learning rate": (given("local.lr=inf"), "local.lr=inf"),
    "a learning rate that isn't a number": (given("local.lr=nan"), "local.lr=nan"),
    "a negative learning rate": (given("local.lr=-1"), "local.lr=-1"),
    "unicode for a choice": (given("rule.pad=☃"), "override=rule.pad=☃"),
    "a share above one": (given("faults.drop=2"), "faults.drop=2.0"),
    "an attack that isn't there": (given("faults.attack=bribery"), "faults.attack=bribery"),
    "more updates than jobs": (given("min_updates=4"), "min_updates=4"),
    "too few updates for Krum": (given("algo=fedit", "rule=krum", "cohort.size=2"), "rule.hostile=0.2: a round may"),
    "too many hostile for Krum once some fail": (
        given("algo=fedit", "rule=krum", "clients=10", "rule.hostile=0.3", "min_updates=3"), "rule.hostile=0.3: a",
    ),
    "a cohort of which Krum may get nobody": (
        given("algo=fedit", "rule=krum", "cohort.sampling=poisson"), "rule.hostile=0.2: a round may have 1 updates",
    ),
    "a group in which Krum has nobody to compare": (given("algo=fl_tac", "rule=krum"), "rule Krum with grouping"),
    "no time": (given("client_timeout=0"), "client_timeout=0.0"),
    "a cohort of nobody": (given("cohort.size=0"), "cohort.size=0"),
    "no checkpoint": (given("checkpoint.keep=0"), "checkpoint.keep=0"),
    # ----------------------------------------------------------------------------------------------------------- data
    "a file that isn't there": (given("data=nowhere.csv"), "data"),
    "a file of a user who isn't there": (given("data=~nosuchuser/x.csv"), "data.path=~nosuchuser/x.csv: allowed is an"),
    "a file with a name that is too long": (given(f"data=folder/{LONG}.csv"), f"data.path=folder/{LONG}.csv: allowed"),
    "an empty file": (csv(""), "data"),
    "a file without rows": (csv("text,label\n"), "data"),
    "a file without labels": (csv("text,other\nword,1\n"), "data"),
    "rows of different lengths": (
        csv("text,label\nword,1,2,3\nword\n" + ROWS),
        "data.path=data.csv: ArrowInvalid: CSV parse error: Row #2: Expected 2 columns, got 4; allowed is a readable",
    ),
    "bytes that are no text": (csv(b"text,label\n\xff\xfe\xfa,1\n" + ROWS.encode()), "data"),
    "a label that is missing": (csv("text,label\nword,\n" + ROWS), "data"),
    "a column twice": (csv("text,text,label\n" + ROWS.replace(",", ",b,")), "data.path=data.csv: column 2"),
    "a column of binary zeros": (csv(b"\0" * 100), "data"),
    "a broken line of json": (file("data.jsonl", b'{"text": "a", "label": 1}\n{"text": \n'), "data"),
    "a number and then a word in json": (
        file("data.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n'),
        "data.path=data.jsonl: ArrowInvalid: JSON parse error, changed from number to string in row 1; allowed is a",
    ),
    "a parquet that was cut off": (file("data.parquet", b"PAR1\x15\x04"), "data"),
    "a pickle called parquet": (file("data.parquet", pickle.dumps(Evil())), "data"),
    "a pickle called npz": (file("data.npz", pickle.dumps(Evil())), "data"),
    "pickled objects in an npz": (
        file("data.npz", lambda path: np.savez(path, x_train=np.array([Evil()] * 9, dtype=object), y_train=np.ones(9))),
        "data.path=data.npz: ValueError: Object arrays cannot be loaded",
    ),
    "an npz with arrays of other names": (
        file("data.npz", lambda path: np.savez(path, image=np.zeros((30, 8, 8)))), "data.path=data.npz: it holds image",
    ),
    "numbers that aren't in an npz": (
        file("data.npz", lambda path: np.savez(path, x_train=np.full((30, 8, 8), np.nan), y_train=np.arange(30) % 2)),
        "data",
    ),
    "images without pixels": (
        file("data.npz", lambda path: np.savez(path, x_train=np.zeros((30, 0, 8)), y_train=np.arange(30) % 2)),
        "data.path=data.npz: x_train has shape (30, 0, 8)",
    ),
    "a number of 400 digits in json": (
        file("data.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": ' + b"9" * 400 + b"}\n"),
        "data.label=label: it holds double",
    ),
    "json nested a hundred thousand times": (
        file("data.jsonl", bombs.JSON["nested objects"]().encode()), "data.path=data.jsonl: allowed is at most 64",
    ),
    "names of other files for images": (
        file("data.parquet", lambda path: bombs.image_table(path, {"bytes": None, "path": "/etc/hostname"})),
        "data.path=data.parquet: image holds names of other files",
    ),
    "an image of too many pixels": (
        file("data.parquet", lambda path: bombs.image_table(path, {"bytes": bombs.png(20_000, 20_000), "path": None})),
        "data.image=<",
    ),
    "a picture as EPS": (
        file("data.parquet", lambda path: bombs.image_table(path, {"bytes": bombs.picture("EPS"), "path": None})),
        "data.image=<",
    ),
    # --------------------------------------------------------------------------------------------------------- models
    "a folder that isn't there": (given("model=./nowhere"), "model=./nowhere"),
    "a folder of a user who isn't there": (given("model=~nosuchuser/model"), "model=~nosuchuser/model: there is no"),
    "a folder with a name that is too long": (given(f"model=./{LONG}"), f"model=./{LONG}: there is no such folder"),
    "a hub id that is too long": (given(f"model=org/{LONG}"), f"model.path=org/{LONG}: no such folder, and no hub id"),
    "a folder without a model": (model(lambda folder: [path.unlink() for path in folder.iterdir()]), "model"),
    "a model's card that is no json": (model(lambda folder: (folder / "config.json").write_text("{")), "model"),
    "weights that are a pickle": (model(pickled_weights), "model"),
    "a pickle called safetensors": (weights(pickle.dumps(Evil())), "model"),
    "weights that were cut off": (weights(b"\0" * 7), "model"),
    "a header that declares a huge size": (weights(HUGE), "model"),
    "a tensor that declares a huge size": (weights(VAST), "model"),
    "tensors that overlap": (weights(OVERLAP), "model"),
    "a model with code of its own": (model(own_code), "model"),
    "weights that aren't numbers": (model(weights_of_nan), "update of client 0, job 0: scores"),
    "an adapter without its base": (model(adapter_alone), "model"),
    "a pickled adapter in a model's folder": (model(pickled_adapter), "model"),
    # ---------------------------------------------------------------------------------------------------- checkpoints
    "a run that isn't there": (given("resume=nowhere"), "resume=nowhere"),
    "a run with a name that is too long": (given(f"resume={LONG}"), f"resume={LONG}: there is no config.yaml in it"),
    "a root with a name that is too long": (given(f"root={LONG}"), f"root={LONG}: File name too long; allowed is a"),
    "a run of which no checkpoint is whole": (
        run_folder(lambda run: [path.write_text("{") for path in (run / "checkpoints").glob("*.json")]),
        "resume=version_0: none of its 1 checkpoints can be used, and nothing was changed; allowed is a new run",
    ),
    "a run's configuration that is no yaml": (
        run_folder(lambda run: (run / "config.yaml").write_text("a: [")), "resume",
    ),
    "a run's configuration that calls something": (
        run_folder(lambda run: (run / "config.yaml").write_text(f"!!python/object/apply:os.system ['touch {MARK}']")),
        "resume",
    ),
    "a run's configuration of nested aliases": (
        run_folder(lambda run: (run / "config.yaml").write_text(bombs.ALIASES)), "resume=",
    ),
    "a run's configuration that is a list": (
        run_folder(lambda run: (run / "config.yaml").write_text("- 1\n")), "resume",
    ),
    "a run's configuration with a value for a section": (
        run_folder(lambda run: (run / "config.yaml").write_text("local: 3\n")), "resume",
    ),
    "a run's configuration that is no text": (
        run_folder(lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00")), "resume",
    ),
    "another recipe than the run's": (
        lambda folder: ["algo=hafl", *run_folder(lambda run: None)(folder)[1:]],
        "algo=hafl: the run to go on with was started otherwise; allowed is fedit",
    ),
    "a checkpoint of another version": (manifest(format=0), "checkpoint format=0"),
    "a checkpoint of another model": (of_another_model, "resume="),
    "keys that differ from the run's": (
        lambda folder: [*run_folder(lambda run: None)(folder), "local.lr=0.5", "batch_size=3"],
        "batch_size=3: the run to go on with was started otherwise; allowed is 16, and local.lr=0.5, allowed is 0.005",
    ),
}  # fmt: skip
