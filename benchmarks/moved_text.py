"""Text that is touched, moved, rewritten or removed under a study: the same figures, or one line.

    python benchmarks/moved_text.py --data FOLDER --preset mini

Bases of each seed are pre-trained once on a copy of FOLDER (train.txt, valid.txt). Then something
happens to the text, and strategies learn a task on both bases, from this folder or another.
Every arm must end byte-equal to that of the undisturbed study (weights, records, metrics), or be
refused in one line with exit 2. Prints a Markdown table; exits 1 where an arm did neither.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FILES = ("model.safetensors", "records.jsonl", "metrics.jsonl")
ARCHS = ("dense", "dsa")
STREAM = Path(__file__).parent.parent / "examples" / "stream.jsonl"
NUM_TASKS = 1
QUICK = (
    *("finetune.max_steps=2", "eval.num_heldout=8", "eval.full_every=5", "eval.recovery_tasks=0"),
    *("eval.stories=0", "eval.recall_items=1", "eval.pairs=1", "ewc.passes=16"),
)


class Study(NamedTuple):
    """Where things lie: `here` holds `text`, `elsewhere` a `text` of other stories."""

    root: Path
    options: list[str]
    seed: int
    strategies: list[str]

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def elsewhere(self) -> Path:
        return self.root / "elsewhere"

    def call(self, cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-m", "dsa_sandbox", *arguments, "--quiet"]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True)

    def bases(self, home: Path) -> dict[str, str]:
        """Pre-trained on `text`, as it is named in `here`."""
        found = {}
        for arch in ARCHS:
            given = ["pretrain", "--arch", arch, "--data", "text", "--home", str(home)]
            done = self.call(self.here, *given, "--seed", str(self.seed), *self.options)
            assert done.returncode == 0, done.stderr
            found[arch] = Path(done.stdout.strip()).name
        return found

    def arms(
        self, home: Path, bases: dict[str, str], cwd: Path, *more: str
    ) -> dict[tuple[str, str], tuple[bytes, ...] | str]:
        """Of each arm the bytes that it ended with, or the line that refused it."""
        ended: dict[tuple[str, str], tuple[bytes, ...] | str] = {}
        for arch, base in bases.items():
            for strategy in self.strategies:
                given = ["finetune", str(home / base), "--tasks", str(self.root / "tasks.jsonl")]
                given += ["--home", str(home)]
                sets = [part for text in QUICK for part in ("--set", text)]
                if strategy != "ewc":
                    sets = sets[:-2]
                done = self.call(cwd, *given, "--strategy", strategy, *sets, *more)
                lines = done.stderr.splitlines()
                if done.returncode == 0:
                    run = Path(cwd, done.stdout.strip())
                    ended[arch, strategy] = tuple((run / name).read_bytes() for name in FILES)
                elif done.returncode == 2 and len(lines) == 1 and not done.stdout:
                    ended[arch, strategy] = lines[0]
                else:
                    ended[arch, strategy] = f"exit {done.returncode}: {done.stderr}"
        return ended


def touched(study: Study, home: Path) -> None:
    for file in (study.here / "text").iterdir():
        os.utime(file)


def moved(study: Study, home: Path) -> None:
    (study.here / "text").rename(study.root / "moved")


def removed(study: Study, home: Path) -> None:
    shutil.rmtree(study.here / "text")


def rewritten(study: Study, home: Path) -> None:
    rewrite(study.here / "text")


def rewrite(folder: Path) -> None:
    """Other stories of the same length, with the old times."""
    for file in folder.iterdir():
        before = file.stat()
        file.write_bytes(file.read_bytes().replace(b"Tom", b"Kim").replace(b"Lily", b"Mary"))
        os.utime(file, (before.st_atime, before.st_mtime))


def forgotten(study: Study, home: Path) -> None:
    shutil.rmtree(home / "cache")


Event = Callable[[Study, Path], None]
EVENTS: tuple[tuple[str, tuple[Event, ...], str, str | None], ...] = (
    # what happened, by whom, where the arms are started, what they are told of the text
    ("nothing", (), "here", None),
    ("started elsewhere", (), "elsewhere", None),
    ("started elsewhere, cache lost", (forgotten,), "elsewhere", None),
    ("touched", (touched,), "here", None),
    ("touched, cache lost", (touched, forgotten), "here", None),
    ("moved", (moved,), "here", None),
    ("moved, cache lost", (moved, forgotten), "here", None),
    ("moved, cache lost, --data", (moved, forgotten), "here", "moved"),
    ("removed", (removed,), "here", None),
    ("removed, cache lost", (removed, forgotten), "here", None),
    ("rewritten", (rewritten,), "here", None),
    ("rewritten, cache lost", (rewritten, forgotten), "here", None),
    ("rewritten, --data", (rewritten,), "here", "here/text"),
)


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="a folder with train and valid")
    options.add_argument("--preset", default="mini")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--strategies", nargs="+", default=["sgd", "ewc"])
    options.add_argument("--set", action="append", default=["train.steps=60"], dest="sets")
    chosen = options.parse_args()
    given = ["--preset", chosen.preset, *(part for text in chosen.sets for part in ("--set", text))]
    wrong = False
    print("| seed | the text was | arms byte-equal | arms refused in a line | else |")
    print("|---|---|---|---|---|")
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            study = Study(Path(temporary), given, seed, chosen.strategies)
            shutil.copytree(chosen.data, study.here / "text")
            shutil.copytree(chosen.data, study.elsewhere / "text")
            rewrite(study.elsewhere / "text")
            rows = STREAM.read_text("utf-8").splitlines(keepends=True)[:NUM_TASKS]
            (study.root / "tasks.jsonl").write_text("".join(rows), "utf-8")
            bases = study.bases(study.root / "bases")
            expected: dict[tuple[str, str], tuple[bytes, ...] | str] = {}
            for number, (title, events, cwd, told) in enumerate(EVENTS):
                home = study.root / f"home{number}"
                shutil.copytree(study.root / "bases", home)
                kept = study.root / "kept"
                shutil.copytree(study.here / "text", kept, copy_function=shutil.copy2)
                for event in events:
                    event(study, home)
                more = ["--data", str(study.root / told)] if told else []
                ended = study.arms(home, bases, study.root / cwd, *more)
                expected = expected or ended
                equal = sum(ended[arm] == expected[arm] for arm in expected)
                lines = [one for one in ended.values() if isinstance(one, str)]
                refused = [line for line in lines if line.startswith("error: ")]
                other = len(ended) - equal - len(refused)
                wrong = (
                    wrong or other > 0 or not all(isinstance(v, tuple) for v in expected.values())
                )
                print(f"| {seed} | {title} | {equal} | {len(refused)} | {other} |", flush=True)
                for line in dict.fromkeys(
                    [*refused, *(one for one in lines if one not in refused)]
                ):
                    print(
                        f"    {line}".replace(str(study.root), "..."), file=sys.stderr, flush=True
                    )
                shutil.rmtree(home)
                for leftover in (study.here / "text", study.root / "moved"):
                    shutil.rmtree(leftover, ignore_errors=True)
                kept.rename(study.here / "text")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
