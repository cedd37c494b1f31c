"""Are worlds worlds? P(new object) after each single task, learned from the base.

    python benchmarks/worlds.py --seeds 0 1 2 [--count 8] [--home runs/equal] [--set KEY=VALUE]

For each base (pre-trained if it is not there) and each of `sgd` and `acft`, every task of a stream
is learned alone, from the base, by the stop rule; printed are the means of P(new) on clozes in the
world, in other worlds, and without one.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dsa_sandbox.commands import finetune, make_tasks, pretrain
from dsa_sandbox.config import resolve
from dsa_sandbox.metrics import forgetting
from dsa_sandbox.runs import files, load
from dsa_sandbox.runs.session import Session
from dsa_sandbox.tasks.schema import TaskStream


def one(seed: int, arch: str, strategy: str, count: int, home: Path, sets: list[str]) -> str:
    """A row of the table."""
    resolved = resolve.resolve(
        options={"arch": (arch, ""), "strategy": (strategy, ""), "seed": (seed, "")},
        sets=[f"tasks.count={count}", *sets],
        with_strategy=True,
    )
    session = Session(home)
    base = load.SavedNetwork(pretrain.pretrain(resolved.settings, session).run)
    block = load.block_of(home, base)
    block.sort(key=lambda base: str(base.manifest["arch"]))
    stream = make_tasks.make_tasks(resolved.settings, session, block).run
    settings = load.settings_for(resolved, base)
    singles = []
    for task in make_tasks.tasks_of(stream).tasks:
        alone = TaskStream([task], task.task, files.digest_of(task.model_dump()))
        run = finetune.finetune(settings, session, base, alone).run
        singles.append((run, run.manifest["figures"]))
    figures = [figures for _, figures in singles]
    worlds = {
        key: forgetting.mean(f["worlds"][key] for f in figures)
        for key in ("world", "other", "none")
    }
    learned = forgetting.mean(f["learned"] for f in figures)
    steps = forgetting.mean(f["steps"] for f in figures)
    dnll = forgetting.mean(f["heldout_dnll"] for f in figures)
    return (
        f"{seed:<6}{arch:<7}{strategy:<9}{worlds['world']:<10.2f}{worlds['other']:<9.2f}"
        f"{worlds['none']:<9.2f}{learned:<9.0%}{steps:<7.0f}{dnll:+.3f}"
    )


def main() -> None:
    """Print a row per seed, network and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--home", type=Path, default=Path("runs/equal"))
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    for seed, arch in product(options.seeds, ("dense", "dsa")):
        resolved = resolve.resolve(options={"arch": (arch, ""), "seed": (seed, "")}).settings
        pretrain.pretrain(resolved, Session(options.home))
    print("seed  arch   rule     in world  others   none     learned  steps  dNLL", flush=True)
    cells = list(product(options.seeds, ("dense", "dsa"), ("sgd", "acft")))
    with ProcessPoolExecutor(2) as pool:
        futures = [
            pool.submit(one, *cell, options.count, options.home, options.set) for cell in cells
        ]
        for future in futures:
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
