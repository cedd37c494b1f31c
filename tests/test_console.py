"""What a terminal cannot say, has no room for, or nobody reads."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from home import QUICK, TinyHome, strict_json
from test_cli import BIN

from dsa_sandbox.runs.folder import Run

POOR = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp1252"},
    {"PYTHONIOENCODING": "utf-8"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def spoken(
    *arguments: object, environment: dict[str, str], **streams: object
) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, whose terminal can say only so much."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    places = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [str(part) for part in (BIN, *arguments)], env=kept | environment, **places
    )  # type: ignore[call-overload, no-any-return]


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


@pytest.mark.parametrize("environment", POOR, ids=str)
def test_stories_are_told_on_any_terminal(environment: dict[str, str], snowy: Path) -> None:
    arguments = ("generate", "--home", snowy, "--temperature", "0", "--max-tokens", "30")
    prompt = ("--prompt", "Once upon")
    plain = spoken(*arguments, *prompt, environment=environment)
    assert plain.returncode == 0, plain.stderr
    rich = environment.get("PYTHONIOENCODING") == "utf-8"
    if rich:
        assert "\u2603" in plain.stdout.decode()
    else:
        assert b"\\u2603" in plain.stdout
    answer = spoken(*arguments, *prompt, "--json", environment=environment)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.isascii() == (not rich)
    assert "\u2603" in strict_json(answer.stdout.decode())["stories"][0]


@pytest.mark.parametrize("environment", POOR, ids=str)
@pytest.mark.parametrize("as_json", [False, True])
def test_finished_work_says_where_it_is_on_any_terminal(
    environment: dict[str, str], as_json: bool, tmp_path: Path, warm_cache: Path
) -> None:
    home = tmp_path / "h\u00f6me"
    home.mkdir()
    (home / "cache").symlink_to(warm_cache, target_is_directory=True)
    more = ["--json"] if as_json else []
    done = spoken("build", *QUICK, "--home", home, *more, environment=environment)
    assert done.returncode == 0, done.stderr
    (run,) = home.glob("build-*")
    if as_json:
        rich = environment.get("PYTHONIOENCODING") == "utf-8"
        told = os.fsencode(strict_json(done.stdout.decode("utf-8" if rich else "ascii"))["run"])
    else:
        told = done.stdout.rstrip(b"\n")
    if "PYTHONIOENCODING" not in environment:  # as a shell's $(...) takes it up again
        assert told == os.fsencode(run)
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("environment", POOR, ids=str)
def test_errors_and_notes_are_said_on_any_terminal(
    environment: dict[str, str], tmp_path: Path
) -> None:
    for more in ([], ["--json"]):
        done = spoken("eval", "sn\u00f6w\u2603", "--home", tmp_path, *more, environment=environment)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"no such run" in done.stderr
        assert b"Traceback" not in done.stderr


FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")


@needs_full
@pytest.mark.parametrize(
    "arguments",
    [["settings"], ["settings", "--json"], ["--help"], ["ls", "presets"], ["--version"]],
    ids=" ".join,
)
def test_a_disk_that_is_full_under_stdout_is_one_line(arguments: list[str]) -> None:
    with FULL.open("wb") as full:
        done = spoken(*arguments, environment={}, stdout=full)
    assert done.returncode == 3
    (line,) = done.stderr.decode().splitlines()
    assert "No space left on device" in line
    if "--json" in arguments:
        assert json.loads(line)["error"]["exit_code"] == 3


@needs_full
def test_work_goes_on_where_stderr_has_no_room(quick_home: Path) -> None:
    with FULL.open("wb") as full:
        done = spoken("build", *QUICK, "--home", quick_home, environment={}, stderr=full)
        assert done.returncode == 0
        assert Run(Path(done.stdout.decode().strip())).finished
        refused = spoken("ls", "nothing", environment={}, stderr=full)
    assert (refused.returncode, refused.stdout) == (2, b"")


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed_is_no_error(closed: str) -> None:
    command = f'"{BIN}" ls presets {closed}>&-'
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
