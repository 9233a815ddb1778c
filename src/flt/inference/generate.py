"""``flt.generate``: answers of a run's causal model to prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

from omegaconf import OmegaConf

from flt.core.errors import InputError
from flt.export.places import exported_models
from flt.inference.prompts import AS_IT_IS, PROMPT, PromptFormat, prompts_of_chat, prompts_of_data
from flt.inference.text_generator import Answer, Sampling, TextGenerator
from flt.run.stored import export_of, find_run, read_settings, run_around

ALL = "all"
"""Value of ``group`` that stands for all exported models."""
KINDS = ("group", "client")
Prompt = str | Mapping[str, str]
"""A prompt: the text of the column of the instruction, or column of the run's prompt template -> text."""


class _Settings(TypedDict, total=False):
    """The other arguments of :func:`generate`, for its overloads."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int | None
    seed: int
    raw: bool
    device: str
    batch_size: int
    set: str | None
    root: str | Path
    base: str | Path | None


@overload
def generate(run: str | Path, prompt: Prompt, *, group: None = None, **settings: Unpack[_Settings]) -> str: ...
@overload
def generate(
    run: str | Path, prompt: list[Prompt], *, group: None = None, **settings: Unpack[_Settings]
) -> list[str]: ...
@overload
def generate(
    run: str | Path, prompt: Prompt | list[Prompt], *, group: str | int, **settings: Unpack[_Settings]
) -> Any: ...
def generate(
    run: str | Path,
    prompt: Prompt | list[Prompt],
    *,
    group: str | int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    raw: bool = False,
    device: str = "auto",
    batch_size: int = 1,
    set: str | None = None,
    root: str | Path = "lightning_logs",
    base: str | Path | None = None,
) -> str | list[str] | dict[str, str] | dict[str, list[str]]:
    """Lets the causal model of a finished run answer prompts.

    A prompt is put into the template with which the run trained, and the answer ends at the token that ended responses
    in training.

    Args:
        run: Folder of a run or of an exported model, or ``last``.
        prompt: The instruction. Or column of the run's prompt template -> text, such as
            ``{"prompt": "Who was he?", "context": "Ada met Charles."}``. Or a list of such prompts.
        group: Model that answers if the run has several, such as ``1`` or ``group_1`` of FL-TAC, or ``client_3``.
            ``all``: each of them. None: the only one.
        temperature: Divisor of the logits. 0: the most probable token is taken each time.
        top_p: Share in (0, 1] of the probability within which tokens are drawn.
        top_k: Number of most probable tokens out of which is drawn. 0: all.
        max_new_tokens: Largest number of tokens of an answer. None: 256, or fewer if the model has no room for more.
        seed: Seed with which tokens are drawn.
        raw: Whether the text itself is the prompt, without the run's template.
        device: ``auto``, ``cpu``, or ``cuda``, also with a number.
        batch_size: Number of prompts that are answered at once. With more than one, a prompt's answer can depend on the
            others: by rounding, and if tokens are drawn.
        set: Data set whose prompt template is used, if the run trained on several.
        root: Folder of all runs, in which ``last`` is looked for.
        base: Folder or hub id of the base, for an export away from its run whose base was a folder. None: the one that
            the export names.

    Returns:
        The answer, or a list of answers to a list of prompts. With ``group="all"``, model -> its answer or answers.

    Raises:
        InputError: The run has no causal model or an incomplete export, a setting is out of range, or a prompt is too
            long for the model.

    Example:
        >>> generate("last", "Name a colour.", temperature=0.7)  # doctest: +SKIP
        'Blue'
    """
    sampling = Sampling(temperature, top_p, top_k, max_new_tokens, seed)
    given = prompt if isinstance(prompt, list) else [prompt]
    rows = [{PROMPT: one} if isinstance(one, str) else dict(one) for one in given]
    found = {}
    for name, folder in chosen_models(run, group, root).items():
        generator = TextGenerator(folder, device, base)
        form = prompt_format(run, generator.tokenizer, raw, set, root)
        texts = [form.fill(row) for row in rows]
        answers = [one.text for part in batches(generator, texts, sampling, batch_size) for one in part]
        found[name] = answers if isinstance(prompt, list) else answers[0]
        del generator  # before the next model is loaded, so that there is memory for it
    return found if group == ALL else next(iter(found.values()))  # type: ignore[return-value]  # all are of one kind


def batches(generator: TextGenerator, prompts: Sequence[str], sampling: Sampling, size: int) -> Iterator[list[Answer]]:
    """Yields the answers to the next prompts, ``size`` at a time."""
    if size < 1:
        raise InputError.of("batch_size", size, "an integer >= 1")
    for start in range(0, len(prompts), size):
        yield generator.answer(prompts[start : start + size], sampling)


def chosen_models(run: str | Path, group: str | int | None, root: str | Path) -> dict[str, Path]:
    """Returns the exported models that are to answer: name -> folder. The name is empty if there is only one model.

    Args:
        run: As in :func:`generate`.
        group: As in :func:`generate`.
        root: As in :func:`generate`.

    Raises:
        InputError: There is no such run or model, or there are several models and none is named.
    """
    settings = settings_of(run, root)
    if settings is not None:  # a classifier is refused before torch reads any weights
        prompts_of_data(settings, next(iter(settings.get("sets") or []), None))
    models = exported_models(export_of(run, root))
    if group == ALL or (group is None and len(models) == 1):
        return models
    allowed = [*models, ALL] if len(models) > 1 else "no group, as the run has only one model"
    if group is None:
        raise InputError.of("group", "", allowed, "the run has a model for each of them")
    names = (str(group), *(f"{kind}_{group}" for kind in KINDS))
    found = next((name for name in names if name in models), None)
    if found is None:
        raise InputError.of("group", group, allowed, "there is no such model in this run")
    return {found: models[found]}


def prompt_format(run: str | Path, tokenizer: Any, raw: bool, set_name: str | None, root: str | Path) -> PromptFormat:
    """Returns the form of the prompts of a run.

    The run's configuration decides. An export that no longer lies in its run has a chat template of the same form.

    Args:
        run: As in :func:`generate`.
        tokenizer: The tokenizer of the exported model, which has the chat template.
        raw: Whether the text itself is the prompt.
        set_name: Data set whose prompts are meant, if the run has several.
        root: As in :func:`generate`.

    Raises:
        InputError: Nothing says what the prompts looked like.
    """
    settings = settings_of(run, root)
    if raw:
        return AS_IT_IS
    if settings is not None:
        return prompts_of_data(settings, set_name)
    found = prompts_of_chat(tokenizer)
    if found is None:
        why = "neither a config.yaml nor a chat template says what the prompts of this export looked like"
        raise InputError.of("raw", "false", "true, which takes the text as it is", why)
    return found


def settings_of(run: str | Path, root: str | Path) -> dict[str, Any] | None:
    """Returns the section ``data`` of a run's configuration. None: the export no longer lies in its run.

    Raises:
        InputError: There is no such run, or its configuration is damaged.
    """
    place = run_around(find_run(run, root))
    if place is None:
        return None
    settings: Any = OmegaConf.to_container(read_settings(place, "run"), resolve=True)
    if not isinstance(settings.get("data"), dict):
        raise InputError.of("run", run, "a run with the config.yaml that flt wrote", "it has no section data")
    return settings["data"]
