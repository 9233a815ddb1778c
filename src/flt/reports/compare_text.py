"""Tables as text for the terminal (rich), for HTML and for LaTeX. What files say is escaped in each of the formats."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from flt.reports.compare_statistics import LEVEL
from flt.reports.compare_tables import Cell, Grid, View, difference_text, summary_grid, target_grid, title_of

LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "…": r"\ldots{}",
    **{
        c: f"{{{c}}}" for c in "[]*"
    },  # at the start of a row, these would belong to the command that ends the row before
}
"""Character -> the same character in LaTeX."""


def to_rich(grid: Grid) -> Group:
    """Returns a table for the terminal. Cells are plain texts, in which rich reads no markup."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, name in enumerate(grid.header):
        figures = number >= grid.names
        name = _in_two_lines(name) if figures else name
        whole = figures or (grid.names > 1 and number < 2)  # a setting and its value aren't broken
        table.add_column(Text(name), justify="right" if figures else "left", no_wrap=whole, overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style="bold" if cell.best else "") for cell in row))
    above = [Text(grid.title)] if grid.title else []
    below = [Text(grid.caption, style="dim")] if grid.caption else []
    return Group(*above, Padding(table, (0, 0, 0, 2)), *below, Text(""))


def _in_two_lines(name: str) -> str:
    before, space, last = name.rpartition(" ")
    return f"{before}\n{last}" if space and len(name) > 10 else name


def to_html(grid: Grid) -> str:
    """Returns an HTML table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in grid.header)
    rows = "".join(f"<tr>{''.join(_html_cell(cell) for cell in row)}</tr>" for row in grid.rows)
    title = f"<caption>{html.escape(grid.title)}</caption>" if grid.title else ""
    below = f"<p>{html.escape(grid.caption)}</p>" if grid.caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{below}"


def _html_cell(cell: Cell) -> str:
    text = html.escape(cell.text)
    return f"<td>{f'<b>{text}</b>' if cell.best else text}</td>"


def to_latex(views: Sequence[View]) -> str:
    """Returns a table environment for each problem. The preamble needs the package booktabs.

    The table is about 370 points wide. In a paper with two columns, it spans both of them.
    """
    return "\n".join(_latex_table(view) for view in views)


def _latex_table(view: View) -> str:
    grid, more = summary_grid(view), target_grid(view)
    header, rows = [escape(name) for name in grid.header], [[_latex_cell(cell) for cell in row] for row in grid.rows]
    if len(view.methods) > 1:
        header.append(r"difference")
        column = view.at.columns[0]
        for row, method in zip(rows, view.methods, strict=True):
            row.append("--" if method is view.baseline else _signed(difference_text(view, method, column)))
    if more is not None:
        header.append("rounds to target")
        for row, reached in zip(rows, more.rows, strict=True):
            row.append(_latex_cell(reached[2]))
    lines = [" & ".join(cells) + r" \\" for cells in rows]
    return "\n".join([
        r"\begin{table*}",
        r"\centering",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_caption(view)}}}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (len(header) - 1)}@{{}}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table*}",
        "",
    ])  # fmt: skip


def _caption(view: View) -> str:
    said = [f"{escape(view.problem.name)}; {view.seeds()}."]
    if any(len(method.runs) > 1 for method in view.methods):
        said.append(r"Mean $\pm$ standard deviation over the seeds; bytes (all clients) and time are means.")
    if len(view.methods) > 1:
        name, base = escape(title_of(view.at.columns[0], view.at)), escape(view.baseline.label)
        said.append(rf"Differences in {name} from {base} are paired by seed, with {100 * LEVEL:g}\,\% intervals of")
        said.append("Student's $t$, not adjusted for the number of methods.")
    if (more := target_grid(view)) is not None:
        said.append(f"Target: {escape(more.title.removeprefix('until '))}.")
    return " ".join(said)


def _latex_cell(cell: Cell) -> str:
    text = "--" if cell.text == "-" else escape(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text


def _signed(text: str) -> str:
    return "--" if text == "-" else text.replace("-", "$-$").replace("+", "$+$")


def escape(text: str) -> str:
    r"""Returns a text in which LaTeX finds no commands.

    Example:
        >>> print(escape(r"50 % of \input{x}"))
        50 \% of \textbackslash{}input\{x\}
    """
    return "".join(LATEX.get(c, c) for c in text)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns records as csv. A missing value is an empty cell, and no text is a formula for a spreadsheet."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(map(_csv_cell, names))
    writer.writerows([_csv_cell(row.get(name)) for name in names] for row in rows)
    return lines.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
