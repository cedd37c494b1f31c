"""Are worlds worlds? What single tasks have learned, each alone from the base, at the level.

    python benchmarks/worlds.py --seeds 0 1 2 [--count 12] [--home runs/equal] [--set KEY=VALUE]

For each base (pre-trained if it is not there) and each of `sgd` and `acft`, every task is learned
alone (finetune.experiment=single). Printed are the share of tasks that reach finetune.level, and
medians over them where the fit first does: steps, the mean p of the right object near, far and
outside on validation items, in sentences and in worlds that no story has, and held-out dNLL.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dsa_sandbox.commands import finetune, make_tasks, pretrain
from dsa_sandbox.config import resolve
from dsa_sandbox.metrics.forgetting import number
from dsa_sandbox.metrics.single import median
from dsa_sandbox.runs import load
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.session import Session

HEAD = "seed  arch   rule     reached  steps  near  far   out   unseen frames  unseen worlds  dNLL"


def transfer(run: Run, level: str) -> dict[str, float]:
    """Medians over tasks of the parts on transfer items, at the first measurement past the level.

    What the least of near and far in the world says about unseen frames is `frames`.
    """
    parts = {(row["task"], row["at"]): row.get("transfer") for row in run.rows("metrics.jsonl")
             if "at" in row}  # fmt: skip
    found: list[dict[str, Any]] = []
    for index, task in enumerate(run.manifest["figures"]["trajectories"]):
        reached = task["levels"].get(level)
        if reached:
            found.append(parts.get((index, reached["place"]["to_step"])) or {})
    frames = [min(row["near_in"], row["far_in"]) for row in found if row]
    return {"frames": median(frames), "worlds": median(row["out"] for row in found if row)}


def one(seed: int, arch: str, strategy: str, count: int, home: Path, sets: list[str]) -> str:
    """A row of the table."""
    resolved = resolve.resolve(
        options={"arch": (arch, ""), "strategy": (strategy, ""), "seed": (seed, "")},
        sets=[f"tasks.count={count}", "finetune.experiment=single", *sets],
        with_strategy=True,
    )
    session = Session(home)
    base = load.SavedNetwork(pretrain.pretrain(resolved.settings, session).run)
    block = load.block_of(home, base)
    block.sort(key=lambda base: str(base.manifest["arch"]))
    stream = make_tasks.make_tasks(resolved.settings, session, block).run
    settings = load.settings_for(resolved, base)
    run = finetune.finetune(settings, session, base, make_tasks.tasks_of(stream)).run
    figures = run.manifest["figures"]
    level = f"{settings.finetune.level:g}"
    here, unseen = figures["by_level"][level], transfer(run, level)
    near, far, out, dnll = (number(here, key) for key in ("near_in", "far_in", "out", "damage"))
    return (
        f"{seed:<6}{arch:<7}{strategy:<9}{here['reached']:<9.0%}{number(here, 'steps'):<7.0f}"
        f"{near:<6.2f}{far:<6.2f}{out:<6.2f}{unseen['frames']:<15.2f}{unseen['worlds']:<15.2f}"
        f"{dnll:+.3f}"
    )


def main() -> None:
    """Print a row per seed, network and rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--home", type=Path, default=Path("runs/equal"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    for seed, arch in product(options.seeds, ("dense", "dsa")):
        named = {"arch": (arch, ""), "seed": (seed, "")}
        resolved = resolve.resolve(options=named, sets=options.set).settings
        pretrain.pretrain(resolved, Session(options.home))
    print(HEAD, flush=True)
    cells = list(product(options.seeds, ("dense", "dsa"), ("sgd", "acft")))
    with ProcessPoolExecutor(options.processes) as pool:
        futures = [
            pool.submit(one, *cell, options.count, options.home, options.set) for cell in cells
        ]
        for future in futures:
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
