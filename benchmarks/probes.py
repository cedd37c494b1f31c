"""What measuring costs: a retention row and a full row of a stream of 50 tasks.

    python benchmarks/probes.py [BASE] [--count 50] [--rounds 5] [--threads 1] [--json]

BASE is the folder of a run with a network; without it, networks of the smoke preset as they are
initialised (known facts are not asked for: any will do). Medians of the rounds, seconds of the
wall and of the processor (what other programs take is not counted).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.commands import pretrain
from dsa_sandbox.config import resolve
from dsa_sandbox.data import grammar
from dsa_sandbox.evaluation.evaluator import Evaluator
from dsa_sandbox.evaluation.pairs import pair_shares
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.recall import recall
from dsa_sandbox.evaluation.scoring import batch_rows, heldout_kl, heldout_nll
from dsa_sandbox.evaluation.selection import jaccard
from dsa_sandbox.evaluation.story_quality import Judge, stories
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.load import SavedNetwork
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends
from dsa_sandbox.tasks import contradiction
from dsa_sandbox.tasks.schema import KINDS, Task
from dsa_sandbox.tasks.writing import Writer, askable


def stream_of(writer: Writer, count: int) -> list[Task]:
    """Tasks over all facts that could be asked, known or not."""
    families = grammar.table().families
    facts = askable(writer, grammar.table().facts)
    facts = [f for f in facts if families[f.family].split == "test" and not f.reserved]
    return contradiction.make(writer, facts, count, seed=0)


def parts_of(run: Run, home: Path, count: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; a full row is the sum of all but the first."""
    saved = SavedNetwork(run)
    resolved = saved.settings
    engine = backends.engine_for(resolved, machine.resolve(resolved.machine, resolved.preset))
    base, model = (saved.network().to(engine.device) for _ in range(2))
    for network in (base, model):
        backends.use(network, engine.attention)
    text, writer = saved.text(Session(home)), saved.writer("test")
    probes = Probes(stream_of(writer, count), text.tokenizer, base)
    m = Evaluator(resolved.eval, probes, text, writer, Judge(run.name, base), resolved.seed)
    new = batch_rows(probes.tasks[0].train[:16], text.tokenizer)
    numbers = list(range(count))
    return {
        f"validation items of {count} tasks": lambda: list(
            probes.records(model, 1, numbers, ("validation_in", "validation_out"))
        ),
        f"all items of {count} tasks": lambda: list(probes.records(model, 1, numbers, KINDS)),
        "held-out NLL": lambda: heldout_nll(model, m.documents),
        "held-out KL": lambda: heldout_kl(base, model, m.documents),
        "KL on new stories": lambda: heldout_kl(base, model, new),
        "minimal pairs": lambda: pair_shares(model, m.pairs, m.encoded_pairs, text.tokenizer),
        "recall": lambda: recall(model, m.planted, text.tokenizer),
        "selection": lambda: jaccard(base, model, m.documents[:8]),
        "stories": lambda: stories(
            model, m.judge, m.documents, text.tokenizer, resolved.eval.stories, 0
        ),
    }


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the wall and of the processor."""
    wall_s, worked_s = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall_s, time.process_time() - worked_s


def rows_of(run: Run, home: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Medians [wall, processor] by part, once everything has been asked once."""
    parts = parts_of(run, home, count)
    for call in parts.values():
        call()
    found = {name: [timed(call) for _ in range(rounds)] for name, call in parts.items()}
    rows = {
        name: [statistics.median(side) for side in zip(*times)] for name, times in found.items()
    }
    names = list(parts)[1:]
    rows["a full row"] = [sum(rows[name][side] for name in names) for side in (0, 1)]
    return rows


def untrained(home: Path, arch: str) -> Run:
    """A network of the smoke preset as it is initialised."""
    resolved = resolve.resolve(options={"arch": (arch, "")}).settings
    return pretrain.build(resolved, Session(home)).run


def main() -> None:
    """Print a column per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    machine.start(machine.Engine("cpu", chosen.threads, "fp32"))
    with tempfile.TemporaryDirectory() as folder:
        runs = [(Run(path), path.resolve().parent) for path in chosen.base] or [
            (untrained(Path(folder), arch), Path(folder)) for arch in ("dense", "dsa")
        ]
        found = {run.name: rows_of(run, home, chosen.count, chosen.rounds) for run, home in runs}
    if chosen.json:
        print(json.dumps({"threads": chosen.threads, "seconds": found}))
        return
    names = list(next(iter(found.values())))
    print(f"{'seconds: wall, processor':28}" + "".join(f"{name[:24]:>26}" for name in found))
    for name in names:
        cells = (f"{rows[name][0]:8.2f} {rows[name][1]:6.2f}" for rows in found.values())
        print(f"{name:28}" + "".join(f"{cell:>26}" for cell in cells))


if __name__ == "__main__":
    main()
