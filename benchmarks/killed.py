"""Is a run that was killed and resumed byte-equal to one that was not?

    python benchmarks/killed.py HOME [--strategies A,B,..] [--count 4] [--scratch runs/killed]

HOME holds finished bases and a stream of at least --count tasks (`make demo` leaves them in
runs/demo). Pre-training of dense and dsa, and every arm of {dense, dsa} x strategies, is run whole
in one home; in another it is killed with SIGKILL past its middle, inside a task, and the same
command then goes on. The files of both are compared. Networks are pre-trained anew for
--pretrain-steps; arms stand on the bases of HOME and learn its first --count tasks.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dsa_sandbox import children
from dsa_sandbox.registry import strategies
from dsa_sandbox.runs import folder
from dsa_sandbox.runs.home import newest

FILES = ("model.safetensors", "metrics.jsonl", "records.jsonl")
OFTEN = ["--set", "machine.save_every_s=0.3", "--set", "machine.threads=1"]
LITTLE = ("num_heldout=8", "pairs=4", "recall_items=2", "stories=2", "recovery_tasks=1")
Cell = tuple[str, list[str]]  # a label; the command line


def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    """The command as a child process."""
    command = children.command([*arguments, "--quiet"])
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=children.environment())


def finish(arguments: list[str]) -> Path:
    """Run the command to its end; the run's path."""
    child = start(arguments)
    output, _ = child.communicate()
    if child.returncode:
        raise SystemExit(f"ended with code {child.returncode}: {' '.join(arguments)}")
    return children.path_of(output)


def kill_midway(arguments: list[str], run: folder.Run, whole: list[dict[str, Any]]) -> str:
    """Kill the command past 0.6 of the rows that it wrote when it was left alone; where it was.

    Where there are steps, the last row is of a step: the kill is inside a task. It is after a
    checkpoint, so that something of the first attempt is left.
    """
    has_steps = any("loss" in row for row in whole)
    child = start(arguments)
    while child.poll() is None:
        rows = run.rows("metrics.jsonl")
        inside = bool(rows) and ("loss" in rows[-1] or not has_steps)
        if inside and len(rows) > 0.6 * len(whole) and any(run.path.glob("checkpoints/step-*")):
            child.send_signal(signal.SIGKILL)
            child.communicate()
            last = rows[-1]
            place = f"task {last['task'] + 1}, " if "task" in last else ""
            return place + (f"step {last['step']}" if "step" in last else f"row {last['row']}")
        time.sleep(0.01)
    raise SystemExit(f"was not caught in time: {' '.join(arguments)}")


def compare(cell: Cell, scratch: Path) -> tuple[str, bool]:
    """A line that says where the command was killed and which files are equal; if all are."""
    label, arguments = cell
    whole = finish([*arguments, "--home", str(scratch / "whole")])
    run = folder.Run(scratch / "killed" / whole.name)
    again = [*arguments, "--home", str(scratch / "killed")]
    place = kill_midway(again, run, folder.Run(whole).rows("metrics.jsonl"))
    killed = finish(again)
    equal = {
        name: (whole / name).read_bytes() == (killed / name).read_bytes()
        for name in FILES
        if (whole / name).exists() or (killed / name).exists()
    }
    said = ", ".join(f"{name} {'equal' if same else 'DIFFERS'}" for name, same in equal.items())
    return f"{label:<22} killed at {place:<18} {said}", all(equal.values())


def base_of(home: Path, arch: str) -> Path:
    """The newest base of an architecture."""
    run = newest(home, "pretrain", fits=lambda manifest: manifest["arch"] == arch)
    if run is None:
        raise SystemExit(f"{home}: no finished pretrain run of {arch}")
    return run.path


def first_tasks(home: Path, count: int, path: Path) -> None:
    """Write the first tasks of the newest stream that has so many."""
    run = newest(home, "make-tasks", fits=lambda made: made["figures"]["tasks"] >= count)
    if run is None:
        raise SystemExit(f"{home}: no stream of {count} tasks")
    rows = (run.path / "tasks.jsonl").read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(rows[:count]), "utf-8")


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """Every command line that is to be killed."""
    cells: list[Cell] = []
    for arch in ("dense", "dsa"):
        steps = ["--set", f"train.steps={options.pretrain_steps}"]
        cells.append((f"pretrain {arch}", ["pretrain", "--arch", arch, *steps, *OFTEN]))
    tasks = options.scratch / "tasks.jsonl"
    first_tasks(options.home, options.count, tasks)
    sets = [f"finetune.max_steps={options.max_steps}", *(f"eval.{text}" for text in LITTLE)]
    little = [part for text in sets for part in ("--set", text)]
    for arch in ("dense", "dsa"):
        base = base_of(options.home, arch)
        for name in options.strategies.split(","):
            arguments = ["finetune", str(base), "--strategy", name, "--tasks", str(tasks)]
            cells.append((f"{arch} {name}", [*arguments, *little, *OFTEN]))
    return cells


def main() -> None:
    """Exit 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--strategies", default=",".join([*strategies, "acft+ewc"]))
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--pretrain-steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    shutil.rmtree(options.scratch, ignore_errors=True)
    for side in ("whole", "killed"):
        (options.scratch / side).mkdir(parents=True)
    cells, good = cells_of(options), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, equal in pool.map(lambda cell: compare(cell, options.scratch), cells):
            print(line, flush=True)
            good += equal
    print(f"{good} of {len(cells)} cells byte-equal")
    sys.exit(0 if good == len(cells) else 1)


if __name__ == "__main__":
    main()
