"""Exports that somebody has forged: in the cards, in the weights, and in the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bad_inputs import HUGE, OVERLAP, VAST
from safetensors.torch import load_file, save_file

Forge = Callable[[Path], Any]
"""Changes an export in a run's folder; the folder ``bert`` beside the run is its base, where it isn't embedded."""
SLOW_PATTERN = "([a-z0-9_.]+)+!"
"""As a regular expression, it takes for ever on a module's name."""
EVIL = "evilpkg"
"""A package that leaves a mark when it is imported."""
LORA, OWN, BASE, LABELS = "adapter_config.json", "flt_adapter.json", "flt_base.json", "label_names.json"
TENSORS = {
    "lora": "adapter_model.safetensors", "delta": "adapter_model.safetensors", "random": "adapter_model.safetensors",
    "names": "adapter_model.safetensors", "c2a": "flt_adapter.safetensors", "houlsby": "flt_adapter.safetensors",
    "merged": "model.safetensors",
}  # fmt: skip


def card(name: str, /, **changes: Any) -> Forge:
    """Replaces keys of a card."""

    def forge(export: Path) -> None:
        path = export / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return forge


def inner(name: str, key: str, /, **changes: Any) -> Forge:
    """Replaces keys of a dictionary in a card."""
    return lambda export: card(name, **{key: json.loads((export / name).read_text())[key] | changes})(export)


def every(key: str, value: Any) -> Forge:
    """Replaces all values of a pattern of peft's card."""
    return lambda export: card(LORA, **{key: dict.fromkeys(json.loads((export / LORA).read_text())[key], value)})(
        export
    )


def written(name: str, data: str | bytes) -> Forge:
    """Replaces a file."""
    return lambda export: (export / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def weights(name: str, change: Callable[[torch.Tensor], torch.Tensor | None], of: str = "") -> Forge:
    """Changes the first tensor with a certain part in its name; None takes the tensor out."""

    def forge(export: Path) -> None:
        held = load_file(export / name)
        chosen = next(key for key in sorted(held) if of in key)
        if (made := change(held.pop(chosen))) is not None:
            held[chosen] = made.contiguous()
        (export / name).unlink()  # the tensors are views of the file
        save_file(held, export / name, {"format": "pt"})

    return forge


def base(name: str, /, **changes: Any) -> Forge:
    """Replaces keys of a file of the base."""
    return lambda export: card(name, **changes)(export.parent / "bert")


def of_base(change: Forge) -> Forge:
    return lambda export: change(export.parent / "bert")


def with_adapter(folder: Path) -> None:
    """A base that is also peft's adapter of another base, which transformers would load in its place."""
    save_file({"x": torch.ones(1)}, folder / "adapter_model.safetensors")
    evil = {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": f"{EVIL}.payload", "r": 2}
    (folder / LORA).write_text(
        json.dumps({**evil, "base_model_name_or_path": str(folder), "target_modules": ["query"]})
    )


def index_of(*names: str) -> Forge:
    def forge(export: Path) -> None:
        (export / "model.safetensors").rename(export.parent / "outside.safetensors")
        shutil.copy(export.parent / "outside.safetensors", export / "evil.bin")
        (export / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": dict(zip("abc", names, strict=False))})
        )

    return forge


def bomb(export: Path) -> None:
    """A configuration of the run whose few lines merge billions of entries."""
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12)]
    (export.parent / "config.yaml").write_text("\n".join(lines))


FEATURES: dict[str, Any] = {  # settings of peft that name code, files or other tensors, and none of which flt exports
    "megatron_config": {"tensor_model_parallel_size": 1}, "megatron_core": f"{EVIL}.payload",
    "auto_mapping": {"base_model_class": ["Payload"], "parent_library": EVIL}, "runtime_config": {"a": True},
    "loftq_config": {"loftq_bits": 4}, "eva_config": {"rho": 2.0}, "corda_config": {"cache_file": "/etc/passwd"},
    "lora_ga_config": {"scale": "stable"}, "arrow_config": {"top_k": 1}, "layer_replication": [[0, 4], [0, 10**9]],
    "trainable_token_indices": [0, 1], "target_parameters": [SLOW_PATTERN], "exclude_modules": SLOW_PATTERN,
    "layers_pattern": SLOW_PATTERN, "layers_to_transform": [0], "use_dora": True, "use_rslora": "yes",
    "lora_bias": True,
    "init_lora_weights": "pissa", "bias": "all", "peft_type": "XLORA", "task_type": "EVIL", "revision": ["evil"],
    "custom_class": f"{EVIL}.Payload", "inference_mode": "yes", "fan_in_fan_out": 1, "peft_version": [1],
}  # fmt: skip
"""Key -> value that is refused."""
NUMBERS: dict[str, Any] = {
    "r": 30_000_000, "lora_alpha": 10**400, "lora_dropout": 1.5, "rank_pattern": {"x": True},
    "alpha_pattern": {"x": "2"},
    "qalora_group_size": -1, "target_modules": None, "modules_to_save": "classifier",
}  # fmt: skip
PATTERNS: dict[str, Any] = {
    "target_modules": [SLOW_PATTERN], "rank_pattern": {SLOW_PATTERN: 2}, "alpha_pattern": {SLOW_PATTERN: 2.0},
    "modules_to_save": [SLOW_PATTERN],
}  # fmt: skip
CONFIGS: dict[str, tuple[Any, str]] = {
    "hidden_size": (60_000, "weights are smaller|size mismatch"), "num_hidden_layers": (10**9, "num_hidden_layers"),
    "intermediate_size": (10**8, "config.json"), "image_size": (10**6, "config.json"),
    "num_labels": (5 * 10**7, "num_labels"),
    "architectures": (["os.system"], "architecture=os.system"), "model_type": ("bert", "model_type=bert"),
    "quantization_config": ({"quant_method": "bitsandbytes"}, "quantization_config"),
    "num_attention_heads": (0, "ZeroDivisionError|attention"), "hidden_act": (f"{EVIL}.payload", "KeyError"),
}  # fmt: skip

FORGED: dict[str, tuple[str, Forge, str]] = {
    **{f"peft: {key}": ("lora", card(LORA, **{key: value}), f"{key}") for key, value in FEATURES.items()},
    **{f"number: {key}": ("lora", card(LORA, **{key: value}), f"{key}|JSON") for key, value in NUMBERS.items()},
    **{f"pattern: {key}": ("lora", card(LORA, **{key: value}), f"{key}=") for key, value in PATTERNS.items()},
    **{f"delta, pattern: {key}": ("delta", card(LORA, **{key: value}), f"{key}=") for key, value in PATTERNS.items()},
    **{f"merged: {key}": ("merged", card("config.json", **{key: value}), why) for key, (value, why) in CONFIGS.items()},
    "a package to import": (  # peft 0.18 imports it
        "lora",
        card(LORA, megatron_config=FEATURES["megatron_config"], megatron_core=FEATURES["megatron_core"]),
        "megatron_con|megatron_core",
    ),
    "a list of slow patterns": ("lora", card(LORA, target_modules=[SLOW_PATTERN] * 3), "target_modules="),
    "more patterns than modules": (
        "lora",
        card(LORA, rank_pattern=dict.fromkeys(map(str, range(99_999)), 1)),
        "rank_pa",
    ),
    "every rank is huge": ("lora", every("rank_pattern", 30_000_000), "size mismatch for "),
    "every alpha isn't a number": ("lora", every("alpha_pattern", float("nan")), "NaN"),
    "every alpha is infinite": ("lora", written(LORA, '{"lora_alpha": 1e999}'), "1e999 is no number"),
    "a rank that is below the weights'": ("lora", every("rank_pattern", 1), "size mismatch for "),
    "all modules are saved": ("lora", card(LORA, modules_to_save=[""]), "modules_to_save="),
    "a whole backbone is saved": ("lora", card(LORA, modules_to_save=["vit"]), "is missing"),
    "layers without weights": ("lora", card(LORA, target_modules=["fc1"]), "lora_A.weight is missing"),
    "a head as a layer": (
        "lora",
        card(LORA, target_modules="vit", modules_to_save=None),
        "linear and convolutional layers",
    ),
    "a card that is a list": ("lora", written(LORA, "[]"), "adapter_config.json=list"),
    "a card that nests": ("lora", written(LORA, "[" * 10**6), "RecursionError|JSON"),
    "a card of 17 MB": ("lora", written(LORA, " " * 17_000_000), "17000000 bytes"),
    "a card without keys": ("lora", written(LORA, "{}"), "peft_type is missing"),
    # ------------------------------------------------------------------------------------------------- flt's own cards
    "base: labels": ("lora", inner(BASE, "config", num_labels=5 * 10**7), "num_labels=50000000"),
    "base: labels for C2A": ("c2a", inner(BASE, "config", num_labels=5 * 10**7), "num_labels=50000000"),
    "base: another entry": ("lora", inner(BASE, "config", auto_map={"AutoConfig": f"{EVIL}.A"}), "auto_map"),
    "base: remote code": ("lora", card(BASE, trust_remote_code=True), "trust_remote_code"),
    "base: no model's class": ("lora", card(BASE, architecture="pipelines"), "architecture=pipelines"),
    "base: a module's class": ("lora", card(BASE, architecture=f"{EVIL}.Payload"), "architecture=evilpkg"),
    "base: another model's class": ("lora", card(BASE, architecture="BertModel"), "model_type=vit"),
    "base: a folder above": ("lora", card(BASE, package="torch/../../evil"), "package="),
    "base: an absolute folder": ("lora", card(BASE, package="torch//etc"), "package="),
    "base: drawn": ("lora", card(BASE, drawn=[1, 2]), "drawn="),
    "base: a folder's path": ("lora", card(BASE, folder="../bert"), "folder="),
    "random: a seed": ("random", inner(BASE, "random", seed=-1), "seed=-1"),
    "random: classes": ("random", inner(BASE, "random", classes=5 * 10**7), "classes=50000000"),
    "random: no seed": ("random", card(BASE, random={}), "seed is missing"),
    "random: hidden size": ("random", base("config.json", hidden_size=60_000), "weights are smaller"),
    "random: layers": ("random", base("config.json", num_hidden_layers=990), "weights are smaller"),
    "random: words": ("random", base("config.json", vocab_size=16_000_000), "weights are smaller"),
    "random: nothing to compare with": (
        "random",
        lambda e: [base("config.json", hidden_size=60_000)(e), (e.parent / "bert/model.safetensors").unlink()],
        "weights are smaller",
    ),
    "base's card: layers": ("names", base("config.json", num_hidden_layers=10**8), "num_hidden_layers="),
    "base's card: hidden size": ("names", base("config.json", hidden_size=60_000), "weights are smaller"),
    "base's card: positions": ("names", base("config.json", max_position_embeddings=16_000_000), "weights are smaller"),
    "base's weights: NaN": (
        "names",
        of_base(weights("model.safetensors", lambda t: t * torch.nan, "attention.self.query.weight")),
        "query.weight has numbers",
    ),
    "base's weights are cut": (
        "names",
        of_base(written("model.safetensors", b"\0" * 7)),
        "allowed is a folder with complete safetensors files",
    ),
    "base's configuration is a bomb": ("names", bomb, "a run with the config.yaml that flt wrote"),
    "own: another adapter": ("c2a", inner(OWN, "adapter", name="lora"), "adapter=lora"),
    "own: a setting to resolve": ("c2a", inner(OWN, "adapter", head="${oc.env:HOME}"), "adapter="),
    "own: a strange setting": ("c2a", inner(OWN, "adapter", _target_="os.system"), "_target_"),
    "own: rank": ("c2a", inner(OWN, "adapter", rank=30_000_000), "size mismatch for "),
    "own: factor": ("c2a", inner(OWN, "adapter", factor=2**31 - 1), "size mismatch for "),
    "own: embedding": ("c2a", inner(OWN, "adapter", embedding=10**8), "size mismatch for "),
    "own: classes": ("c2a", card(OWN, classes=2**31 - 1), "size mismatch for "),
    "own: blocks": ("c2a", card(OWN, adapt_layers="top" + "9" * 5000), "adapt_layers="),
    "own: label counts": ("c2a", card(OWN, label_counts=[1.5]), "label_counts="),
    "own: a class": ("c2a", card(OWN, module=f"{EVIL}.Payload"), "flt_adapter.json=module"),
    "Houlsby: rank": ("houlsby", inner(OWN, "adapter", rank=30_000_000), "size mismatch for "),
    "Houlsby: as C2A": ("houlsby", inner(OWN, "adapter", name="c2a"), "is missing"),
    "label names: scale isn't a number": ("names", card(LABELS, scale=float("nan")), "NaN"),
    "label names: scale is zero": ("names", card(LABELS, scale=0), "scale=0"),
    "label names: scale is a text": ("names", card(LABELS, scale="20"), "scale=20"),
    "label names: no texts": ("names", card(LABELS, texts=[]), "size mismatch for names"),
    "label names: another key": ("names", card(LABELS, encoder=f"{EVIL}.Payload"), "encoder"),
    **{
        f"label names: {case}": ("names", weights("label_names.safetensors", change), why)
        for case, change, why in (
            ("width", lambda t: t[:, :5], "size mismatch for names"),
            ("rows", lambda t: t[:1], "size mismatch for names"),
            ("NaN", lambda t: t * torch.nan, "names has numbers"),
            ("integers", lambda t: t.to(torch.int8), "names has the type I8"),
            ("missing", lambda t: None, "names is missing"),
        )
    },
    # -------------------------------------------------------------------------------------------------------- weights
    **{
        f"{export}: {case}": (export, weights(TENSORS[export], change, part), why)
        for export, part in (
            ("lora", "lora_A"),
            ("delta", "base_layer"),
            ("c2a", "c2a.f"),
            ("houlsby", "houlsby"),
            ("merged", "weight"),
            ("names", "lora_B"),
        )
        for case, change, why in (
            ("NaN", lambda t: t.index_fill(0, torch.tensor([0]), torch.nan), "weight has numbers|f has|b1 has"),
            ("infinite", lambda t: t.index_fill(0, torch.tensor([0]), torch.inf), "weight has numbers|f has|b1 has"),
            ("beyond float32", lambda t: t.double() + 1e300, "weight has numbers|f has|b1 has"),
            ("int8", lambda t: t.to(torch.int8), "type I8"),
            ("int64", lambda t: t.to(torch.int64), "type I64"),
            ("another shape", lambda t: t[:-1], "size mismatch for "),
            ("missing", lambda t: None, "is missing|no "),
        )
        if (export, case) != ("delta", "missing")  # the base's own weight takes its place
    },
    **{
        f"{export}: {case}": (export, written(TENSORS[export], data), "is cut off or damaged")
        for export in ("lora", "c2a", "merged")
        for case, data in (("a huge header", HUGE), ("a vast tensor", VAST), ("overlapping tensors", OVERLAP))
    },
    "merged: an index that leads outside": ("merged", index_of("../outside.safetensors"), "index.json=../outside"),
    "merged: an index of pickles": ("merged", index_of("evil.bin"), "index.json=evil.bin"),
    "merged: an index of nothing": ("merged", index_of(), "architectures|folder="),
    "merged: a user's module and more": (
        "merged",
        written("config.json", json.dumps({"module": "Toy", "auto_map": {}})),
        "there is no such key",
    ),
}
"""Case -> (kind of the export, what is forged, part of the line that refuses it)."""

HARMLESS: dict[str, tuple[str, Forge]] = {
    "a base that is also an adapter": ("names", of_base(with_adapter)),
    "a merged model with code": (
        "merged",
        card("config.json", auto_map={"AutoConfig": f"{EVIL}.A", "AutoModelForImageClassification": f"{EVIL}.B"}),
    ),
    "a merged model with kernels": (
        "merged",
        card("config.json", attn_implementation=f"{EVIL}/kernel", use_kernels=True),
    ),
    "a merged model with another's file": ("merged", card("config.json", transformers_weights=f"{EVIL}.bin")),
    "a merged model with a type": ("merged", card("config.json", dtype=EVIL, torch_dtype=EVIL)),
    "a merged model with a fusion": (
        "merged",
        card("config.json", fusion_config={EVIL: True}, kernel_config={"a": EVIL}),
    ),
    **{
        f"a LoRA adapter with {key}": ("lora", card(LORA, **{key: value}))
        for key, value in {
            "auto_mapping": {"base_model_class": "Payload", "parent_library": EVIL},
            "revision": "evil",
            "task_type": "SEQ_CLS",
            "init_lora_weights": "eva",
            "target_modules": SLOW_PATTERN,
        }.items()
    },
    "a delta with a pattern": ("delta", card(LORA, target_modules=SLOW_PATTERN)),
    "a module to save that the base lacks": (
        "lora",
        lambda e: card(LORA, modules_to_save=[*json.loads((e / LORA).read_text())["modules_to_save"], "score"])(e),
    ),
    "a pickle beside": ("lora", written("adapter_model.bin", b"\x80\x04.")),
}
"""Case -> (kind of the export, what is added). It loads, and nothing that was added is obeyed."""
