"""A study runs its cells as child processes: output, failures and signals."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.listener import Listener
from dsa_sandbox.workers import Cell, run_cells

# a cell that says something and then works until it is asked to save and end
SAVES = """
import signal, sys, time
def save(number, frame):
    open(sys.argv[1], "a").write("saved ")
    sys.exit(128 + number)
for name in (signal.SIGINT, signal.SIGTERM):
    signal.signal(name, save)
open(sys.argv[1], "a").write("begun ")
print("works", file=sys.stderr, flush=True)
time.sleep(60)
"""
# a cell that waits for a file
WAITS = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.01)
"""


def start(cell: Cell) -> "subprocess.Popen[bytes]":
    """A cell is a Python program and its arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", *cell.arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


class Recorder(Listener):
    """Keeps notes, and may stop or fail at a note that contains a text."""

    def __init__(self, stop_at: str = "", fail_at: str = "") -> None:
        self.notes: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.is_deferred = False
        self.stop_at, self.fail_at = stop_at, fail_at

    def note(self, text: str) -> None:
        assert self.is_deferred
        self.notes.append(text)
        self.threads.add(threading.current_thread())
        if self.stop_at and self.stop_at in text:
            self.stop_signal = int(signal.SIGINT)
        if self.fail_at and self.fail_at in text:
            raise BrokenPipeError

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        self.is_deferred = True
        yield
        self.is_deferred = False


def test_a_study_reads_whatever_its_cells_print() -> None:
    code = "import sys; b = sys.stderr.buffer; b.write('gr\\u00fc\\u00df \\u2603'.encode()); "
    code += "b.write(b' \\xff\\n'); b.flush(); sys.stdout.buffer.write(b'/a/\\xc3\\xbc\\xff\\n')"
    recorder = Recorder()
    paths = run_cells([Cell("one", [code])], 1, start, recorder)
    assert os.fsencode(paths["one"]) == b"/a/\xc3\xbc\xff"
    assert recorder.notes == ["[one] gr\u00fc\u00df \u2603 \ufffd"]


def test_more_output_than_a_pipe_holds_does_not_stop_a_cell() -> None:
    code = "import sys\nprint('x' * 500_000, file=sys.stderr)\nprint('y' * 500_000)"
    recorder = Recorder()
    assert len(str(run_cells([Cell("one", [code])], 1, start, recorder)["one"])) == 500_000
    assert recorder.notes == ["[one] " + "x" * 500_000]


def test_notes_come_while_a_cell_runs_and_in_the_thread_of_the_caller(tmp_path: Path) -> None:
    """A notebook's widgets, and the bar of a terminal, belong to that thread."""

    class Answers(Recorder):
        def note(self, text: str) -> None:
            super().note(text)
            (tmp_path / "recorder").touch()

    code = f"import sys\nprint('begins', file=sys.stderr, flush=True)\n{WAITS}\nprint('/run')"
    recorder, finished = Answers(), []

    def note_finished(cell: Cell, path: Path) -> None:
        finished.append((cell.label, path))

    run_cells([Cell("one", [code, str(tmp_path / "recorder")])], 1, start, recorder, note_finished)
    assert recorder.notes == ["[one] begins"]
    assert recorder.threads == {threading.main_thread()}
    assert finished == [("one", Path("/run"))]


def test_no_more_cells_run_at_once_than_jobs_and_the_last_is_first(tmp_path: Path) -> None:
    code = "import sys, time; f = open(sys.argv[1], 'a'); f.write(sys.argv[2]); f.flush(); "
    code += "time.sleep(0.2); f.write('.'); print(sys.argv[2])"
    cells = [Cell(name, [code, str(tmp_path / "order"), name]) for name in "abc"]
    paths = run_cells(cells, 1, start, Recorder())
    assert (tmp_path / "order").read_text() == "c.b.a."
    assert {label: str(path) for label, path in paths.items()} == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("print('error: a=1: no', file=sys.stderr); sys.exit(2)", UserError, "bad: a=1: no"),
        ("print('error: disk', file=sys.stderr); sys.exit(3)", RunFailed, "bad: disk"),
        ("raise ValueError('x')", RunFailed, "bad ended with code 1: dsa-sandbox "),
    ],
)
def test_a_failure_ends_the_other_cells_after_they_have_saved(
    code: str, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    said = str(tmp_path / "said")
    cells = [Cell("bad", [WAITS + code, said]), Cell("good", [SAVES, said])]
    with pytest.raises(kind, match=f"^{message}"):
        run_cells(cells, 2, start, Recorder())
    assert (tmp_path / "said").read_text() == "begun saved "


def test_a_signal_is_passed_on_once_and_all_cells_are_waited_for(tmp_path: Path) -> None:
    cells = [Cell(name, [SAVES, str(tmp_path / name)]) for name in ("one", "two", "three")]
    recorder = Recorder(stop_at="[two] works")
    with pytest.raises(Interrupted) as raised:
        run_cells(cells, 2, start, recorder)
    assert raised.value.exit_code == 130
    assert (tmp_path / "two").read_text() == "begun saved "
    assert not (tmp_path / "one").exists()  # it waited for a place and was not started


def test_a_signal_while_no_cell_waits_is_an_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_cells(
            [Cell("one", [SAVES, str(tmp_path / "said")])], 1, start, Recorder(stop_at="works")
        )
    assert (tmp_path / "said").read_text() == "begun saved "


def test_cells_end_where_nobody_reads_their_notes(tmp_path: Path) -> None:
    """`dsa-sandbox run 2>&1 | head`: the study ends and leaves no process behind."""
    with pytest.raises(BrokenPipeError):
        run_cells(
            [Cell("one", [SAVES, str(tmp_path / "said")])], 1, start, Recorder(fail_at="works")
        )
    assert (tmp_path / "said").read_text() == "begun saved "
