"""The lines of Python in a model card, which load the model without flt where that is possible."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from flt.export.model_card import ModelFacts, RunFacts

Form = Literal["lora", "own", "merged"]
"""Format of an export: LoRA in peft's format, an adapter in flt's format, or a whole model."""
AUTO = {
    "text": "AutoModelForSequenceClassification",
    "pair": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "causal": "AutoModelForCausalLM",
}
"""Kind of the inputs -> class of transformers that loads a model."""
PIPELINES = {
    "text": "text-classification",
    "pair": "text-classification",
    "image": "image-classification",
    "causal": "text-generation",
}
"""Kind of the inputs -> task of the hub and of transformers' pipelines."""
CALLS = {
    "text": 'print(model("the text to classify"))',
    "pair": 'print(model({"text": "the first text", "text_pair": "the second text"}))',
    "image": 'print(model("picture.png"))',
    "causal": 'print(model([{"role": "user", "content": "Name three colours."}], max_new_tokens=50))',
}
"""Kind of the inputs -> line that uses a pipeline."""
WITHOUT_CHAT = 'print(model("a prompt, see below", max_new_tokens=50))'
"""Line that uses a causal model without a chat template."""
PIXELS = [
    "size = model.config.image_size",
    "images = torch.rand(1, model.config.num_channels, size, size)  # one image, with numbers in [0, 1]",
    "print(model.config.id2label[int(model(pixel_values=images).logits.argmax())])",
]
"""Lines that use a model of images without an image processor."""
COPY = "  # a copy of the base"
"""Comment behind the folder of a base that isn't on the hub."""
MOST_NAMES = 100
"""Largest number of classes whose names are in the lines. More are read from the file with the names."""
WIDEST = 100
"""Number of characters of the names of the classes from which on each has a line of its own."""
_HERE = re.compile(r'^(?P<before>folder = |model = flt\.load\()"\."(  # this folder.*)?', re.MULTILINE)
"""Pattern of the card's own folder in the lines."""


def loading_lines(run: RunFacts, model: ModelFacts) -> str:
    """Returns the lines that load a model and use it.

    Args:
        run: What the card says about the run.
        model: What the card says about the model.
    """
    if not run.kind:
        shell = f"{run.module if run.module.isidentifier() else 'YourModule'}()"
        return f'import flt\n\nmodel = flt.load(".", model={shell})  # your module, as it was before the training'
    literals, load = _load(run, model)
    use = _use(run, model)
    if model.form == "merged" and use[-1] in (CALLS[run.kind], WITHOUT_CHAT):
        load, use = [], [f'model = transformers.pipeline("{PIPELINES[run.kind]}", model=folder)', use[-1]]
    code = "\n".join([*load, *use, *(line for line in literals if "json.load(" in line)])
    imports = [f"import {name}" for name in ("flt", "json", "peft", "torch", "transformers") if f"{name}." in code]
    return "\n".join([*imports, "", *literals, *load, *use])


def lines_in(card: str, folder: str) -> str | None:
    """Returns the lines of Python in a model card, with the path of the model's folder. None if the card has none.

    Args:
        card: Text of the card.
        folder: Path of the folder.
    """
    block = re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.DOTALL | re.MULTILINE)
    if block is None:
        return None
    path = json.dumps(folder, ensure_ascii=False)
    return _HERE.sub(lambda found: f"{found['before']}{path}", block[2], count=1)


def loads_plainly(run: RunFacts, model: ModelFacts) -> bool:
    """Returns whether a model can be loaded without flt."""
    if model.label_names or not run.kind:
        return False
    return model.form == "merged" or (
        model.form == "lora" and bool(run.base) and not run.random and not run.is_embedded
    )


def _load(run: RunFacts, model: ModelFacts) -> tuple[list[str], list[str]]:
    """Returns the lines with names of the user's, and those that load the model."""
    auto = f"transformers.{AUTO[run.kind]}.from_pretrained"
    here = 'folder = "."  # this folder, or its name on the hub'
    if not loads_plainly(run, model):
        merged = ".merge_and_unload()" if model.form == "lora" and not model.label_names else ""
        names = [_literal("names", list(model.names))] if model.label_names else []
        return ['folder = "."  # this folder', *names], [f"model = flt.load(folder){merged}"]
    if model.form == "merged":
        return [here], [f"model = {auto}(folder)"]
    base = f"base = {f'./{run.base}'!r}{COPY}" if run.base_is_folder else f"base = {run.base!r}"
    named = [_literal("id2label", dict(enumerate(model.names)))] if model.names else []
    if len(model.names) > MOST_NAMES:
        named = ['id2label = dict(enumerate(max(json.load(open(f"{folder}/classes.json")).values(), key=len)))']
    classes = ", id2label=id2label, ignore_mismatched_sizes=True" if named else ""
    adapted = "model = peft.PeftModel.from_pretrained(model, folder).merge_and_unload()"
    return [here, base, *named], [f"model = {auto}(base{classes})", adapted]


def _use(run: RunFacts, model: ModelFacts) -> list[str]:
    """Returns the lines that use the loaded model."""
    if run.kind == "image" and not model.preprocessor:
        return PIXELS
    tokenizer = "tokenizer = transformers.AutoTokenizer.from_pretrained(folder)"
    if model.label_names:
        inputs = 'inputs = tokenizer("the text to classify", return_tensors="pt")'
        return [tokenizer, inputs, "print(names[int(model(**inputs).logits.argmax())])"]
    name, line = "tokenizer", tokenizer
    if run.kind == "image":
        name = "image_processor"
        line = "image_processor = transformers.AutoImageProcessor.from_pretrained(folder)"
    pipe = f'model = transformers.pipeline("{PIPELINES[run.kind]}", model=model, {name}={name})'
    return [line, pipe, WITHOUT_CHAT if run.kind == "causal" and not model.chats else CALLS[run.kind]]


def _literal(name: str, value: dict[int, str] | Sequence[str]) -> str:
    """Returns a line that assigns a dictionary or a list. Its texts are written as Python writes them."""
    line = f"{name} = {value!r}"
    if len(line) <= WIDEST:
        return line
    pairs = [f"{key}: {text!r}" for key, text in value.items()] if isinstance(value, dict) else map(repr, value)
    first, last = line[len(name) + 3], line[-1]
    return "\n".join([f"{name} = {first}", *(f"    {pair}," for pair in pairs), last])
