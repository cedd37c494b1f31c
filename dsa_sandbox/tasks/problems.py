"""Problems of a file of task rows, grouped: one line for what many rows have in common."""

from typing import NamedTuple

LINES = 20  # most lines that are reported for one file
EACH = 3  # so many problems of one kind are reported one by one


class Problem(NamedTuple):
    """A problem of one row; problems of one `kind` have the same cause and the same remedy."""

    kind: str
    line: int
    field: str  # empty where the whole row is meant
    text: str

    def told(self) -> str:
        """Line, field and text."""
        field = f"{self.field}: " if self.field else ""
        return f"line {self.line}: {field}{self.text}"


def problem_lines(problems: list[Problem], num_rows: int, where: str) -> list[str]:
    """One line for each problem; for a kind that all rows have, or that is frequent, one in all.

    At most LINES lines.
    """
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        some = list(dict.fromkeys(problem for problem in problems if problem.kind == kind))
        rows = sorted({problem.line for problem in some})
        if len(rows) == num_rows > 1:
            lines.append(f"{where}: all {num_rows} rows, as {some[0].told()}")
        elif len(some) > EACH:
            rest = f"{len(some) - 1} more of this kind in {numbers_of(rows)}"
            lines.append(f"{where}: {some[0].told()} ({rest})")
        else:
            lines += [f"{where}: {problem.told()}" for problem in some]
    if len(lines) > LINES:
        rest = f"{len(lines) - LINES + 1} more problems"
        lines[LINES - 1 :] = [f"{where}: {rest}"]
    return lines


def numbers_of(lines: list[int]) -> str:
    """Line numbers in words, as in `lines 2 to 4, 9`; at most four runs of them."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line == runs[-1][-1] + 1:
            runs[-1].append(line)
        else:
            runs.append([line])
    told = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    more = ", ..." if len(told) > 4 else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(told[:4])}{more}"
