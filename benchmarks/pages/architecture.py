"""Draws the packages of src/flt and the imports between them: writes docs/architecture.svg.

.venv/bin/python -m benchmarks.pages.architecture
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

ROOT = Path(__file__).parents[2]
SOURCE, PICTURE = ROOT / "src" / "flt", ROOT / "docs" / "architecture.svg"
BANDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("foundation", "#e8eef7", ("core", "protocol", "data", "models")),
    ("the method", "#e6f3ec", ("server", "algorithm", "client")),
    ("around\nthe rounds", "#fbf1df", ("engines", "callbacks", "export", "run")),
    ("for users", "#f4e9f3", ("inference", "reports", "api", "cli")),
)
"""Title, colour and packages from left to right of each band, from the lowest band up."""
EDGES = ("#5b7fb5", "#4d9a72", "#cf9a3c", "#a86ba3")
"""Colour of the boxes' edges in each band."""
INK, PALE, UPWARDS = "#22303f", "#66727f", "#c0392b"
WIDTH, BAND, BOX, GAP = 10.98, 1.74, (2.12, 1.22), 0.28
"""Width of the picture, height of a band, width and height of a box, and space between boxes, in inches."""
MARGIN, TITLES = 0.15, 1.2
"""Margin around the bands, and width of the bands' titles at the left, in inches."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One package, or one module that lies directly in the root package.

    Attributes:
        name: Name below the root package.
        purpose: First sentence of its docstring.
        modules: Number of Python files in it.
    """

    name: str
    purpose: str
    modules: int


def packages(source: Path) -> dict[str, Package]:
    """Returns name -> package, for the packages below a root package and for its modules without leading ``__``.

    Args:
        source: Folder of the root package.
    """
    found = {}
    for path in sorted(source.iterdir()):
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        about = path / "__init__.py" if path.is_dir() else path
        if about.suffix == ".py" and about.is_file() and not path.name.startswith("__"):
            name = path.stem if path.is_file() else path.name
            found[name] = Package(name, _purpose(about), sum(file.name != "__init__.py" for file in files))
    return found


def imports(source: Path) -> dict[tuple[str, str], int]:
    """Returns (importing package, imported package) -> number of import statements.

    Imports below ``if TYPE_CHECKING``, which only type checkers read, don't count.

    Args:
        source: Folder of the root package. The package has the folder's name.
    """
    names = packages(source)
    found: dict[tuple[str, str], int] = {}
    for name in names:
        place = source / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [source / f"{name}.py"]:
            for imported in _imported(ast.parse(file.read_text()), source.name):
                if imported in names and imported != name:
                    found[name, imported] = found.get((name, imported), 0) + 1
    return found


def direct(edges: Mapping[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Returns the transitive reduction of an acyclic graph: the edges that no path of several edges replaces."""
    reached: dict[str, set[str]] = {}

    def below(name: str, on_the_way: frozenset[str] = frozenset()) -> set[str]:
        if name not in reached and name not in on_the_way:
            lower = [to for at, to in edges if at == name]
            reached[name] = set(lower).union(*(below(to, on_the_way | {name}) for to in lower))
        return reached.get(name, set())

    return {
        (at, to) for at, to in edges
        if not any(to in below(other) for source, other in edges if source == at and other != to)
    }  # fmt: skip


def upwards(edges: Mapping[tuple[str, str], int]) -> set[tuple[str, str]]:
    """Returns the imports that violate the order: imports from a package that is later in the order of the bands."""
    order = {name: number for number, name in enumerate(ordered())}
    return {(at, to) for at, to in edges if at in order and to in order and order[to] > order[at]}


def ordered() -> list[str]:
    """Returns the known packages in the order of their imports, lowest first."""
    rows = [row if number != 1 else row[::-1] for number, (_, _, row) in enumerate(BANDS)]
    return list(itertools.chain.from_iterable(rows))


def draw(source: Path, path: Path) -> None:
    """Draws the packages of a source tree as an SVG. The same tree always gives the same bytes.

    Args:
        source: Folder of the root package.
        path: File of the picture.
    """
    found, edges = packages(source), imports(source)
    places = _places(found)
    height = max(y for _, y in places.values()) + BOX[1] + 0.68
    wrong = upwards(edges)
    arrows = direct({edge: count for edge, count in edges.items() if edge not in wrong})
    with matplotlib.rc_context({"svg.hashsalt": "flt", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, height))
        axes.axis("off")
        _draw_bands(axes)
        for at, to in sorted(arrows):
            _draw_arrow(axes, places[at], places[to], INK)
        for at, to in sorted(wrong):
            _draw_arrow(axes, places[at], places[to], UPWARDS, aside=0.2)
        for name, package in found.items():
            more = [to for at, to in sorted(edges) if at == name and (at, to) not in arrows | wrong]
            _draw_box(axes, package, places[name], more)
        legend = "An arrow means “imports from”. A box names the other packages that it imports."
        title = f"The packages of src/{source.name}"
        axes.text(MARGIN, height - 0.26, title, size=13, weight="bold", color=INK, va="center")
        axes.text(WIDTH - MARGIN, height - 0.26, legend, size=8.6, color=PALE, va="center", ha="right")
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _places(found: Mapping[str, Package]) -> dict[str, tuple[float, float]]:
    """Returns the lower left corner of each box. Packages that belong to no band are in a row at the top."""
    others = tuple(sorted(set(found) - set(ordered())))
    places = {}
    for number, row in enumerate([*(row for _, _, row in BANDS), others]):
        shift = (BOX[0] + GAP) * {1: 2, 3: 1}.get(len(row), 0)  # makes the arrows between these bands straight
        for column, name in enumerate(row):
            places[name] = (MARGIN + TITLES + shift + column * (BOX[0] + GAP), MARGIN + number * BAND + 0.15)
    return {name: places[name] for name in found}


def _draw_bands(axes: Axes) -> None:
    for number, ((title, colour, _), edge) in enumerate(zip(BANDS, EDGES, strict=True)):
        y = MARGIN + number * BAND
        shape = FancyBboxPatch(
            (MARGIN, y), WIDTH - 2 * MARGIN, BAND - 0.22, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec="none"
        )
        axes.add_patch(shape)
        axes.text(MARGIN + 0.16, y + BAND / 2 - 0.11, title, size=11, style="italic", color=edge, va="center")


def _draw_box(axes: Axes, package: Package, place: tuple[float, float], more: list[str]) -> None:
    number = next((number for number, (_, _, row) in enumerate(BANDS) if package.name in row), 3)
    (x, y), (width, height) = place, BOX
    shape = FancyBboxPatch(
        place, width, height, boxstyle="round,pad=0,rounding_size=0.08", fc="white", ec=EDGES[number], lw=1.3, zorder=3
    )
    axes.add_patch(shape)
    size = f"{package.modules} modules" if package.modules > 1 else "1 module"
    axes.text(x + 0.1, y + height - 0.17, package.name, size=12, weight="bold", color=INK, va="center", zorder=4)
    axes.text(x + width - 0.1, y + height - 0.17, size, size=7.2, color=PALE, va="center", ha="right", zorder=4)
    lines = textwrap.wrap(package.purpose, 33)
    axes.text(x + 0.1, y + height - 0.35, "\n".join(lines), size=7.9, color=INK, va="top", linespacing=1.3, zorder=4)
    if more:
        said = textwrap.fill(f"also imports {', '.join(more)}", 42)
        axes.text(x + 0.1, y + 0.07, said, size=6.8, color=PALE, va="bottom", linespacing=1.25, zorder=4)


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, aside: float = 0.0
) -> None:
    """Draws an arrow between the nearest sides of two boxes. Arrows at the same side of a box don't overlap."""
    width, height = BOX
    (x, y), (u, v) = start, end
    if y == v:
        left, middle = u < x, y + height / 2 + aside
        ends = (x if left else x + width, middle), (u + width if left else u, middle)
    else:
        lower, slant = v < y, 0.3 * (u - x) / (width + GAP)
        first, second = x + width / 2 + slant + aside, u + width / 2 - slant + aside
        ends = (first, y if lower else y + height), (second, v + height if lower else v)
    arrow = FancyArrowPatch(
        *ends, arrowstyle="-|>,head_length=5,head_width=2.6", lw=1.4, color=colour, shrinkA=0, shrinkB=0, zorder=5
    )
    axes.add_patch(arrow)


def _imported(tree: ast.Module, root: str) -> Iterator[str]:
    """Yields, for each import statement, the imported package below the root."""
    skipped = {
        id(inner) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body for inner in ast.walk(statement)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] if node.module != root else [f"{root}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from dict.fromkeys(name.split(".")[1] for name in names if name.startswith(f"{root}."))


def _purpose(file: Path) -> str:
    """Returns the first sentence of a file's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text())) or "").split())
    return text.partition(". ")[0].removesuffix(".").replace("``", "")


def main() -> None:
    """Draws the picture."""
    draw(SOURCE, PICTURE)


if __name__ == "__main__":
    main()
