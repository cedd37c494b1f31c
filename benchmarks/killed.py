"""Is a run that was killed and resumed byte-equal to one that was not?

    python benchmarks/killed.py HOME [--scratch runs/killed] [--max-steps 12]

HOME holds finished bases and a stream of at least seven tasks (`make demo` leaves them in
runs/demo). Pre-training of dense and dsa is killed with SIGKILL in its middle, and every arm of
{dense, dsa} x {sgd, ewc, acft} in task 7; the same command then goes on, and its files are compared
to those of an uninterrupted run in a home of its own. The networks are pre-trained anew for
--pretrain-steps; the arms stand on the bases of HOME.
"""

import argparse
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dsa_sandbox import store

Ready = Callable[[dict[str, int]], bool]
FILES = ("model.safetensors", "metrics.jsonl", "records.jsonl")


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    """The command as a child process."""
    command = [sys.executable, "-m", "dsa_sandbox", *arguments, "--quiet"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(arguments: list[str]) -> Path:
    """Run the command to its end; the run's path."""
    child = start(arguments)
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"ended with code {child.returncode}: {' '.join(arguments)}")
    return Path(output.strip())


def kill_when(arguments: list[str], home: Path, ready: Ready) -> str:
    """Kill the command once a line of its metrics is `ready`; the line, as text."""
    child = start(arguments)
    while child.poll() is None:
        for run in home.glob(f"{arguments[0]}-*"):
            if (run / "model.safetensors").exists():
                continue
            rows = store.Run(run).rows("metrics.jsonl")
            saved = list((run / "checkpoints").glob("step-*"))
            if rows and saved and ready(rows[-1]):
                child.send_signal(signal.SIGKILL)
                child.wait()
                return json.dumps(store.Run(run).rows("metrics.jsonl")[-1])
        time.sleep(0.02)
    raise SystemExit(f"was not caught in time: {' '.join(arguments)}")


def in_the_middle(num_steps: int, row: dict[str, int]) -> bool:
    """Whether half of the pre-training is done."""
    return row["step"] >= num_steps // 2


def in_task_seven(cap: int, row: dict[str, int]) -> bool:
    """Whether task 7 has gone on for a third of its cap."""
    return row.get("task") == 6 and row["step"] >= cap // 3


def compare(label: str, whole: Path, killed: Path, at: str) -> bool:
    """Print a line per cell: where it was killed, and which files are equal."""
    equal = {
        name: (whole / name).read_bytes() == (killed / name).read_bytes()
        for name in FILES
        if (whole / name).exists() or (killed / name).exists()
    }
    said = ", ".join(f"{name} {'equal' if same else 'DIFFERS'}" for name, same in equal.items())
    print(f"{label:<16} killed at {at[:60]:<62} {said}", flush=True)
    return all(equal.values())


def cell(label: str, arguments: list[str], sides: list[Path], ready: Ready) -> bool:
    """The command run whole in one home; killed when `ready`, and run again, in the other."""
    whole, killed = ([*arguments, "--home", str(side)] for side in sides)
    expected = finish(whole)
    at = kill_when(killed, sides[1], ready)
    return compare(label, expected, finish(killed), at)


def newest(home: Path, command: str, arch: str | None = None) -> Path:
    """The newest finished run of the home."""
    run = store.newest(home, command, fits=lambda m: arch in (None, m["arch"]))
    if run is None:
        raise SystemExit(f"{home}: no finished {command} run {arch or ''}")
    return run.path


def main() -> None:
    """Exit 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("runs/killed"))
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--pretrain-steps", type=int, default=120)
    options = parser.parse_args()
    num_steps, cap = options.pretrain_steps, options.max_steps
    shutil.rmtree(options.scratch, ignore_errors=True)
    sides = [options.scratch / side for side in ("whole", "killed")]
    for side in sides:
        side.mkdir(parents=True)
    often = ["--set", "machine.save_every_s=0.5"]
    good = []
    for arch in ("dense", "dsa"):
        arguments = ["pretrain", "--arch", arch, "--set", f"train.steps={num_steps}", *often]
        middle = functools.partial(in_the_middle, num_steps)
        good.append(cell(f"pretrain {arch}", arguments, sides, middle))
    stream = newest(options.home, "make-tasks")
    for arch in ("dense", "dsa"):
        base = newest(options.home, "pretrain", arch)
        for strategy in ("sgd", "ewc", "acft"):
            arguments = ["finetune", str(base), "--strategy", strategy, "--tasks", str(stream)]
            arguments += ["--set", f"finetune.max_steps={cap}", *often]
            ready = functools.partial(in_task_seven, cap)
            good.append(cell(f"{arch} {strategy}", arguments, sides, ready))
    print(f"{sum(good)} of {len(good)} cells byte-equal")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
