"""What goes with what: writes docs/combinations.md from the refusals of the parts themselves. Nothing is trained.

python -m benchmarks.pages.combinations
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.pages.pairs import ROUNDS, Bench, Part, bench, defaults, pairs, parts
from benchmarks.pages.toy_federation import MODULES, TASKS, toy

from flt.algorithm.registry import PARTS
from flt.models.adapters.registry import ADAPTERS
from flt.run.assembly import refusal
from flt.run.compose import load_config
from flt.run.conf_groups import choices
from flt.run.schema import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
RUNS = "runs"
Case = tuple[str, str, str]
"""An adapter, a type of task, and whose the jobs are: ``per_client``, ``per_task``."""
CASES: list[Case] = [(adapter, kind, jobs) for adapter in ADAPTERS for kind in MODULES for jobs in TASKS]
HEAD = """# What goes with what

Made by `python -m benchmarks.pages.combinations` from the lines with which the parts themselves refuse a run at its
start. The tests run whatever isn't refused.

**Runs** means: on a tiny ViT (image), BERT (text) or GPT-2 (causal language modelling) and a handful of examples,
{rounds} rounds end and leave an export. It doesn't say that the two are good together. A number is the reason, below
its table, for which the combination is refused before anything is trained or written; where there are two entries, the
first is for one job per client, and the second for one job per task.

The ideas of three papers in one command, HAFL's freezing inside FL-TAC's clusters under SA-FedLoRA's schedule:

```
{mix}
```
"""
MIX = (
    "flt train algo=hafl ranks=[2,4] jobs=per_task grouping=kmeans grouping.features=changes grouping.cannot_link=true "
    "grouping.memory=true schedule=annealed schedule.end=2"
)
RECIPES = """## Recipes, adapters and types of task

`algo=` in the rows, `adapter=` and the type of task in the columns."""
LORA_FACTORS = """## Parts with parts

Each part with each part of another place, on FedIT with LoRA and two tasks, as their YAMLs in `conf/` set them. A cell
names what the part of the row is refused with, and the reason; `–`: it runs with all of them. Parts that every recipe
has anyway are left out: {defaults}."""
BROUGHT = """Some bring a part without which they have no meaning alone: {brought}. So a reason may be that of the part
that was brought, and other settings may go together: `rule=svd` with `schedule=annealed schedule.by=svd`."""


@functools.cache
def configured(algo: str, adapter: str) -> TrainConfig:
    """A recipe with an adapter, as the command line composes them, with short fits."""
    short = ["local.steps=1", "batch_size=4", "clients=2"]
    return load_config([f"algo={algo}", f"adapter={adapter}", f"rounds={ROUNDS}", *short])


def recipe_refusals(algo: str, cases: Iterable[Case] = CASES) -> dict[Case, str | None]:
    """Case -> the line that refuses a recipe in it, or None."""
    return {(adapter, kind, jobs): refusal(configured(algo, adapter), toy(kind, jobs)) for adapter, kind, jobs in cases}


def pair_refusals(on: Bench) -> dict[tuple[Part, Part], str]:
    """The pairs of parts that are refused, and their lines."""
    found = {pair: on.refusal(*pair) for pair in pairs()}
    return {pair: line for pair, line in found.items() if line is not None}


def reason(line: str) -> str:
    """Why, without whom and what is allowed instead: combinations are refused for few reasons.

    Example:
        >>> reason("rule Svd with selection Freeze: frozen pairs aren't sent; allowed is all")
        "frozen pairs aren't sent"
    """
    found = re.match(r".*?: (.+); allowed is ", line)
    return found.group(1) if found else line


def numbered(lines: Iterable[str | None]) -> dict[str, int]:
    """Reason -> its number, in the order in which they come."""
    reasons = dict.fromkeys(reason(line) for line in lines if line is not None)
    return {why: number for number, why in enumerate(reasons, start=1)}


def footnotes(numbers: Mapping[str, int]) -> str:
    """The reasons as a numbered list."""
    return "\n".join(f"{number}. {why}" for why, number in numbers.items())


def cells(adapter: str, found: Mapping[Case, str | None], numbers: Mapping[str, int]) -> list[str]:
    """What a recipe's row says of an adapter: one cell for each type of task."""
    lines = {kind: [found[adapter, kind, jobs] for jobs in TASKS] for kind in MODULES}
    said = {kind: [RUNS if line is None else str(numbers[reason(line)]) for line in its] for kind, its in lines.items()}
    return [" / ".join(dict.fromkeys(its)) for its in said.values()]


def recipe_table(found: Mapping[str, Mapping[Case, str | None]]) -> Iterator[str]:
    """The table of recipes, and its reasons."""
    numbers = numbered(line for cases in found.values() for line in cases.values())
    heads = ["", *(f"{adapter}, {kind}" for adapter in ADAPTERS for kind in MODULES)]
    rows = [table_row([f"`{algo}`", *(cell for adapter in ADAPTERS for cell in cells(adapter, cases, numbers))])
            for algo, cases in found.items()]  # fmt: skip
    yield "\n".join([table_row(heads), table_row(["---"] * len(heads)), *rows])
    yield footnotes(numbers)


def pair_table(found: Mapping[tuple[Part, Part], str]) -> Iterator[str]:
    """The table of parts, and its reasons."""
    numbers = numbered(found.values())
    heads = ["", *(f"{group}=" for group in PARTS)]
    rows = [table_row([f"`{part[0]}={part[1]}`", *(_refused_of(part, group, found, numbers) for group in PARTS)])
            for part in parts()]  # fmt: skip
    yield "\n".join([table_row(heads), table_row(["---"] * len(heads)), *rows])
    yield footnotes(numbers)


def _refused_of(part: Part, group: str, found: Mapping[tuple[Part, Part], str], numbers: Mapping[str, int]) -> str:
    """The parts of a group with which a part is refused; nothing in its own column."""
    if part[0] == group:
        return ""
    others = {({*pair} - {part}).pop(): line for pair, line in found.items() if part in pair}
    named = [f"{name}: {numbers[reason(line)]}" for (of, name), line in others.items() if of == group]
    return ", ".join(named) or "–"


def table_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def parts_text(on: Bench) -> str:
    """The second half of the page: parts with parts."""
    usual = ", ".join(f"`{group}={name}`" for group, name in defaults().items())
    company = {part: on.company(part) for part in parts()}
    brought = [f"`{group}={name}` brings `{more[0][0]}={more[0][1]}`"
               for (group, name), more in company.items() if more]  # fmt: skip
    said = [BROUGHT.format(brought=", ".join(brought))] if brought else []
    return "\n\n".join([LORA_FACTORS.format(defaults=usual), *said, *pair_table(pair_refusals(on))])


def head() -> str:
    """The top of the page."""
    return HEAD.format(rounds={3: "three"}.get(ROUNDS, ROUNDS), mix=MIX).rstrip()


def text() -> str:
    """The whole page."""
    recipes = recipe_table({algo: recipe_refusals(algo) for algo in choices("algo")})
    return "\n\n".join([head(), RECIPES, *recipes, parts_text(bench())]) + "\n"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(text())


if __name__ == "__main__":
    main()
