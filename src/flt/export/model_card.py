"""Model cards: the ``README.md`` beside each exported model, in the format of the Hugging Face hub.

What a card says about the run is also in its YAML, under the key ``flt``. A card of the merged model is made of that.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCardData

from flt.core import formatting, plain_yaml
from flt.core.errors import InputError
from flt.core.typed import typed
from flt.export.card_code import COPY, PIPELINES, Form, loading_lines, loads_plainly
from flt.export.card_prompts import prompt_section
from flt.export.card_seal import CARD_FILE, LARGEST, sealed
from flt.export.markdown import escaped, fenced, table
from flt.export.places import CLASSES, label_names_folder
from flt.models.backbones import EMBEDDED
from flt.models.class_names import output_names

PREPROCESSORS = ("tokenizer_config.json", "preprocessor_config.json")
"""Files of which one lies beside a model that has a tokenizer or an image processor."""
CHAT_TEMPLATE = "chat_template.jinja"
METRICS = {"acc": "accuracy", "loss": "loss", "perplexity": "perplexity"}
"""Metric of the global model -> its name on the hub."""
SHOWN = ("test/", "round/", "task/", "clients/val_")
"""Beginnings of the keys of the metrics that a card shows."""
MOST_CLASSES = 100
"""Largest number of classes that a card lists."""


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """Facts about the run for a model card. Paths are left out, and so are examples of the data.

    Attributes:
        versions: Name of a package -> its version.
        algo: Name of the recipe.
        method: Sentence that names the method and its paper.
        command: Command or line of Python that makes such a run. Empty if it isn't known.
        kind: Kind of the inputs: text, pair, image or causal. Empty for a user's own module.
        module: Class of a user's own module, else empty.
        base: Hub id of the base, name of its folder, or ``embedded``. Empty if it isn't known.
        base_is_folder: Whether the base is a folder that isn't on the hub.
        random: Whether the base's weights were drawn at random.
        license: Licence of the base. Empty if its files don't name it.
        data: Name of the data.
        dataset: Hub id of the data. Empty if they aren't on the hub.
        adapter: Description of the adapter.
        clients: Number of clients.
        partition: Description of the division of the examples among the clients.
        rounds: Number of rounds that were trained.
        seed: Seed of the run.
        prompts: Templates of the prompts, if the model is causal.
        message_keys: Column of the prompts -> its key in a message of the chat template. Empty if there is no template.
        metrics: Last value of each metric of the run that isn't infinite or NaN.
    """

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    algo: str = ""
    method: str = ""
    command: str = ""
    kind: str = ""
    module: str = ""
    base: str = ""
    base_is_folder: bool = False
    random: bool = False
    license: str = ""
    data: str = ""
    dataset: str = ""
    adapter: str = ""
    clients: int = 0
    partition: str = ""
    rounds: int = 0
    seed: int = 0
    prompts: list[str] = dataclasses.field(default_factory=list)
    message_keys: dict[str, str] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def is_embedded(self) -> bool:
        """True if the base is a model that flt pre-trains itself."""
        return self.base in EMBEDDED and not self.base_is_folder

    @property
    def title(self) -> str:
        """Name of the run, such as ``hafl on digits``."""
        return f"{self.algo or 'flt'} on {self.data}" if self.data else self.algo or "flt"


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Facts for the card of one of the models that a run has exported.

    Attributes:
        form: Format of the files.
        which: Which of the run's models this is, such as ``group 1``. Empty if there is only one.
        names: Names of the classes. Empty if they have no names, or the model is causal.
        preprocessor: Whether a tokenizer or image processor lies beside the model.
        label_names: Whether the run used the label-name head.
        chats: Whether a chat template lies beside the model.
    """

    form: Form
    which: str = ""
    names: Sequence[str] = ()
    preprocessor: bool = False
    label_names: bool = False
    chats: bool = False


def write_cards(folder: Path, run: RunFacts, form: Form, models: Mapping[str, str]) -> None:
    """Writes a card beside each model of an export and, if the models are in subfolders, one that lists them.

    Args:
        folder: Top folder of the export.
        run: What the cards say about the run.
        form: Format of the models. A user's own module has none of its own.
        models: Subfolder of each model -> which of the run's models it is.
    """
    for name, which in models.items():
        place = folder / name
        names = output_names(json.loads((place / CLASSES).read_bytes()).values()) if (place / CLASSES).exists() else []
        has = any((place / file).is_file() for file in PREPROCESSORS)
        chats = (place / CHAT_TEMPLATE).is_file()
        facts = ModelFacts(form, which, names, has, label_names_folder(place) is not None, chats)
        (place / CARD_FILE).write_bytes(card(run, facts))
    if set(models) != {""}:
        (folder / CARD_FILE).write_bytes(overview(run, models))


def card(run: RunFacts, model: ModelFacts) -> bytes:
    """Returns the model card of one exported model."""
    code = loading_lines(run, model)
    body = [f"# {_title(run, model)}", _introduction(run, model), "## Use", *_before_code(run, code)]
    body += [fenced(code, "python"), *_outputs(run, model), *_training(run), *_results(run), *_versions(run)]
    return _written(_metadata(run, model), body)


def overview(run: RunFacts, models: Mapping[str, str]) -> bytes:
    """Returns the card of an export's top folder that has several models.

    Args:
        run: What the card says about the run.
        models: Subfolder -> which model it holds.
    """
    rows = [(f"[{escaped(name)}]({name}/{CARD_FILE})", escaped(which)) for name, which in models.items()]
    body = [f"# {_title(run, None)}", f"{_sentence(run)} The run has {len(models)} models; each has a card of its own."]
    body += [table(("folder", "model"), rows), *_training(run), *_results(run), *_versions(run)]
    return _written(_metadata(run, None), body)


def facts_in(folder: Path) -> RunFacts:
    """Returns what the card in a folder says about its run. All fields have their defaults if flt wrote no card."""
    try:
        with (folder / CARD_FILE).open("rb") as file:
            found = plain_yaml.front_matter(file.read(LARGEST).decode()).get("flt")
    except (OSError, ValueError, yaml.YAMLError):
        return RunFacts()
    names = {field.name for field in dataclasses.fields(RunFacts)}
    known = {key: value for key, value in found.items() if key in names} if isinstance(found, dict) else {}
    try:
        facts: RunFacts = typed(RunFacts, known, CARD_FILE)
    except InputError:
        return RunFacts()
    numbers = all(isinstance(value, float) and math.isfinite(value) for value in facts.metrics.values())
    return facts if numbers and facts.kind in ("", *PIPELINES) else RunFacts()


def _written(metadata: ModelCardData, body: Sequence[str]) -> bytes:
    return sealed(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")


def _metadata(run: RunFacts, model: ModelFacts | None) -> ModelCardData:
    library = "flt" if model is not None else None
    if model is not None and loads_plainly(run, model):
        library = "peft" if model.form == "lora" else "transformers"
    adapter = ["lora"] if model is not None and model.form == "lora" else []
    tags = ["flt", "federated-learning", *([run.algo] if run.algo else []), *adapter]
    saved = {key: value for key, value in dataclasses.asdict(run).items() if value not in ("", [], {})}
    return ModelCardData(
        base_model=run.base if not (run.base_is_folder or run.is_embedded) else None,
        library_name=library,
        pipeline_tag=PIPELINES.get(run.kind),
        license=run.license or None,
        datasets=[run.dataset] if run.dataset else None,
        tags=tags,
        model_name=run.title,
        eval_results=list(_eval_results(run)) or None,
        flt=saved,
    )


def _eval_results(run: RunFacts) -> Iterator[EvalResult]:
    """Yields the metrics of the global model on the test split or, if there is none, on the validation split."""
    split, metrics = "test", formatting.between(run.metrics, "test/")
    if not metrics:
        split, metrics = "validation", formatting.between(run.metrics, "round/val_")
    for key, value in metrics.items():
        if key in METRICS:
            yield EvalResult(
                task_type=PIPELINES.get(run.kind, "other"),
                dataset_type=run.dataset or run.data or "own",
                dataset_name=run.data or "own data",
                dataset_split=split,
                metric_type=METRICS[key],
                metric_value=value,
            )


def _title(run: RunFacts, model: ModelFacts | None) -> str:
    return escaped(f"{run.title}: {model.which}" if model is not None and model.which else run.title)


def _sentence(run: RunFacts) -> str:
    """Returns a sentence about the method, with a link to its paper."""
    text = escaped(run.method) or "This run was made by flt."
    return re.sub(r"arXiv (\d{4}\.\d{4,5}(?:v\d+)?)", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _introduction(run: RunFacts, model: ModelFacts) -> str:
    what = {"lora": "the LoRA adapter (in peft's format)", "own": "the adapter (in flt's own format)"}.get(model.form)
    which = f" of {escaped(model.which)}" if model.which else ""
    what = f"This is {what or 'the whole model'}{which}."
    origin = "It comes from a federated fine-tuning by flt: the data stayed with the clients."
    return f"{what} {origin} {_sentence(run)}"


def _before_code(run: RunFacts, code: str) -> list[str]:
    """Returns what a reader must know to run the code."""
    lines = []
    if run.base_is_folder and COPY in code:
        lines.append(f"The base is a copy of the folder {escaped(run.base)}, which isn't part of this export.")
    if run.module and f"{run.module}()" in code:
        lines.append(f"{escaped(run.module)} is the module that was trained; its code isn't part of this export.")
    return lines


def _outputs(run: RunFacts, model: ModelFacts) -> list[str]:
    """Returns the section about the classes, or about the prompts of a causal model."""
    if run.prompts:
        return prompt_section(run, model.chats)
    if not model.names:
        return []
    shown = [f"{number}. {escaped(name)}" for number, name in enumerate(model.names[:MOST_CLASSES])]
    more = len(model.names) - len(shown)
    return ["## Classes", "\n".join(shown), *([f"and {more} more"] if more else [])]


def _training(run: RunFacts) -> list[str]:
    sizes = {way: run.metrics.get(f"comm/total_{way}") for way in ("up", "down")}
    facts = {
        "base": run.base or run.module,
        "licence of the base": run.license,
        "data": run.dataset or run.data,
        "adapter": run.adapter,
        "clients": str(run.clients or ""),
        "partition": run.partition,
        "rounds": str(run.rounds or ""),
        "seed": str(run.seed),
        "bytes up (clients to server)": "" if sizes["up"] is None else formatting.size(sizes["up"]),
        "bytes down (server to clients)": "" if sizes["down"] is None else formatting.size(sizes["down"]),
    }
    if run.random or run.is_embedded:
        facts["base"] += " (weights drawn at random)" if run.random else " (a small model that flt pre-trains itself)"
    rows = [(name, escaped(value)) for name, value in facts.items() if value]
    language = "python" if run.command.startswith("flt.fit(") else "bash"
    made = ["It was made by:", fenced(run.command, language)] if run.command else []
    return ["## Training", table(("setting", "value"), rows), *made] if run.algo else []


def _results(run: RunFacts) -> list[str]:
    rows = [
        (f"`{escaped(key, code=True)}`", f"{value:.4f}") for key, value in run.metrics.items() if key.startswith(SHOWN)
    ]
    about = (
        "The last figures of the run, by their names in its metrics.csv. `test` and `round`: the global model on the "
        "test and on the validation examples. `clients`: means over clients, each on the examples that it holds out."
    )
    return ["## Results", about, table(("metric", "value"), rows)] if rows else []


def _versions(run: RunFacts) -> list[str]:
    named = ", ".join(escaped(f"{package} {version}") for package, version in run.versions.items())
    return [f"Versions: {named}."] if named else []


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that are finite numbers, sorted by name."""
    return {key: value for key, value in sorted(metrics.items()) if math.isfinite(value)}
