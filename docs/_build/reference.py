"""Pages of the reference: the API, the base classes to extend, the commands, the keys, and the parts."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import conf_pages

import flt
from flt.cli import conf_comments, help
from flt.cli.commands import COMMANDS

EXTENDED = {
    "Callbacks": {
        "flt.server.callback.FedCallback": "Observes the rounds of a run.",
        "flt.client.fit.LocalCallback": "Changes one local fit, or measures something in it.",
        "flt.client.fit.LocalFit": "What a local callback reads and stores.",
    },
    "Parts of a recipe": {
        "flt.algorithm.base.Part": "What all parts have.",
        "flt.algorithm.base.PlanPart": "`plan`",
        "flt.algorithm.base.SchedulePart": "`schedule`",
        "flt.algorithm.base.SelectionPart": "`selection`",
        "flt.algorithm.base.ImportancePart": "`importance`",
        "flt.algorithm.base.GroupingPart": "`grouping`",
        "flt.algorithm.rule.base.Rule": "`rule`",
        "flt.algorithm.rule.base.Summable": "`rule`, from sums over the clients",
        "flt.algorithm.rule.base.Combined": "What a rule returns.",
        "flt.algorithm.transfer.TransferPart": "`transfer`",
        "flt.algorithm.server_optimizer.ServerOptimizerPart": "`server_optimizer`",
        "flt.algorithm.buffers.BuffersPart": "`buffers`",
        "flt.algorithm.compression.base.CompressionPart": "`compression`",
    },
    "What parts read": {
        "flt.algorithm.view.View": "The state at the beginning of a round.",
        "flt.protocol.messages.Payload": "Message from the server to a job.",
        "flt.protocol.messages.Update": "Message from a job to the server.",
        "flt.protocol.messages.Plan": "What a round trains and sends.",
    },
}
"""Classes that a user subclasses or meets while subclassing."""


def navigation() -> list[dict[str, Any]]:
    """Returns the entries of the navigation."""
    parts = [{f"{group}=": conf_pages.place(group)} for group in conf_comments.defaults()]
    return [
        {"Commands": "reference/commands.md"},
        {"Keys": conf_pages.KEYS},
        {"Parts and choices": parts},
        {"Python": "reference/api.md"},
        {"Classes to extend": "reference/extend.md"},
    ]


def pages() -> dict[str, str]:
    """Returns the text of each page, by its place in docs/."""
    parts = {conf_pages.place(group): conf_pages.group_page(group) for group in conf_comments.defaults()}
    return {
        "reference/api.md": api(),
        "reference/extend.md": extend(),
        "reference/commands.md": commands(),
        conf_pages.KEYS: conf_pages.keys_page(),
        **parts,
    }


def api() -> str:
    """Returns the page of flt's public names."""
    names = [name for name in flt.__all__ if not name.startswith("_")]
    rows = [f"| [`{name}`][flt.{name}] | {_first_line(getattr(flt, name))} |" for name in names]
    blocks = [f"::: flt.{name}\n" for name in names]
    lines = ["# Python", "", "`import flt` has these names:", "", "| name | what it is or does |", "|---|---|", *rows, ""]
    return "\n".join([*lines, *blocks])


def _first_line(documented: object) -> str:
    return conf_pages.plain((documented.__doc__ or "").partition("\n")[0].replace("``", "`"))


def extend() -> str:
    """Returns the page of the classes to extend."""
    lines = ["# Classes to extend", "", "[Add a method](../new_algorithm.md) shows a part from its first line to its test."]
    for title, classes in EXTENDED.items():
        lines += ["", f"## {title}", "", "| class | for |", "|---|---|"]
        lines += [f"| [`{name.rpartition('.')[2]}`][{name}] | {about} |" for name, about in classes.items()]
        lines += ["", *(f"::: {name}\n    options:\n      heading_level: 3\n" for name in classes)]
    return "\n".join(lines)


def commands() -> str:
    """Returns the page of the commands, with the text that ``flt help`` shows for each."""
    listed = {name: about for name, about in COMMANDS.items() if about.summary}
    lines = ["# Commands", "", "`flt help <command>` prints these texts on the terminal.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    lines += [f"| [`flt {name}`](#flt-{name}) | {conf_pages.plain(about.summary)} |" for name, about in listed.items()]
    for name in listed:
        lines += ["", f"## flt {name} {{#flt-{name}}}", "", "```text", _help(name), "```"]
        if name in ("train", "sweep"):
            lines += ["", "All keys: [Keys](keys.md)."]
        if name in flt.__all__:
            lines += ["", f"In Python: [`flt.{name}`][flt.{name}]."]
    return "\n".join(lines)


def _help(command: str) -> str:
    """Returns the help of a command. The keys of ``flt train`` have a page of their own and are left out."""
    if command in ("train", "sweep"):
        return {"train": help.TRAIN, "sweep": help.SWEEP}[command].rpartition("\n\n")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        help.run([command])
    return printed.getvalue().strip()
