"""What a terminal cannot say, has no room for, or nobody reads."""

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import IO, NamedTuple, TextIO

import pytest
from home import BIN, QUICK, TinyHome, same_signals, strict_json

from dsa_sandbox.cli import console
from dsa_sandbox.cli.main import run_app
from dsa_sandbox.runs.folder import Run

ENCODINGS = ("ascii", "cp1252", "utf-8")
# only a process of its own has another locale: there paths, too, are bytes that are no text
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


class Spoken(NamedTuple):
    """What a command left, its streams as bytes."""

    code: int
    out: bytes
    err: bytes


def spoken(
    *arguments: object, environment: dict[str, str] | None = None, stdout: IO[bytes] | None = None
) -> Spoken:
    """The command in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    done = subprocess.run(
        [str(part) for part in (BIN, *arguments)],
        env=kept | (environment or {}),
        stdout=stdout or subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return Spoken(done.returncode, done.stdout or b"", done.stderr)


def written(*arguments: object, encoding: str, stderr: TextIO | None = None) -> Spoken:
    """The command in this process, on streams that can say only so much."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(out, encoding)),
        contextlib.redirect_stderr(stderr or io.TextIOWrapper(err, encoding)),
        same_signals(),
    ):
        console.prepare_streams()
        code = run_app([str(argument) for argument in arguments])
        return Spoken(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def snowy(tiny_home: TinyHome, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose name is not ASCII, with a base whose stories end in a snowman."""
    import shutil

    from dsa_sandbox.runs import files as store

    home = tmp_path_factory.mktemp("sn\u00f6w\u2603") / "runs"
    run = Run(Path(shutil.copytree(tiny_home.run("pretrain dense"), home / "pretrain-snow")))
    text = (run.path / "tokenizer.json").read_text("utf-8")
    (run.path / "tokenizer.json").write_text(text.replace('" a":', '" \u2603\\u00e9":'), "utf-8")
    files = run.manifest["files"] | {
        "tokenizer.json": store.file_digest(run.path / "tokenizer.json")
    }
    run.update(files=files)
    return home


def test_stories_are_told_on_any_terminal(snowy: Path) -> None:
    arguments = ("generate", "--home", snowy, "--temperature", "0", "--max-tokens", "30")
    told = (*arguments, "--prompt", "Once upon")
    for encoding in ENCODINGS:
        plain, as_json = (written(*told, *more, encoding=encoding) for more in ((), ("--json",)))
        assert (plain.code, as_json.code) == (0, 0), plain.err + as_json.err
        rich = encoding == "utf-8"
        assert ("\u2603".encode() if rich else b"\\u2603") in plain.out
        assert as_json.out.isascii() == (not rich)
        assert "\u2603" in strict_json(as_json.out.decode())["stories"][0]
    foreign = spoken(*told, environment=LOCALE)
    assert foreign.code == 0, foreign.err
    assert b"\\u2603" in foreign.out


def test_finished_work_says_where_it_is_on_any_terminal(quick_home: Path) -> None:
    home = quick_home.rename(quick_home.parent / "h\u00f6me")
    build = ("build", *QUICK, "--home", home)

    def told(more: tuple[str, ...], encoding: str | None) -> bytes:
        """How the command names its run, new or not."""
        done = (
            written(*build, *more, encoding=encoding)
            if encoding
            else spoken(*build, *more, environment=LOCALE)
        )
        assert done.code == 0, done.err
        assert b"Traceback" not in done.err
        if more:
            text = done.out.decode("utf-8" if encoding == "utf-8" else "ascii")
            return os.fsencode(strict_json(text)["run"])
        return done.out.rstrip(b"\n")

    found = {
        (encoding, more): told(more, encoding)
        for encoding in (None, *ENCODINGS)
        for more in ((), ("--json",))
    }
    (run,) = home.glob("build-*")
    for (encoding, more), path in found.items():
        # plain, and with an encoding of its own, a path is for people to read
        if more or encoding in (None, "utf-8"):  # as a shell's $(...) takes it up again
            assert path == os.fsencode(run), (encoding, more)


def test_errors_and_notes_are_said_on_any_terminal(tmp_path: Path) -> None:
    for more in ([], ["--json"]):
        line = ("rm", "sn\u00f6w\u2603", "--home", tmp_path, *more)
        said = [written(*line, encoding=encoding) for encoding in ENCODINGS]
        for done in (*said, spoken(*line, environment=LOCALE)):
            assert (done.code, done.out) == (2, b"")
            assert b"no such run" in done.err
            assert b"Traceback" not in done.err


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")


@needs_full
@pytest.mark.parametrize(
    "arguments",
    [["ls", "presets"], ["ls", "presets", "--json"], ["--help"], ["--version"]],
    ids=" ".join,
)
def test_a_disk_that_is_full_under_stdout_is_one_line(arguments: list[str]) -> None:
    with FULL.open("wb") as full:
        done = spoken(*arguments, stdout=full)
    assert done.code == 3
    (line,) = done.err.decode().splitlines()
    assert "No space left on device" in line
    if "--json" in arguments:
        assert json.loads(line)["error"]["exit_code"] == 3


@needs_full
def test_work_goes_on_where_stderr_has_no_room(quick_home: Path) -> None:
    line = ("build", *QUICK, "--home", quick_home)
    with FULL.open("w", encoding="utf-8") as full:
        done = written(*line, encoding="utf-8", stderr=full)
    assert done.code == 0
    assert Run(Path(done.out.decode().strip())).finished
    refused = subprocess.run(f'"{BIN}" ls nothing 2>{FULL}', shell=True, capture_output=True)
    assert (refused.returncode, refused.stdout) == (2, b"")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed_is_no_error(closed: str) -> None:
    command = f'"{BIN}" ls presets {closed}>&-'
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
