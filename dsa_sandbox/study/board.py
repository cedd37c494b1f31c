"""The progress of a study: a table of cells on a terminal, plain lines elsewhere."""

import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from dsa_sandbox.listener import Listener
from dsa_sandbox.study.cells import StudyCell

PLAIN_EVERY_S = 60.0  # between lines that say how far the study is, where there is no terminal
DRAW_EVERY_S = 0.5
LEFT_TO_STEPS = 40  # columns of the table beside the names of cells
AROUND = 3  # lines of the terminal that are left to notes
# a line of progress of a cell: what is done, of how many, the rest
PROGRESS = re.compile(r"^\S.*? (\d+)/(\d+)(?: (.*))?$")
STATES = ("running", "failed", "done", "to do")


@dataclass
class Row:
    """A cell of the table."""

    kind: str
    expected_s: float | None
    state: str = "to do"
    step: str = ""
    share: float = 0.0
    began_s: float = 0.0
    took_s: float = 0.0

    def left_s(self, now_s: float) -> float | None:
        """Seconds until the cell is done; None where nobody can tell."""
        if self.state in ("done", "failed"):
            return 0.0
        if self.state == "to do":
            return self.expected_s
        spent_s = now_s - self.began_s
        if self.expected_s is None and self.share <= 0.02:
            return None
        by_share = spent_s / self.share - spent_s if self.share > 0.02 else None
        by_others = None if self.expected_s is None else max(0.0, self.expected_s - spent_s)
        known = [left for left in (by_share, by_others) if left is not None]
        return sum(known) / len(known)


@dataclass
class Board(Listener):
    """Passes notes on, but keeps the progress of cells for the table."""

    inner: Listener
    jobs: int
    clock: Any = time.monotonic
    rows: dict[str, Row] = field(default_factory=dict)
    drawn_s: float = 0.0
    told_s: float = 0.0

    def plan(
        self,
        cells: Iterable[StudyCell],
        done: Mapping[str, str],
        expected_s: Mapping[str, float],
    ) -> None:
        """All cells of the study; `done`: states of those that have ended, seconds by kind."""
        for cell in cells:
            state = done.get(cell.label, "to do")
            self.rows[cell.label] = Row(cell.kind, expected_s.get(cell.kind), state)
        self.told_s = self.clock()

    @property
    def stop_signal(self) -> int:  # type: ignore[override]
        """The signal that the inner listener has received."""
        return self.inner.stop_signal

    def deferred(self) -> AbstractContextManager[None]:
        return self.inner.deferred()

    def warn(self, text: str) -> None:
        self.inner.warn(text)

    def note(self, text: str) -> None:
        """A note; a cell's line of progress changes the table instead."""
        label, _, line = text.removeprefix("[").partition("] ")
        row = self.rows.get(label) if text.startswith("[") else None
        if row is not None and (match := PROGRESS.match(line)):
            row.share = int(match[1]) / max(1, int(match[2]))
            rest = match[3] or ""
            done = "" if rest.startswith("task ") else f"{match[1]}/{match[2]} "
            row.step = f"{done}{rest}".rstrip()
            return
        if row is not None and self.inner.live and not line.startswith("warning: "):
            return
        self.inner.note(text)

    def idle(self) -> None:
        """Called often while cells are running: draw the table, or say how far the study is."""
        now_s = self.clock()
        if self.inner.live and now_s - self.drawn_s >= DRAW_EVERY_S:
            self.drawn_s = now_s
            self.inner.draw(self.table)
        elif not self.inner.live and now_s - self.told_s >= PLAIN_EVERY_S:
            self.told_s = now_s
            running = [(label, row) for label, row in self.rows.items() if row.state == "running"]
            steps = "; ".join(f"{label}: {row.step}" for label, row in running if row.step)
            self.inner.note(f"{self.summary()}{f' ({steps})' if steps else ''}")

    def close(self) -> None:
        """Remove the table."""
        self.inner.draw(None)

    def began(self, label: str) -> None:
        """A cell has been started."""
        row = self.rows.setdefault(label, Row(label, None))
        row.state, row.began_s, row.step, row.share = "running", self.clock(), "", 0.0

    def ended(self, label: str, state: str) -> None:
        """A cell is done or has failed; what it took tells how long others of its kind take."""
        row = self.rows.setdefault(label, Row(label, None))
        if row.state == "running":
            row.took_s = self.clock() - row.began_s
        row.state, row.step = state, ""
        taken = [r.took_s for r in self.rows.values() if r.kind == row.kind and r.took_s]
        for other in self.rows.values():
            if taken and other.kind == row.kind:
                other.expected_s = sum(taken) / len(taken)
        if not self.inner.live:
            self.inner.note(f"[{label}] {state}; {self.summary()}")

    def left_s(self) -> float | None:
        """Seconds until all is done with all jobs at work; None where a cell's time is unknown."""
        left = [row.left_s(self.clock()) for row in self.rows.values()]
        known = [one for one in left if one is not None]
        if not known or len(known) < len(left):
            return None
        return max(sum(known) / self.jobs, max(known))

    def counts(self) -> dict[str, int]:
        """Number of cells in each state."""
        found = [row.state for row in self.rows.values()]
        return {state: found.count(state) for state in STATES}

    def summary(self) -> str:
        """How far the study is, in one line."""
        counts = self.counts()
        failed = f", {counts['failed']} failed" if counts["failed"] else ""
        ended = counts["done"] + counts["failed"]
        left = duration(self.left_s())
        return (
            f"{ended} of {len(self.rows)} cells{failed}, {counts['running']} running, {left} left"
        )

    def table(self, width: int, height: int) -> str:
        """Running and failed cells, then the next ones, as many as fit, and a line for all."""
        room = max(3, height - AROUND - 2)
        groups = {state: [] for state in STATES}  # type: dict[str, list[tuple[str, Row]]]
        for label, row in self.rows.items():
            groups[row.state].append((label, row))
        chosen = [*groups["running"], *groups["failed"][-3:]]
        chosen += groups["done"][-3:] if len(chosen) + 3 < room else []
        chosen += groups["to do"]
        chosen = chosen[:room]
        longest = max((len(label) for label, _ in chosen), default=4)
        name = max(4, min(longest, width - LEFT_TO_STEPS))
        lines = [f"{'cell':<{name}}  {'state':<7}  {'left':>7}  step"]
        now_s = self.clock()
        for label, row in chosen:
            left = "" if row.state in ("done", "failed") else duration(row.left_s(now_s))
            shown = label if len(label) <= name else label[: name - 1] + "~"
            lines.append(f"{shown:<{name}}  {row.state:<7}  {left:>7}  {row.step}".rstrip())
        return "\n".join(line[:width] for line in [*lines, self.summary()])


def duration(seconds: float | None) -> str:
    """Seconds as `40 s`, `12 min` or `3.5 h`; `?` where they are not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
