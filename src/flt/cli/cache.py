"""The command ``flt cache``, which shows or clears the cache on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from flt.core.errors import InputError

NAMES = ("model", "data")
FIGURES = ("max_length", "blocks", "precision", "examples")
DIGEST = re.compile(r"[0-9a-f]{12,}")


def run(arguments: Sequence[str]) -> int:
    """Shows or clears the cache.

    Without arguments, all entries are shown. ``clear`` removes all entries, and ``clear <kind>`` removes the entries of
    one kind. Entries that a run of another process uses stay.

    Raises:
        InputError: The arguments have none of these forms.
    """
    from flt.core.cache_folders import KINDS

    match list(arguments):
        case []:
            _show()
        case ["clear"]:
            _clear(None)
        case ["clear", kind] if kind in KINDS:
            _clear(kind)
        case ["clear", *kinds]:
            raise InputError.of("cache clear", " ".join(kinds), [*KINDS, "or nothing, for all of them"])
        case _:
            raise InputError.of("cache", " ".join(arguments), "clear, or nothing, which shows what there is")
    return 0


def _clear(kind: str | None) -> None:
    from rich.filesize import decimal

    from flt.core import cache

    print(f"{decimal(cache.clear(kind))} freed in {cache.folder()}")
    if used := sum(kind in (None, entry.kind) for entry in cache.entries()):
        print(f"{used} {'entry stays, because a run uses it' if used == 1 else 'entries stay, because runs use them'}")


def _show() -> None:
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table
    from rich.text import Text

    from flt.core import cache

    entries = cache.entries()
    if not entries:
        print(f"the cache is empty: {cache.folder()}")
        return
    table = Table("kind", "what", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    for entry in entries:
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        # Text is needed because rich would read brackets in a plain string as markup.
        table.add_row(entry.kind, Text(describe(entry.about), overflow="fold"), decimal(entry.size), used)
    Console(highlight=False).print(table)
    print(f"{decimal(sum(entry.size for entry in entries))} in {cache.folder()}")


def describe(about: Mapping[str, Any]) -> str:
    """Returns a readable description of a cache entry, without digests and versions.

    Args:
        about: Description of the inputs from which the entry was computed.

    Example:
        >>> describe({"max_length": 128, "model": "org/name", "texts": "0123456789abcdef", "data": "reviews train"})
        'org/name, reviews train, max_length 128'
    """
    names = [str(about.get(name, "")) for name in NAMES]
    figures = [f"{name} {about[name]}" for name in FIGURES if name in about]
    return ", ".join([*(name for name in names if name and not DIGEST.fullmatch(name)), *figures])
