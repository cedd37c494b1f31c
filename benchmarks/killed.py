"""Is a run that was killed and resumed byte-equal to one that was not?

    python benchmarks/killed.py HOME [--strategies A,B,..] [--experiments stream single]
        [--inside step|bisection] [--count 4] [--scratch runs/killed]

HOME holds finished bases and a stream of at least --count tasks (`make demo` leaves them in
runs/demo). Pre-training of dense and dsa, and every arm of {dense, dsa} x strategies, is run whole
in one home; in another it is killed with SIGKILL past its middle, inside a task, and the same
command then goes on. The files of both are compared. Networks are pre-trained anew for
--pretrain-steps; arms stand on the bases of HOME and learn its first --count tasks, in a stream
and singly (--experiments). With --inside bisection an arm of a stream is killed while the last
step of a task is bisected (--max-steps 100 lets tasks reach the level).
"""

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from dsa_sandbox import children
from dsa_sandbox.registry import strategies as registered
from dsa_sandbox.runs import folder
from dsa_sandbox.runs.home import newest

FILES = ("model.safetensors", "metrics.jsonl", "records.jsonl")
OFTEN = ["--set", "machine.save_every_s=0.3", "--set", "machine.threads=1"]
LITTLE = ("num_heldout=8", "pairs=4", "recall_items=2", "stories=2", "recovery_tasks=1")
ATTEMPTS = 8
Cell = tuple[str, list[str]]  # a label; the command line
Ready = Callable[[list[dict[str, Any]], list[dict[str, Any]]], bool]


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


def is_past_the_middle(rows: list[dict[str, Any]], whole: list[dict[str, Any]]) -> bool:
    """Whether 0.6 of all rows are written; where there are steps, the last one is of a step."""
    has_steps = any("loss" in row for row in whole)
    inside = bool(rows) and ("loss" in rows[-1] or not has_steps)
    return inside and len(rows) > 0.6 * len(whole)


def is_bisected(rows: list[dict[str, Any]], whole: list[dict[str, Any]]) -> bool:
    """Whether the last row, of a step, is one after which `whole` ends a task at the level."""
    here = len(rows)
    return (
        0.3 * len(whole) < here < len(whole)
        and "loss" in rows[-1]
        and "bisected" in whole[here]
        and rows[-1] == whole[here - 1]
    )


READY = {"step": is_past_the_middle, "bisection": is_bisected}


def kill_midway(
    arguments: list[str], run: folder.Run, whole: list[dict[str, Any]], ready: Ready
) -> str:
    """Kill the command when `ready` says so of its rows; the task and step of the kill.

    It is after a checkpoint, so that something of the first attempt is left.
    """
    for _ in range(ATTEMPTS):  # a bisection takes a tenth of a second
        child = start(arguments)
        while child.poll() is None:
            rows = run.rows("metrics.jsonl")
            if ready(rows, whole) and any(run.path.glob("checkpoints/step-*")):
                child.send_signal(signal.SIGKILL)
                child.communicate()
                last = rows[-1]
                place = f"task {last['task'] + 1}, " if "task" in last else ""
                return place + (f"step {last['step']}" if "step" in last else f"row {last['row']}")
            time.sleep(0.002)
        child.communicate()
        shutil.rmtree(run.path)
    raise SystemExit(f"was not caught in time: {' '.join(arguments)}")


def compare(cell: Cell, scratch: Path, ready: Ready) -> tuple[str, bool]:
    """A line that says where the command was killed and which files are equal; if all are."""
    label, arguments = cell
    whole = finish([*arguments, "--home", str(scratch / "whole")])
    run = folder.Run(scratch / "killed" / whole.name)
    again = [*arguments, "--home", str(scratch / "killed")]
    place = kill_midway(again, run, folder.Run(whole).rows("metrics.jsonl"), ready)
    killed = finish(again)
    equal = {
        name: (whole / name).read_bytes() == (killed / name).read_bytes()
        for name in FILES
        if (whole / name).exists() or (killed / name).exists()
    }
    said = ", ".join(f"{name} {'equal' if same else 'DIFFERS'}" for name, same in equal.items())
    return f"{label:<30} killed at {place:<18} {said}", all(equal.values())


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
    for arch in ("dense", "dsa") if options.inside == "step" else ():
        steps = ["--set", f"train.steps={options.pretrain_steps}"]
        cells.append((f"pretrain {arch}", ["pretrain", "--arch", arch, *steps, *OFTEN]))
    tasks = options.scratch / "tasks.jsonl"
    first_tasks(options.home, options.count, tasks)
    sets = [f"finetune.max_steps={options.max_steps}", *(f"eval.{text}" for text in LITTLE)]
    little = [part for text in sets for part in ("--set", text)]
    for arch in ("dense", "dsa"):
        base = base_of(options.home, arch)
        for name, experiment in product(options.strategies.split(","), options.experiments):
            protocols = {registered[part].protocol for part in name.split("+")}
            if experiment == "single" and protocols != {"sequential"}:
                continue
            arguments = ["finetune", str(base), "--strategy", name, "--tasks", str(tasks)]
            arguments += ["--set", f"finetune.experiment={experiment}"]
            cells.append((f"{arch} {name}, {experiment}", [*arguments, *little, *OFTEN]))
    return cells


def main() -> None:
    """Exit 1 where a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--strategies", default=",".join([*registered, "acft+ewc"]))
    parser.add_argument("--experiments", nargs="+", default=["stream", "single"])
    parser.add_argument("--inside", choices=READY, default="step")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=12)
    parser.add_argument("--pretrain-steps", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scratch", type=Path, default=Path("runs/killed"))
    options = parser.parse_args()
    shutil.rmtree(options.scratch, ignore_errors=True)
    for side in ("whole", "killed"):
        (options.scratch / side).mkdir(parents=True)
    if options.inside == "bisection":
        options.experiments = ["stream"]
    cells, good, ready = cells_of(options), 0, READY[options.inside]
    with ThreadPoolExecutor(options.jobs) as pool:
        for line, equal in pool.map(lambda cell: compare(cell, options.scratch, ready), cells):
            print(line, flush=True)
            good += equal
    print(f"{good} of {len(cells)} cells byte-equal")
    sys.exit(0 if good == len(cells) else 1)


if __name__ == "__main__":
    main()
