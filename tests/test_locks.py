"""One writer at a time, whatever the file system offers; who only reads takes no lock."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from home import BRIEF, QUICK, TinyHome, cli, snapshot, with_cache

from dsa_sandbox import children, locks
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs import folder as store
from dsa_sandbox.runs import job
from dsa_sandbox.runs.folder import Run

# `soft` makes every native lock fail as a file system without locks does
HELPER = """
import contextlib, errno, fcntl, os, sys, time
from pathlib import Path
from dsa_sandbox import locks
from dsa_sandbox.errors import UserError

what, soft, folders = sys.argv[1], sys.argv[2] == "soft", list(map(Path, sys.argv[3:]))

def flock(*arguments):
    raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

if soft:
    fcntl.flock = flock

if what == "hold":
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.enter_context(locks.only_writer(folder))
        print("held", flush=True)
        time.sleep(60)
elif what == "asks":
    print(locks.being_written(folders[0]))
elif what == "races":
    for folder in folders:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            with locks.only_writer(folder):
                inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                time.sleep(0.3)  # longer than the other is patient
                os.close(inside)
                os.unlink(folder / "inside")
            print("wrote", flush=True)
        except UserError as error:
            print("refused", flush=True)
"""
KINDS = ("native", "soft")


def process(what: str, kind: str, *folders: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", HELPER, what, kind, *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def ended(child: "subprocess.Popen[str]") -> str:
    """The last line of a process that ended well."""
    out, err = child.communicate("\n", timeout=60)
    assert child.returncode == 0, err
    return out.splitlines()[-1]


def killed(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()


@pytest.fixture
def softly(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process, too, meets a file system without locks."""
    fcntl = pytest.importorskip("fcntl")

    def flock(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_a_process_holds_is_refused_and_its_holder_named(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "soft":
        request.getfixturevalue("softly")
    holder = process("hold", kind, tmp_path)
    assert first_line(holder) == "held"
    assert locks.being_written(tmp_path)
    assert ended(process("asks", kind, tmp_path)) == "True"
    with pytest.raises(UserError, match="another process writes here") as refused:
        locks.only_writer(tmp_path).__enter__()
    assert f"pid {holder.pid} on {socket.gethostname()}, for " in str(refused.value)
    killed(holder)
    assert not locks.being_written(tmp_path)
    assert ended(process("asks", kind, tmp_path)) == "False"


@pytest.mark.parametrize("kind", KINDS)
def test_the_lock_of_a_process_that_was_killed_is_taken_over(kind: str, tmp_path: Path) -> None:
    holder = process("hold", kind, tmp_path)
    assert first_line(holder) == "held"
    killed(holder)
    assert (tmp_path / ".softlock").exists() == (kind == "soft")
    after = process("hold", kind, tmp_path)
    assert first_line(after) == "held"
    assert f"pid {after.pid}" in locks.who_holds(tmp_path)
    killed(after)


@pytest.mark.usefixtures("softly")
def test_a_soft_lock_of_another_host_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".softlock").write_text("123\nelsewhere\n", "utf-8")
    with pytest.raises(UserError, match="another process writes here") as refused:
        locks.only_writer(tmp_path).__enter__()
    assert "pid 123 on elsewhere, for " in str(refused.value)
    assert locks.being_written(tmp_path)
    assert (tmp_path / ".softlock").read_text("utf-8") == "123\nelsewhere\n"


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_never_both_take_over_a_stale_lock(kind: str, tmp_path: Path) -> None:
    """Each says so itself: a file that must not be there is made while the lock is held."""
    folders = [tmp_path / str(number) for number in range(8)]
    for folder in folders:
        folder.mkdir()
    dead = process("hold", kind, *folders)
    assert first_line(dead) == "held"
    killed(dead)
    both = [process("races", kind, *folders) for _ in range(2)]
    for _ in folders:
        assert [first_line(child) for child in both] == ["ready", "ready"]
        for child in both:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        said = [first_line(child) for child in both]  # nothing where both were inside
        assert "wrote" in said
        assert set(said) <= {"wrote", "refused"}
    for child in both:
        killed(child)


def test_asking_whether_a_run_is_written_makes_no_file(tmp_path: Path) -> None:
    assert not locks.being_written(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".lock").touch()
    before = snapshot(tmp_path)
    assert not locks.being_written(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_folder_that_refuses_a_lock_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".lock").mkdir()  # root may write anywhere, but not open this
    with pytest.raises(UserError, match=r"cannot be written: Is a directory"):
        locks.only_writer(tmp_path).__enter__()


# who only reads


def test_what_only_reads_changes_nothing_in_the_home(tiny_home: TinyHome, tmp_path: Path) -> None:
    home, base = tiny_home.copy(tmp_path / "tiny").home, tiny_home.run("pretrain dsa").name
    before = snapshot(home)
    for command in (
        ["eval"],
        ["eval", "--all", "--json"],
        ["eval", base],
        ["eval", base, "--selection", "window"],
        ["eval", base, "--tasks", tiny_home.run("make-tasks").name],
        ["plot"],
        ["plot", "--kind", "indexer"],
        ["ls"],
        ["generate", "--max-tokens", "3"],
        ["export", base, "--to", tmp_path / "exported"],
        ["rm", tiny_home.run("sgd").name, "--dry-run"],
    ):
        answer = cli(*command, "--home", home)
        assert answer.code == 0, answer.err
        assert snapshot(home) == before, command
    assert cli("settings").code == 0
    assert snapshot(home) == before


def test_a_base_is_measured_in_a_home_that_may_only_be_read(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    """As somebody who is not root, where we can become that: root may write anywhere."""
    script = """
import os, sys
from dsa_sandbox.cli.main import run_app

def measured():
    for command in (["eval", sys.argv[1]], ["ls"], ["plot"], ["eval"]):
        assert run_app([*command, "--home", "."]) == 0, command

measured()  # nobody else may read where Python lies: all is imported by now
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
assert not os.access(".", os.W_OK)
measured()
"""
    home = tiny_home.copy(tmp_path / "tiny").home
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    command = [sys.executable, "-c", script, tiny_home.run("pretrain dsa").name]
    try:
        for path in folders:
            path.chmod(0o555)
        done = subprocess.run(command, capture_output=True, text=True, cwd=home)
        assert done.returncode == 0, done.stderr
    finally:
        for path in folders:
            path.chmod(0o755)


# runs that two commands share


PRETRAIN = ["pretrain", "--arch", "dense", *QUICK]


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for child in found:
        child.kill()
        child.communicate()


def paused_build(home: Path) -> tuple[Path, "subprocess.Popen[bytes]"]:
    """A `build` that has begun its run and stands still, holding the lock."""
    script = """
import signal, os, sys
from dsa_sandbox.cli.main import run_app
from dsa_sandbox.runs import checkpoints

def stopped(run, model):
    os.kill(os.getpid(), signal.SIGSTOP)
    saved(run, model)

saved, checkpoints.save_model = checkpoints.save_model, stopped
sys.exit(run_app(sys.argv[1:]))
"""
    arguments = [str(part) for part in ("build", "--arch", "dense", *QUICK, "--home", home)]
    child = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child.pid, os.WUNTRACED | os.WNOHANG)
        if pid and os.WIFSTOPPED(status):
            break
        time.sleep(0.02)
    (run,) = home.glob("build-*")
    return run, child


def line_with(child: "subprocess.Popen[bytes]", text: str) -> str:
    assert child.stderr is not None
    for line in map(children.text_of, child.stderr):
        if text in line:
            return line
    raise AssertionError(f"was never said: {text}")


def test_a_build_that_another_command_makes_is_refused_to_its_like_and_waited_for_by_others(
    quick_home: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    run, builder = paused_build(quick_home)
    started.append(builder)
    problem = cli("build", "--arch", "dense", *QUICK, "--home", quick_home).problem
    assert f"{run}: another process writes here (pid {builder.pid}" in problem
    waiting = children.start([str(part) for part in (*PRETRAIN, "--home", quick_home)])
    started.append(waiting)
    line = line_with(waiting, "waiting for ")
    assert run.name in line
    assert f"pid {builder.pid} on {socket.gethostname()}" in line
    assert waiting.poll() is None
    os.kill(builder.pid, signal.SIGCONT)
    out, err = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, err
    assert list(Run(children.path_of(out)).manifest["parents"]) == [run.name]
    assert [path.name for path in quick_home.glob("build-*")] == [run.name]


def test_two_commands_in_an_empty_home_share_text_and_build(
    tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    shared = [str(part) for part in (*PRETRAIN, "--home", tmp_path / "home")]
    started += [children.start([*shared, "--set", f"train.steps={n}"]) for n in (6, 7)]
    for child in started:
        _, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
    assert len(list((tmp_path / "home").glob("build-*"))) == 1
    assert len(list((tmp_path / "home" / "cache").glob("tokens-*/done.json"))) == 1


def test_two_arms_in_a_home_without_tasks_share_the_stream(
    tiny_home: TinyHome, tmp_path: Path, started: list["subprocess.Popen[bytes]"]
) -> None:
    home, base = tmp_path / "home", tiny_home.run("pretrain dsa")
    with_cache(home, tiny_home.home)
    shared = ["finetune", str(base), "--home", str(home), "--config", str(tiny_home.config)]
    shared += ["--count", "2", "--set", "finetune.max_steps=1", *BRIEF]
    started += [children.start([*shared, "--strategy", name]) for name in ("sgd", "acft")]
    for child in started:
        _, err = child.communicate(timeout=240)
        assert child.returncode == 0, err
    assert len(list(home.glob("make-tasks-*"))) == 1
    assert len(list(home.glob("finetune-*"))) == 2


def test_a_run_that_was_finished_meanwhile_is_returned_as_it_is(
    quick_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at before, locked after it was made: what a command sees that came a moment late."""
    line = ("build", "--arch", "dense", *QUICK, "--home", quick_home)
    run = Run(cli(*line).run)
    before = snapshot(run.path)

    def opened_before(*arguments: Any, **more: Any) -> Any:
        return opened(*arguments, **more)._replace(finished=False)

    opened = job.open_run
    monkeypatch.setattr(job, "open_run", opened_before)
    answer = cli(*line)
    assert answer.run == run.path
    assert "already exists" in answer.err
    after = snapshot(run.path)
    hashed = [str(run.path / name) for name in run.manifest["files"]]
    assert [after[name] for name in hashed] == [before[name] for name in hashed]
    assert store.readable_manifest(run)["state"] == "finished"
