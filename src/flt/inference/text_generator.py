"""A causal model of a run that writes answers to prompts."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import TextStreamer

from flt.core.errors import InputError
from flt.core.quiet import quiet_transformers
from flt.core.typed import first_line
from flt.data.instructions import prompt_tokens
from flt.export.load import load
from flt.inference.models import TOKENIZERS, device_of
from flt.models.model_files import check_ids
from flt.models.preprocessing import load_tokenizer

LONGEST = 256
"""Largest number of tokens of an answer, unless the settings say another."""
_CAUSAL = "a run of a causal model, such as one of data=dolly"
Stream = Callable[[str], None]
"""Function that gets an answer piece by piece, while the model writes it."""


@dataclasses.dataclass
class Sampling:
    """Settings of the generation of text.

    Attributes:
        temperature: Divisor of the logits, at least 0. Higher values give more varied answers. 0: the token with the
            highest logit is taken each time, and ``top_p``, ``top_k`` and ``seed`` have no effect.
        top_p: Share in (0, 1]. Only the most probable tokens whose probabilities add up to this share are drawn.
        top_k: Only this number of most probable tokens is drawn. 0: all.
        max_new_tokens: Largest number of tokens of an answer. None: 256, or fewer if the model has no room for more.
        seed: Seed with which the tokens are drawn. An answer depends on its prompt, the settings and the seed.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError.of("temperature", self.temperature, "a number >= 0")
        if not 0 < self.top_p <= 1:
            raise InputError.of("top_p", self.top_p, "a number in (0, 1]")
        for key, least in (("top_k", 0), ("seed", 0), ("max_new_tokens", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise InputError.of(key, value, f"an integer >= {least}")

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of transformers' ``generate`` that decide which token comes next."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Text that a model has written.

    Attributes:
        text: The answer, without special tokens.
        finish_reason: ``stop`` if the model ended the answer itself, ``length`` if it was cut off.
    """

    text: str
    finish_reason: str


class TextGenerator:
    """A causal model with its tokenizer, on a device.

    Args:
        folder: Folder of an exported model.
        device: ``auto``, ``cpu``, or ``cuda``, also with a number.
        base: Folder or hub id of the base. None: the one that the export names.

    Raises:
        InputError: The folder isn't an export of a causal model or lacks its tokenizer, or there is no such device.
    """

    def __init__(self, folder: Path, device: str = "auto", base: str | Path | None = None) -> None:
        self.device = device_of(device)
        self.tokenizer = _tokenizer(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # transformers warns of names that peft still calls
            model: Any = load(folder, None if base is None else str(base))
        if not getattr(model, "can_generate", lambda: False)():
            raise InputError.of("run", folder, _CAUSAL, "its model writes no text")
        check_ids(model, folder.name, {"input_ids": torch.tensor([len(self.tokenizer) - 1])})
        self.model = model.to(self.device)
        self.positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def answer(self, prompts: Sequence[str], sampling: Sampling, stream: Stream | None = None) -> list[Answer]:
        """Writes the answers to some prompts at once.

        Args:
            prompts: The prompts. With several, each is padded on the left to the length of the longest.
            sampling: Settings. The seed is set anew in each call.
            stream: Function that gets the answer piece by piece. Only with one prompt.

        Raises:
            InputError: A prompt and its answer together have more tokens than the model has positions.
        """
        rows = [prompt_tokens(prompt, self.tokenizer) for prompt in prompts]
        width = max(map(len, rows))
        most, end = self._room(width, sampling.max_new_tokens), self.tokenizer.eos_token_id
        ids = torch.tensor([[self.tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        with isolate_rng(), torch.inference_mode(), quiet_transformers():
            torch.manual_seed(sampling.seed)
            written: Tensor = self.model.generate(
                input_ids=ids.to(self.device), attention_mask=mask.to(self.device), max_new_tokens=most,
                eos_token_id=end, pad_token_id=self.tokenizer.pad_token_id, use_cache=True,
                streamer=_Streamer(self.tokenizer, stream) if stream else None, **sampling.arguments(),
            )  # fmt: skip
        return [self._answer(row, end) for row in written[:, width:].tolist()]

    def _answer(self, tokens: list[int], end: int) -> Answer:
        """Returns an answer. The tokens behind its end are padding, because another prompt's answer is longer."""
        ended = end in tokens
        kept = tokens[: tokens.index(end)] if ended else tokens
        return Answer(self.tokenizer.decode(kept, skip_special_tokens=True), "stop" if ended else "length")

    def _room(self, width: int, wanted: int | None) -> int:
        """Returns the largest number of new tokens after a prompt of some tokens."""
        if self.positions is None:
            return wanted or LONGEST
        room = self.positions - width
        if room < 1:
            raise InputError.of("prompt", f"<{width} tokens>", f"at most {self.positions - 1} tokens for this model")
        if wanted is not None and wanted > room:
            why = f"the model has {self.positions} positions, and the prompt takes {width}"
            raise InputError.of("max_new_tokens", wanted, f"an integer from 1 to {room}", why)
        return wanted or min(room, LONGEST)


class _Streamer(TextStreamer):
    """Streamer of transformers that hands whole words to a function, instead of printing them."""

    def __init__(self, tokenizer: Any, stream: Stream) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.stream = stream

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hands over the next piece of the answer."""
        if text:
            self.stream(text)


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        why = "an older version exported it without its tokenizer; resume=<the run's folder> exports it again"
        raise InputError.of("run", folder, f"{_CAUSAL}, with its tokenizer", why)
    try:
        tokenizer = load_tokenizer(str(folder), local=True)
    except Exception as error:  # the libraries raise different exceptions for a damaged file
        raise InputError.of("run", folder, "an export with a tokenizer that can be read", first_line(error)) from error
    if tokenizer.eos_token_id is None:
        raise InputError.of("run", folder, _CAUSAL, "its tokenizer has no token that ends an answer")
    return tokenizer
