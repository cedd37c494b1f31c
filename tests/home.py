"""The command line in this process, and small homes to run it in.

`tiny_home` is one finished study, made once for all workers: an empty folder in which somebody
types `pretrain` and `finetune`, then the rest. Tests only read it; what changes a run works on a
copy.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from filelock import FileLock

from dsa_sandbox import registry
from dsa_sandbox.cli.main import run_app
from dsa_sandbox.listener import Listener

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent / "dsa-sandbox"
STREAM = ROOT / "examples" / "stream.jsonl"
ANCHOR = ROOT / "examples" / "anchor.py"

# the smallest networks that come to know facts of the test families: 80 to 110 of 120 after 300
# steps, a handful after 150
TINY = """
[model]
num_layers = 1
width = 96
num_heads = 4
ffn_width = 128
context = 104
num_kept = 12
[data]
num_stories = 3000
num_validation = 40
practice_share = 0.0
reading_share = 0.0
[train]
steps = 300
tokens_per_step = 512
learning_rate = 1e-2
dense_fraction = 0.8
[finetune]
learning_rate = 1.2e-3
max_steps = 6
check_every = 3
[eval]
num_heldout = 8
pairs = 20
recall_items = 4
stories = 4
"""
TINY_EWC = ("--set", "ewc.passes=8", "--set", "ewc.task_passes=4")

# networks that know nothing, for what is not about language
QUICK = [
    part
    for text in (
        "model.num_layers=1",
        "model.width=32",
        "model.num_heads=4",
        "model.ffn_width=64",
        "model.context=104",
        "model.num_kept=12",
        "data.num_stories=60",
        "data.num_validation=4",
        "train.steps=6",
        "train.tokens_per_step=128",
        "train.log_every=1",
        "machine.threads=1",
    )
    for part in ("--set", text)
]

# measurements that only some tests are about
BRIEF = [
    part
    for text in (
        "eval.num_heldout=2",
        "eval.pairs=4",
        "eval.recall_items=2",
        "eval.stories=0",
        "eval.recovery_tasks=0",
    )
    for part in ("--set", text)
]
# what a file in the working folder may be named like
SHADOWS = ("random", "tokenizers", "typing", "dsa_sandbox")


class Answer(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def run(self) -> Path:
        """The run whose path is all of stdout."""
        assert self.code == 0, self.err
        path = Path(self.out.removesuffix("\n"))
        assert (path / "manifest.json").is_file(), self.out
        return path

    @property
    def value(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.code == 0, self.err
        return strict_json(self.out)

    @property
    def problem(self) -> str:
        """What the user is told to fix: a line each, and nothing on stdout."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == ""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert lines, self.err
        return "\n".join(lines)


def strict_json(text: str) -> dict[str, Any]:
    """One object in one line; NaN and Infinity are refused."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = text.splitlines()
    value = json.loads(line, parse_constant=refuse)
    assert value["schema"] == 1
    return value


@contextlib.contextmanager
def same_signals() -> Iterator[None]:
    """Signal handlers are put back."""
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {name: signal.getsignal(name) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def cli(*arguments: object) -> Answer:
    """Run a command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), same_signals():
        code = run_app([str(argument) for argument in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


class StopAfter(Listener):
    """Asks to stop, as Ctrl-C does, at the n-th progress of the work called `label`."""

    def __init__(self, number: int, label: str = "") -> None:
        self.left, self.label = number, label
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, label: str, done: int, total: int, detail: str = "") -> None:
        if label.startswith(self.label):
            self.left -= 1
            if self.left == 0:
                self.stop_signal = int(signal.SIGINT)


class TinyHome(NamedTuple):
    """A finished study: the folder it was typed in, its runs, and what each command said."""

    folder: Path
    said: dict[str, Answer]

    @property
    def home(self) -> Path:
        return self.folder / "runs"

    @property
    def config(self) -> Path:
        return self.folder / "tiny.toml"

    def copy(self, folder: Path) -> "TinyHome":
        """The same study in a folder that nobody else has."""
        return TinyHome(Path(shutil.copytree(self.folder, folder)), self.said)

    def run(self, name: str) -> Path:
        """The run of a command, absolute."""
        path = self.folder / self.said[name].out.removesuffix("\n")
        assert (path / "manifest.json").is_file(), path
        return path


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With `folder` as the working directory, and no home in the environment."""
    home = os.environ.pop("DSA_SANDBOX_HOME", None)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        if home is not None:
            os.environ["DSA_SANDBOX_HOME"] = home


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]
) -> Path:
    """A folder that `make` has filled, once for all workers of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with FileLock(root / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed halfway
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def make_tiny_home(folder: Path) -> None:
    """Type the commands of a study; `said.json` keeps what each of them said."""
    (folder / "tiny.toml").write_text(TINY, "utf-8")
    said: dict[str, Answer] = {}

    def type_in(name: str, *arguments: str) -> None:
        said[name] = cli(*arguments)
        assert said[name].code == 0, f"{name}: {said[name].err}"

    with inside(folder):
        config = ("--config", "tiny.toml")
        type_in("pretrain dsa", "pretrain", "--arch", "dsa", *config)
        type_in(
            "first finetune", "finetune", "--strategy", "ewc", "--count", "2", *config, *TINY_EWC
        )
        type_in("pretrain dense", "pretrain", "--arch", "dense", *config)
        type_in("make-tasks", "make-tasks", "--count", "3")
        for strategy in ("sgd", "ewc", "acft"):
            more = TINY_EWC if strategy == "ewc" else ()
            type_in(strategy, "finetune", "--strategy", strategy, "--arch", "dsa", *config, *more)
    (folder / "said.json").write_text(json.dumps(said), "utf-8")


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyHome]:
    """The finished study; an error at the end if a test has written there."""
    folder = made_once(tmp_path_factory, "tiny", make_tiny_home)
    before = snapshot(folder)
    said = json.loads((folder / "said.json").read_text("utf-8"))
    yield TinyHome(folder, {name: Answer(*answer) for name, answer in said.items()})
    now = snapshot(folder)
    changed = {path for path in now.keys() | before if now.get(path) != before.get(path)}
    assert not changed, changed


def with_cache(home: Path, other: Path) -> Path:
    """A new home with what another has read and packed."""
    shutil.copytree(other / "cache", home / "cache")
    return home


def make_warm_cache(home: Path) -> None:
    assert cli("build", "--home", home, *QUICK).code == 0


@pytest.fixture(scope="session")
def warm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the packed text of QUICK networks."""
    return made_once(tmp_path_factory, "warm", make_warm_cache) / "cache"


@pytest.fixture
def quick_home(tmp_path: Path, warm_cache: Path) -> Path:
    """A home without runs in which QUICK networks are made in no time."""
    return with_cache(tmp_path / "home", warm_cache.parent)


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder holds files named like modules; each leaves a trace if it is run."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'sprung')!r}, 'a').write('{name}')\n"
        )
    monkeypatch.chdir(folder)
    return tmp_path / "sprung"


@pytest.fixture
def forget_includes() -> Iterator[None]:
    """Afterwards, what the test has included is not there any more."""
    yield
    forget()


def forget() -> None:
    """As if a new process began: nothing has been included in it."""
    for kind in (registry.strategies, registry.families, registry.archs, registry.plots):
        for name in kind.entries.keys() - kind.builtin.keys():
            del kind.entries[name]
    for name in registry.archs.facts.keys() - registry.archs.builtin.keys():
        del registry.archs.facts[name]
    for name in [name for name in sys.modules if name.startswith(registry.INCLUDED)]:
        del sys.modules[name]
