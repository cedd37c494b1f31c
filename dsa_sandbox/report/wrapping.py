"""Text within a width: lines fold between words, tables into narrower ones; nothing is cut."""

import io
import textwrap

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

WIDEST = 300  # columns, more than any table has
LEAST_PROSE = 20  # columns that a last column of words needs, to be read


def folded(text: str, width: int) -> str:
    """Lines that are too wide, folded between words and indented as deep as they were and more."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines += wrapped(line, width, indent) or [""]
    return "\n".join(lines)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines; a word that is wider than the width (a path, a name) is left whole."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        replace_whitespace=False,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )


def plain(title: str | None = None) -> Table:
    """A table without box: columns and a rule."""
    table = Table(title=title, box=None, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    table.show_edge = False
    return table


def rendered(table: Table, width: int = WIDEST) -> str:
    """The table as plain text, as wide as its cells; where that is too wide, in another shape.

    Words in its last column fold. Otherwise it becomes several tables that all begin with the first
    column, or, where not even one figure fits beside that, a line for each figure.
    """
    headers = [str(column.header) for column in table.columns]
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    right = [column.justify == "right" for column in table.columns]
    widths = [max(map(cell_len, [header, *own])) for header, own in zip(headers, cells)]
    if sum(widths) + len(widths) - 1 <= width:
        return printed(table)
    room = width - sum(widths[:-1]) - len(widths) + 1
    words = [word for cell in cells[-1] for word in cell.split()]
    longest = max(map(cell_len, words), default=0)
    if len(widths) > 1 and not right[-1] and room >= max(LEAST_PROSE, longest):
        cells[-1] = ["\n".join(wrapped(cell, room)) for cell in cells[-1]]
        return printed(chosen(headers, cells, right, list(range(len(widths)))))
    if widths[0] + 1 + max(widths[1:], default=0) > width:
        return by_line(headers, cells, width)
    parts: list[list[int]] = []
    left = 0
    for number in range(1, len(widths)):
        if left < 1 + widths[number]:
            parts.append([0])
            left = width - widths[0]
        parts[-1].append(number)
        left -= 1 + widths[number]
    return "\n\n".join(printed(chosen(headers, cells, right, part)) for part in parts)


def chosen(
    headers: list[str], cells: list[list[str]], right: list[bool], numbers: list[int]
) -> Table:
    """A table of some of the columns."""
    table = plain()
    for number in numbers:
        justify = "right" if right[number] else "left"
        table.add_column(headers[number], justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in zip(*(cells[number] for number in numbers)):
        table.add_row(*row)
    return table


def by_line(headers: list[str], cells: list[list[str]], width: int) -> str:
    """A line for each figure, below what the first column says."""
    longest = max(map(cell_len, headers[1:]), default=0)
    lines = []
    for name, *values in zip(*cells):
        lines.append(name)
        for header, value in zip(headers[1:], values):
            line = f"  {header}{' ' * (longest - cell_len(header))}  {value}"
            lines += wrapped(line, width, " " * (longest + 4)) if value else []
    return "\n".join(lines)


def printed(table: Table) -> str:
    """The table as it is."""
    console = Console(file=io.StringIO(), width=WIDEST, force_terminal=False, color_system=None)
    console.print(table, markup=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines).rstrip()
