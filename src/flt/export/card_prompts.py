"""The section of a model card about the prompts of a causal model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flt.export.markdown import escaped, fenced

if TYPE_CHECKING:
    from flt.export.model_card import RunFacts


def prompt_section(run: RunFacts, chats: bool) -> list[str]:
    """Returns the paragraphs about the prompts: what writes them, where their texts come from, and their forms.

    Args:
        run: What the card says about the run.
        chats: Whether a chat template lies beside the model.
    """
    return ["## Prompts", _about(run, chats), *(fenced(prompt, "text") for prompt in run.prompts)]


def _about(run: RunFacts, chats: bool) -> str:
    forms = (
        "Names in braces are the columns of the data; a row uses the first form whose columns all contain text."
        if len(run.prompts) > 1
        else "Names in braces are the columns of the data."
    )
    if not chats:
        return f"The model was trained on prompts of these forms. No chat template writes them. {forms}"
    writes = "The chat template beside the tokenizer writes the prompts of the training, which had this form."
    if not run.message_keys:  # the card of an older version
        return f"{writes} {forms}"
    (main, content), *others = ((column, f"`{escaped(key, code=True)}`") for column, key in run.message_keys.items())
    further = [f"{escaped(column)} is its {key}" for column, key in others]
    message = ", ".join([f"In a message of the user, {escaped(main)} is the {content}", *further])
    return f"{writes} {forms} {message}."
