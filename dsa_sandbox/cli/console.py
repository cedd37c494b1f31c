"""The terminal: results on stdout, all else on stderr; signals; errors in one line."""

import codecs
import contextlib
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

from dsa_sandbox.errors import Interrupted, RunFailed, reason
from dsa_sandbox.listener import Listener
from dsa_sandbox.runs.files import without_nan

PLAIN_EVERY_S = 5.0  # between progress lines where there is no terminal
LEAST_WIDTH = 40  # columns


# errors of the machine, not of this program
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES)


class ClosedPipe(Exception):
    """The reader of stdout has gone. Not an OSError, which Typer would turn into exit 1."""


class Terminal(Listener):
    """Notes as lines; progress as a bar on a terminal, elsewhere as a line now and then."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.board: Any = None
        self.task: Any = None
        self.told_s = time.monotonic()
        self.deferring = False
        self.live = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "") and not quiet

    def note(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        self._line(f"warning: {text}")

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        if self.quiet:
            return
        if self.live:
            self._draw(label, done, total, detail)
            if done == total:
                self.close()
        elif time.monotonic() - self.told_s >= PLAIN_EVERY_S or done == total:
            self.told_s = time.monotonic()
            self._line(f"{label} {done}/{total} {detail}".rstrip())

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal sets `stop_signal`: the step ends and the state is saved."""
        self.deferring = True
        try:
            yield
        finally:
            self.deferring = False
            self.close()

    def draw(self, text: Callable[[int, int], str] | None) -> None:
        """Keep a text in view below the notes; None removes it."""
        if not self.live:
            return
        if text is None:
            if self.board is not None:
                self.board.stop()
                self.board = None
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self.board is None:
            console = Console(stderr=True, highlight=False)
            self.board = Live(console=console, auto_refresh=False, transient=True)
            self.board.start()
        size = self.board.console.size
        self.board.update(Text(text(size.width, size.height), no_wrap=True), refresh=True)

    def close(self) -> None:
        """Remove the progress bar and the text in view."""
        self.draw(None)
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _line(self, text: str) -> None:
        if (
            sys.stderr.isatty()
        ):  # in a file, one note stays one line, so that it can be searched for
            from dsa_sandbox.report.wrapping import folded

            text = folded(text, width_of(sys.stderr))
        shown = self.bar or self.board
        if shown is not None:
            shown.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _draw(self, label: str, done: int, total: int, detail: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None),
                TextColumn(
                    "{task.completed:.0f}/{task.total:.0f} {task.fields[detail]}", markup=False
                ),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task(label, total=total, detail=detail)
        self.bar.update(self.task, description=label, completed=done, total=total, detail=detail)


def catch_signals(terminal: Terminal) -> None:
    """The first signal stops the work as soon as its state is saved; a second one ends at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if terminal.stop_signal:
            os._exit(128 + number)
        terminal.stop_signal = number
        if not terminal.deferring:
            raise Interrupted(number)
        say("\nsaving; press Ctrl-C again to quit at once")

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handle)


def prepare_streams() -> None:
    """Let stdout and stderr take any character; a closed stream is replaced by the null device."""
    codecs.register_error("spelled", spelled)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="spelled")


def spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """A character that the encoding lacks: the byte of an undecodable path, or `\\u00e9`."""
    assert isinstance(error, UnicodeEncodeError)
    one = UnicodeEncodeError(
        error.encoding, error.object, error.start, error.start + 1, error.reason
    )
    try:
        return codecs.lookup_error("surrogateescape")(one)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(one)


def emit(text: str, end: str = "\n") -> None:
    """Print a result on stdout; ClosedPipe if its reader has gone, RunFailed on a full disk."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError as error:
        raise ClosedPipe from error
    except OSError as error:
        raise RunFailed(f"stdout: cannot be written: {reason(error)}") from error


def emit_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout: null for NaN, ASCII where stdout is not UTF-8."""
    emit(one_line({"schema": 1, **without_nan(value)}, sys.stdout))


def one_line(value: dict[str, Any], stream: TextIO) -> str:
    """The object as JSON in characters that the stream can encode."""
    text = json.dumps(value, ensure_ascii=not has_unicode(stream), allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path that is not valid UTF-8
        return json.dumps(value, allow_nan=False)
    return text


def say(text: str) -> None:
    """Print a line on stderr. A full disk does not stop the work; BrokenPipeError does."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        silence(sys.stderr)


def report_error(lines: list[str], exit_code: int, as_json: bool) -> None:
    """Print the problems on stderr: one line each, or one JSON object."""
    if as_json:
        error = {"schema": 1, "error": {"messages": lines, "exit_code": exit_code}}
        say(one_line(error, sys.stderr))
    else:
        for line in lines:
            say(f"error: {line}")


def forget_unwritten() -> None:
    """Silence streams that cannot be flushed: Python would report them once more as it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            silence(stream)


def silence(stream: TextIO) -> None:
    """Redirect a stream to the null device, with the text that it has not written yet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def has_colour(stream: Any) -> bool:
    """Whether to use colour: on a terminal that is not `dumb`, without NO_COLOR."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def has_unicode(stream: Any) -> bool:
    """Whether the stream encodes all of Unicode."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def width_of(stream: Any) -> int:
    """Columns to write in: COLUMNS, else the terminal's, else 80; at least 40, for charts."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isascii() and asked.isdigit() and 0 < len(asked) < 6 and int(asked):
        return max(int(asked), LEAST_WIDTH)
    try:
        return max(os.get_terminal_size(stream.fileno()).columns or 80, LEAST_WIDTH)
    except (OSError, ValueError):
        return 80
