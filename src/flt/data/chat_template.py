"""Chat templates, with which transformers writes the prompts that a causal model was trained on, without flt."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flt.core.quiet import quiet_transformers
from flt.data.instructions import front_tokens, plain_tokens
from flt.data.templates import Template, choose_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "the model was trained on messages of a user and an assistant alone"
"""Error of the template for a message of another role."""
_log = logging.getLogger(__name__)


def with_chat_template(
    tokenizer: PreTrainedTokenizerBase, templates: Sequence[Template], text: str | None
) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer whose chat template writes the prompts of a run, with the same tokens.

    A template of the tokenizer's own is replaced, because the model wasn't trained on its prompts.

    Args:
        tokenizer: Tokenizer of a causal model.
        templates: Templates of the run's prompts.
        text: Value of ``data.text``: the column that holds the content of a user's message, see :func:`main_column`.
    """
    found = copy.copy(tokenizer)
    main, front = main_column(templates, text), "".join(tokenizer.convert_ids_to_tokens(front_tokens(tokenizer)))
    # A tokenizer that puts a blank before each text doesn't put one after a start token. The template then does it.
    for start in (front, f"{front} "):
        found.chat_template = jinja(templates, main, start, str(tokenizer.eos_token))
        if _has_same_tokens(found, templates, main):
            return found
    found.chat_template = jinja(templates, main, front, str(tokenizer.eos_token))
    _log.warning("the chat template's first token differs from the prompts', as this tokenizer joins it to the start")
    return found


def main_column(templates: Sequence[Template], text: str | None) -> str:
    """Returns the column that holds the content of a user's message.

    It is ``text`` if the last template has this column, and else the first column of the last template. The last
    template is for rows in which other columns are empty.
    """
    names = templates[-1].columns
    return text if text in names else names[0]


def message_key(column: str, main: str) -> str:
    """Returns the key of a column's text in a message: ``content`` for the main column, else the column's name."""
    return "content" if column == main else f"column_{column}" if column in ("role", "content") else column


def message_keys(templates: Sequence[Template], text: str | None) -> dict[str, str]:
    """Returns the columns of the prompts -> their keys in a user's message. The main column, the content, is first.

    Args:
        templates: Templates of the prompts.
        text: Value of ``data.text``, see :func:`main_column`.
    """
    main = main_column(templates, text)
    columns = dict.fromkeys([main, *(name for template in templates for name in template.columns)])
    return {name: message_key(name, main) for name in columns}


def jinja(templates: Sequence[Template], main: str, front: str, end: str) -> str:
    """Returns the templates as one chat template in Jinja.

    Texts of columns other than the main one are further keys of a user's message, such as ``context``. Each message
    uses the first template whose columns all contain text in it, as :func:`choose_template` does for a row.

    Args:
        templates: Templates of the prompts.
        main: Column that holds the content of a user's message.
        front: Start tokens, which come before the first message.
        end: End-of-text token, which follows each response.
    """
    parts, branch = [f"{{{{- {_quoted(front)} }}}}"] if front else [], "if"
    parts.append("{%- for message in messages %}{% if message['role'] == 'user' %}")
    for template in templates[:-1]:
        full = " and ".join(f"({_value(name, main)} | trim)" for name in template.columns)
        parts += [f"{{% {branch} {full} %}}", *_pieces(template, main)]
        branch = "elif"
    last = "".join(_pieces(templates[-1], main))
    parts.append(f"{{% else %}}{last}{{% endif %}}" if branch == "elif" else last)
    parts.append(f"{{% elif message['role'] == 'assistant' %}}{{{{ message['content'] }}}}{{{{ {_quoted(end)} }}}}")
    return "".join([*parts, f"{{% else %}}{{{{ raise_exception({_quoted(SYSTEM)}) }}}}{{% endif %}}{{% endfor %}}"])


def _pieces(template: Template, main: str) -> list[str]:
    texts = [f"{{{{ {_quoted(literal)} }}}}" if literal else "" for literal, _ in template.pieces]
    values = [f"{{{{ {_value(name, main)} }}}}" if name else "" for _, name in template.pieces]
    return [text + value for text, value in zip(texts, values, strict=True)]


def _value(column: str, main: str) -> str:
    return f"(message[{_quoted(message_key(column, main))}] or '')"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _has_same_tokens(tokenizer: PreTrainedTokenizerBase, templates: Sequence[Template], main: str) -> bool:
    """Returns whether the chat template gives the tokens of the run's prompts, for a message with each template."""
    front = front_tokens(tokenizer)
    for template in templates:
        row = {name: "a" if name in template.columns else "" for other in templates for name in other.columns}
        message = {"role": "user", **{message_key(name, main): text for name, text in row.items()}}
        with quiet_transformers():
            found = tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
        if found != [*front, *plain_tokens(tokenizer, [choose_template(templates, row).fill(row)])[0]]:
            return False
    return True
