"""Tables as rows of text, from which a terminal and a Markdown page are written alike."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from dsa_sandbox.report.wrapping import Columns, plain, rendered

SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&])")  # what Markdown would read as markup within a cell


class Sheet(NamedTuple):
    """A table: a first column of names, then figures; `words` numbers further columns of words."""

    title: str  # empty where the text around the table says what it is
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()

    def text(self, width: int) -> str:
        """The table for a terminal; its columns move together where it is too wide."""
        columns = Columns(self.drawn(2))
        columns.fold_heads()
        table = rendered(self.drawn(2 if columns.width <= width else 1), width)
        return f"{self.title}\n\n{table}" if self.title else table

    def drawn(self, gap: int) -> Table:
        """The table with `gap` columns between its columns."""
        table = plain(gap)
        for number, head in enumerate(self.heads):
            justify = "left" if number in (0, *self.words) else "right"
            table.add_column(head, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """The table as Markdown, with the same cells; a title stands above it in bold."""
        lines = [self.heads, [self.rule(number) for number in range(len(self.heads))], *self.rows]
        escaped = [line if number == 1 else map(cell, line) for number, line in enumerate(lines)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in escaped)
        return f"**{cell(self.title)}**\n\n{table}" if self.title else table

    def rule(self, number: int) -> str:
        """The dashes below the head of a column, which align it."""
        return "---" if number in (0, *self.words) else "---:"


def cell(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
