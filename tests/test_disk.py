"""A disk that refuses: one line says why, and nothing is lost."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from home import QUICK, cli
from quick_runs import EVERY_STEP, quick, resume, unfinished

from dsa_sandbox import locks
from dsa_sandbox.commands import pretrain
from dsa_sandbox.errors import RunFailed, reason
from dsa_sandbox.listener import Listener
from dsa_sandbox.runs import checkpoints
from dsa_sandbox.runs.files import write_atomic
from dsa_sandbox.runs.session import Session


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("4096 requested and 0 written"), "4096 requested and 0 written"),
        (OSError(), "OSError"),
        (OSError("two\nlines"), "two lines"),
        (ValueError("not a file"), "not a file"),
    ],
)
def test_a_reason_is_never_none(error: Exception, said: str) -> None:
    assert reason(error) == said
    outer = RunFailed("the outer words")
    outer.__cause__ = error
    assert reason(outer) == said
    assert reason(RunFailed("words alone")) == "words alone"


def test_a_save_that_fails_says_why_and_names_the_checkpoint_once(
    quick_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unfinished(quick_home)

    def refused(descriptor: int) -> None:
        raise OSError("4096 requested and 0 written")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(RunFailed) as failure:
        checkpoints.save_checkpoint(run, 4, {}, {"step": 4})
    final = run.path / "checkpoints" / "step-00000004"
    assert str(failure.value) == (
        f"{final}: cannot be saved: 4096 requested and 0 written; the last checkpoint is kept"
    )
    with pytest.raises(RunFailed, match="cannot be written: 4096 requested and 0 written"):
        write_atomic(run.path / "file", "text")


def test_text_that_cannot_be_packed_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object) -> None:
        raise OSError("4096 requested and 0 written")

    monkeypatch.setattr(np, "save", refused)
    answer = cli("build", "--home", tmp_path / "home", *QUICK)
    assert answer.code == 3
    assert answer.err.splitlines()[-1].endswith("cannot be written: 4096 requested and 0 written")


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_cannot_be_made_is_named(home: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for command in ("build", "pretrain"):
        problem = cli(command, "--home", tmp_path / home, *QUICK).problem
        assert f"home {tmp_path / home}: {tmp_path / 'file'} is a file" in problem
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def full(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FillDisk(Listener):
    """After the step, no file can be flushed to disk."""

    def __init__(self, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.step, self.monkeypatch = step, monkeypatch

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        if label == "pretrain" and done == self.step:
            self.monkeypatch.setattr(os, "fsync", full)


def test_a_save_that_fails_keeps_the_last_checkpoint(quick_home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunFailed) as failure:
        pretrain.pretrain(quick(EVERY_STEP), Session(quick_home, listener=FillDisk(4, patch)))
    assert failure.value.exit_code == 3
    (run,) = quick_home.glob("pretrain-*")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000003"]
    assert not list(quick_home.rglob("*.part"))
    assert not locks.being_written(run)
    answer = cli(*resume(quick_home))
    assert "resuming at step 3" in answer.err
    assert answer.run == run


def test_a_full_disk_ends_with_3_and_one_line(quick_home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        answer = cli("build", "--home", quick_home, *QUICK)
    assert (answer.code, answer.out) == (3, "")
    assert "No space left on device" in answer.err
    assert "Traceback" not in answer.err


def test_a_disk_that_fills_up_while_text_is_packed_ends_with_3(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "save", full)
        answer = cli("build", "--home", tmp_path / "home", *QUICK)
    assert (answer.code, answer.out) == (3, "")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")
    for name in ("fsync", "replace"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(RunFailed, match="No space"):
                write_atomic(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
