"""Runs the cells of a study as child processes, several at once.

Threads and not asyncio: `asyncio.run` is refused inside the running loop of a notebook, and a
listener's `stop_signal` has to be polled either way.
"""

import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dsa_sandbox import children
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.listener import Listener

POLL_S = 0.05


class Cell(NamedTuple):
    """One command of a study."""

    label: str  # unique within the study; notes begin with it
    arguments: list[str]  # of the command line, without `dsa-sandbox`


class Child:
    """The process of a cell. Two threads read its output, so that a full pipe never blocks it."""

    def __init__(self, cell: Cell, process: "subprocess.Popen[bytes]") -> None:
        self.cell, self.process = cell, process
        self.output: list[bytes] = []  # lines of stdout
        self.messages: list[str] = []  # lines of stderr
        self.num_reported = 0
        self.signalled = False
        self.readers = [
            threading.Thread(target=self.read_output),
            threading.Thread(target=self.read_messages),
        ]
        for reader in self.readers:
            reader.start()

    def read_output(self) -> None:
        """Collect stdout until it is closed."""
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            self.output.extend(stream)

    def read_messages(self) -> None:
        """Collect stderr until it is closed."""
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            self.messages.extend(map(children.text_of, stream))

    def report(self, listener: Listener) -> None:
        """Report new lines of stderr, except errors, to the listener, in the caller's thread."""
        new = self.messages[self.num_reported :]
        self.num_reported += len(new)
        for line in new:
            if not line.startswith("error: "):
                listener.note(f"[{self.cell.label}] {line}")

    def pass_on(self, number: int) -> None:
        """Send a signal to the child once: a second one would end it before it has saved."""
        if not self.signalled:
            self.process.send_signal(number)
            self.signalled = True

    def wait(self) -> int:
        """Wait for the process and for all of its output; return the exit code."""
        code = self.process.wait()
        for reader in self.readers:
            reader.join()
        return code


def run_cells(
    cells: Sequence[Cell],
    jobs: int,
    start: Callable[[Cell], "subprocess.Popen[bytes]"],
    listener: Listener,
    finished: Callable[[Cell, Path], None] = lambda cell, path: None,
    tolerated: Callable[[Cell, Exception], bool] = lambda cell, error: False,
) -> dict[str, Path]:
    """Run all cells, the last one first, at most `jobs` at once; the printed paths by label.

    The first failure stops the other children and is raised, unless it is `tolerated`: then its
    cell has no path, and the others go on. A signal is passed on to all children;
    Interrupted is raised when they have saved and ended.
    """
    waiting = list(cells)
    running: list[Child] = []
    paths: dict[str, Path] = {}
    num_failed = 0
    with listener.deferred():
        try:
            while len(paths) + num_failed < len(cells):
                while waiting and len(running) < jobs and not listener.stop_signal:
                    cell = waiting.pop()  # the last: sparse attention takes longest
                    running.append(Child(cell, start(cell)))
                if listener.stop_signal:
                    if not running:
                        raise Interrupted(listener.stop_signal)
                    for child in running:
                        child.pass_on(listener.stop_signal)
                for child in [*running]:
                    has_ended = child.process.poll() is not None
                    if has_ended:
                        child.wait()
                        running.remove(child)
                    child.report(listener)
                    if has_ended and child.process.returncode == 0:
                        paths[child.cell.label] = children.path_of(child.output[-1])
                        finished(child.cell, paths[child.cell.label])
                    elif has_ended and not listener.stop_signal:
                        if not tolerated(child.cell, error := failure(child)):
                            raise error
                        listener.note(f"[{child.cell.label}] {error}")
                        num_failed += 1
                listener.idle()
                time.sleep(POLL_S)
        finally:
            stop(running)
    return paths


def stop(running: Iterable[Child]) -> None:
    """Stop the children that are still running; each saves its state first."""
    for child in running:
        child.pass_on(signal.SIGTERM)
    for child in running:
        child.wait()


def failure(child: Child) -> Exception:
    """An exception with the child's error lines and exit code, or with the end of its stderr."""
    label, code = child.cell.label, child.process.returncode
    errors = [line for line in child.messages if line.startswith("error: ")]
    problems = [f"{label}: {line.removeprefix('error: ')}" for line in errors]
    if code == 2 and problems:
        return UserError(*problems)
    if code == 3 and problems:
        return RunFailed("\n".join(problems))
    command = shlex.join(["dsa-sandbox", *child.cell.arguments])
    tail = "\n".join(child.messages[-15:])
    return RunFailed(f"{label} ended with code {code}: {command}\n{tail}")
