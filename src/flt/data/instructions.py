"""Tokenisation of instruction data. The loss counts only the tokens of the response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import datasets

from flt.core.errors import InputError
from flt.data import tokens
from flt.data.dataset_sources import RawData
from flt.data.encode import batches
from flt.data.examples import Examples
from flt.data.templates import choose_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_instructions(
    dataset: datasets.Dataset,
    raw: RawData,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    name: str = "",
    limit: int = 20 * 10**9,
) -> Examples:
    """Tokenises the prompts and responses of a split. A missing text counts as empty.

    The ``labels`` of an item have shape (length,). The label of a token is the token's id if the token belongs to the
    response, else -100. The tokens are kept in the cache on disk.

    Args:
        dataset: The split, one of raw.splits.
        raw: Data set with the templates and the response column.
        tokenizer: A tokenizer of transformers with an end-of-text token.
        max_length: Largest number of tokens per example.
        name: Name of the data in the cache.
        limit: Largest size of the cache in bytes.

    Raises:
        InputError: max_length is below 2, or the cache has too little space.
    """
    if max_length < 2:
        raise InputError.of("model.max_length", max_length, "an integer >= 2, for a prompt and a response")

    def texts() -> Iterator[list[list[str | None]]]:
        return (_columns(batch, raw) for batch in batches(dataset, (*raw.inputs, raw.response)))

    return Examples(tokens.stored(texts, tokenizer, max_length, name, limit, tokenize), dataset[raw.label][:])


def tokenize(texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, list]:
    """Tokenises some rows and shortens them to a maximum length, without padding.

    A row consists of the tokenizer's start tokens, the prompt, the response and the end-of-text token. The prompt and
    the response are tokenised separately. The prompt therefore has the same tokens as later, when a model generates a
    response to the prompt.

    Args:
        texts: Three sequences: the prompts, their tails, and the responses. A tail is the template's text after the
            last column.
        tokenizer: A tokenizer of transformers with an end-of-text token.
        max_length: Largest number of tokens per row.

    Returns:
        ``input_ids``: the tokens of each row. ``targets``: for each row, a list with one number, which is the number of
        tokens before the response.
    """
    prompts, tails, responses = (plain_tokens(tokenizer, column) for column in texts)
    first, end = front_tokens(tokenizer), tokenizer.eos_token_id
    rows, targets = [], []
    for prompt, tail, response in zip(prompts, tails, responses, strict=True):
        before, after = cut([*first, *prompt] or [end], len(tail), [*response, end], max_length)
        rows.append([*before, *after])
        targets.append([len(before)])
    return {"input_ids": rows, "targets": targets}


def prompt_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenises a prompt to which a model is to write the response.

    The tokens are those that :func:`tokenize` puts before a response, if the prompt isn't shortened. A text that begins
    with the tokenizer's start tokens, as that of a chat template can, gets no second ones.

    Args:
        text: The prompt.
        tokenizer: A tokenizer of transformers with an end-of-text token.
    """
    first, (prompt,) = front_tokens(tokenizer), plain_tokens(tokenizer, [text])
    started = bool(first) and prompt[: len(first)] == first
    return [*([] if started else first), *prompt] or [tokenizer.eos_token_id]


def cut(prompt: Sequence[int], tail: int, response: Sequence[int], most: int) -> tuple[Sequence[int], Sequence[int]]:
    """Shortens a prompt and its response so that together they have at most ``most`` tokens.

    The response may use half of the allowed tokens, or more if the prompt is short. The end of a longer response
    is removed. If the prompt is too long for the remaining tokens, the prompt loses tokens right before its tail. These
    tokens are the end of the text in the template's last column. In the default templates, the last column is the
    context if there is one. The first token of the prompt is always kept.

    Args:
        prompt: Tokens of the prompt, at least one.
        tail: Number of tokens in the prompt's tail, the template's text after the last column.
        response: Tokens of the response, at least one.
        most: Largest number of tokens of prompt and response together, at least 2.

    Example:
        >>> cut([1, 2, 3, 4, 5, 6, 7], 1, [8, 9, 10], 6)
        ([1, 2, 7], [8, 9, 10])
        >>> cut([1, 2], 1, [3, 4, 5, 6, 7], 6)
        ([1, 2], [3, 4, 5, 6])
    """
    kept = min(len(response), max(most - len(prompt), most - most // 2))
    room = most - kept
    if len(prompt) > room:
        end = min(tail, room - 1)
        prompt = [*prompt[: room - end], *prompt[len(prompt) - end :]]
    return prompt, response[:kept]


def _columns(batch: dict[str, list[str | None]], raw: RawData) -> list[list[str | None]]:
    """Returns the prompts, their tails and the responses of some rows."""
    given = [[text or "" for text in batch[name]] for name in raw.inputs]
    rows = [dict(zip(raw.inputs, row, strict=True)) for row in zip(*given, strict=True)]
    chosen = [choose_template(raw.templates, row) for row in rows]
    prompts: list[str | None] = [template.fill(row) for template, row in zip(chosen, rows, strict=True)]
    return [prompts, [template.tail for template in chosen], batch[raw.response]]


def plain_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Returns the tokens of texts, without the special tokens that a tokenizer adds."""
    # verbose=False suppresses warnings about texts that are too long for the model, because cut() shortens them.
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def front_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that a tokenizer puts before a text, such as Llama's beginning-of-sequence token."""
    whole, (inner,) = tokenizer("a")["input_ids"], plain_tokens(tokenizer, ["a"])
    return whole[: whole.index(inner[0])] if inner else []
