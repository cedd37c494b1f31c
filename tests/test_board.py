"""The table of a study's cells: states, steps, and how long it takes."""

from home import StopAfter

from dsa_sandbox.config.study_file import Arm
from dsa_sandbox.listener import Listener
from dsa_sandbox.study.board import Board, duration
from dsa_sandbox.study.cells import StudyCell


class Inner(Listener):
    """Keeps notes and the drawn text."""

    def __init__(self, *, live: bool) -> None:
        self.live, self.drawn = live, ""
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def draw(self, text: object) -> None:
        self.drawn = text(80, 12) if callable(text) else ""


def board_of(*, live: bool) -> tuple[Board, Inner, list[float]]:
    inner, now = Inner(live=live), [100.0]
    board = Board(inner, 2, clock=lambda: now[0])
    cells = [StudyCell(seed, "pretrain", Arm("dsa", "")) for seed in (1, 2, 3)]
    cells.append(
        StudyCell(3, "finetune", Arm("dsa", "acft", {"finetune.loss": "answer"}), "single")
    )
    board.plan(cells, {"1 pretrain dsa": "done"}, {"pretrain dsa": 60.0})
    return board, inner, now


def test_progress_of_a_cell_changes_its_row_and_is_no_note_on_a_terminal() -> None:
    board, inner, now = board_of(live=True)
    board.began("2 pretrain dsa")
    now[0] += 30
    board.note("[2 pretrain dsa] pretrain dsa 700/1400 loss 1.5")
    board.note("study: hello")
    board.idle()
    assert inner.notes == ["study: hello"]
    lines = inner.drawn.splitlines()
    assert lines[0].split() == ["cell", "state", "left", "step"]
    last = ["loss", "1.5"]
    assert lines[1].split() == ["2", "pretrain", "dsa", "running", "30", "s", "700/1400", *last]
    assert any("3 dsa acft single, finetune.loss=answer" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 12
    assert lines[-1] == "1 of 4 cells, 1 running, ? left"  # nobody knows what the arm takes


def test_what_a_cell_takes_tells_how_long_the_others_of_its_kind_take() -> None:
    board, inner, now = board_of(live=False)
    board.began("2 pretrain dsa")
    now[0] += 200
    board.ended("2 pretrain dsa", "done")
    assert inner.notes == ["[2 pretrain dsa] done; 2 of 4 cells, 0 running, ? left"]
    label = "3 dsa acft single, finetune.loss=answer"
    board.began(label)
    now[0] += 10
    board.ended(label, "failed")
    assert board.left_s() == 200
    assert board.summary() == "3 of 4 cells, 1 failed, 0 running, 3 min left"


def test_without_a_terminal_a_line_says_how_far_the_study_is_now_and_then() -> None:
    board, inner, now = board_of(live=False)
    board.began("2 pretrain dsa")
    board.note("[2 pretrain dsa] pretrain dsa 700/1400 loss 1.5")
    board.note("[2 pretrain dsa] from build-dsa-1")
    board.idle()
    now[0] += 61
    board.idle()
    told = "1 of 4 cells, 1 running, ? left (2 pretrain dsa: 700/1400 loss 1.5)"
    assert inner.notes == ["[2 pretrain dsa] from build-dsa-1", told]


def test_a_signal_reaches_the_cells_through_the_board() -> None:
    stopping = StopAfter(1)
    board = Board(stopping, 1)
    assert not board.stop_signal
    stopping.progress("", 0, 1)
    assert board.stop_signal


def test_durations_are_short() -> None:
    assert [duration(s) for s in (None, 12.4, 600, 7200)] == ["?", "12 s", "10 min", "2.0 h"]
