"""Text within a width: lines fold between words, tables split into narrower ones; none is cut."""

import io
import textwrap

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

WIDEST = 300  # columns, more than any table has
LEAST_PROSE = 20  # columns that a last column of words needs to be readable


def folded(text: str, width: int) -> str:
    """The lines folded between words at a width, the folded parts four columns deeper."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        lines += wrapped(line, width, indent) or [""]
    return "\n".join(lines)


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """The text in lines; a word that is wider than the width (a path, a name) stays whole."""
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        replace_whitespace=False,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )


def plain(gap: int = 1) -> Table:
    """An empty table without box; `gap` columns stand between its columns."""
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, gap, 0, 0))
    table.show_edge = False
    return table


class Columns:
    """The texts of a table by column, with their widths."""

    def __init__(self, table: Table) -> None:
        self.gap = table.padding[1]
        self.heads = [str(column.header) for column in table.columns]
        self.cells = [[str(cell) for cell in column.cells] for column in table.columns]
        self.right = [column.justify == "right" for column in table.columns]

    @property
    def widths(self) -> list[int]:
        """Width of each column."""
        found = []
        for head, cells in zip(self.heads, self.cells):
            found.append(max(text_width(text) for text in [head, *cells]))
        return found

    @property
    def width(self) -> int:
        """Width of the whole table."""
        return sum(self.widths) + self.gap * (len(self.heads) - 1)

    def fold_heads(self) -> None:
        """Fold each head to the width of its cells, or of its longest word."""
        for number, (head, cells) in enumerate(zip(self.heads, self.cells)):
            longest = max((cell_len(word) for word in head.split()), default=1)
            room = max([longest, *(text_width(cell) for cell in cells)])
            self.heads[number] = "\n".join(wrapped(head, room))

    def fold_last(self, width: int) -> bool:
        """Fold the words of the last column into the rest of the width; False without room."""
        room = width - self.width + self.widths[-1]
        words = [word for cell in self.cells[-1] for word in cell.split()]
        longest = max((cell_len(word) for word in words), default=0)
        if len(self.heads) < 2 or self.right[-1] or room < max(LEAST_PROSE, longest):
            return False
        self.cells[-1] = ["\n".join(wrapped(cell, room)) for cell in self.cells[-1]]
        return True

    def text(self, numbers: list[int] | None = None) -> str:
        """A table of the columns with these numbers (default: all), as plain text."""
        table = plain(self.gap)
        shown = range(len(self.heads)) if numbers is None else numbers
        for number in shown:
            table.add_column(
                self.heads[number],
                justify="right" if self.right[number] else "left",
                no_wrap=True,
            )
        for row in zip(*(self.cells[number] for number in shown)):
            table.add_row(*row)
        return printed(table)


def text_width(text: str) -> int:
    """Columns of the widest line of a text."""
    return max(cell_len(line) for line in text.split("\n"))


def rendered(table: Table, width: int = WIDEST) -> str:
    """The table as plain text, in another shape where it is too wide.

    Heads fold first, then the words of the last column. Otherwise the table becomes several that
    all begin with the first column or, where no figure fits beside it, a line for each figure.
    """
    columns = Columns(table)
    if columns.width <= width:
        return columns.text()
    unfolded = columns.heads.copy()
    columns.fold_heads()
    if columns.width <= width or columns.fold_last(width):
        return columns.text()
    widths = columns.widths
    if widths[0] + columns.gap + max(widths[1:], default=0) > width:
        columns.heads = unfolded
        return one_line_each(columns, width)
    parts: list[list[int]] = []
    left = 0
    for number in range(1, len(widths)):
        needed = columns.gap + widths[number]
        if left < needed:
            parts.append([0])
            left = width - widths[0]
        parts[-1].append(number)
        left -= needed
    return "\n\n".join(columns.text(part) for part in parts)


def one_line_each(columns: Columns, width: int) -> str:
    """A line for each figure, below the text of the first column."""
    longest = max((cell_len(head) for head in columns.heads[1:]), default=0)
    lines = []
    for name, *values in zip(*columns.cells):
        lines.append(name)
        for head, value in zip(columns.heads[1:], values):
            line = f"  {head}{' ' * (longest - cell_len(head))}  {value}"
            lines += wrapped(line, width, " " * (longest + 4)) if value else []
    return "\n".join(lines)


def printed(table: Table) -> str:
    """The table as plain text, with no space at the ends of lines."""
    console = Console(file=io.StringIO(), width=WIDEST, force_terminal=False, color_system=None)
    console.print(table, markup=False)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines).rstrip()
