"""Five networks of `dsa`, each trained from scratch with another policy choosing its keys.

    python benchmarks/policies.py [--seeds 0] [--arch dsa] [--home runs/policies] [--set KEY=VALUE]

Held-out NLL and recall of what a text states, as each was trained, and of the one with the indexer
under every other policy. Recall is the share of 64 items right at 16, 32 and 64 tokens (as far as
the context allows), of names of characters and of relations.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, get_args

from dsa_sandbox.commands import evaluate, pretrain
from dsa_sandbox.config import resolve, settings
from dsa_sandbox.runs.session import Session


def trained(seed: int, policy: str, arch: str, sets: list[str], home: Path) -> str:
    """A row of the first table."""
    resolved = resolve.resolve(
        options={"arch": (arch, ""), "seed": (seed, "")}, sets=[f"train.selection={policy}", *sets]
    ).settings
    figures = pretrain.pretrain(resolved, Session(home)).figures
    pairs, gate = figures["pairs"], figures["gate"]
    return (
        f"{seed:<6}{policy:<10}{figures['valid']['nll']:<9.4f}{figures['known_facts']:<7}"
        f"{gate['right']:<7.2f}{gate['bleed']:<7.2f}"
        + "  ".join(f"{kind} {share:.2f}" for kind, share in pairs.items())
        + f"  {recalled(figures)}"
    )


def recalled(figures: dict[str, Any]) -> str:
    """Shares right by kind and distance."""
    kinds: dict[str, list[str]] = {}
    for row in figures["recall"]:
        kinds.setdefault(row["of"], []).append(f"{row['right']:.2f}")
    return "  ".join(f"{kind} {' '.join(shares)}" for kind, shares in kinds.items())


def asked(seed: int, policy: str, arch: str, sets: list[str], home: Path) -> str:
    """A row of the second: the network with the indexer, measured with `policy`."""
    resolved = resolve.resolve(
        options={"arch": (arch, ""), "seed": (seed, "")}, sets=["train.selection=learned", *sets]
    ).settings
    base = pretrain.pretrain(resolved, Session(home)).run
    figures = evaluate.evaluate(base, Session(home), selection=policy)
    return f"{seed:<6}{policy:<10}{figures['valid']['nll']:<9.4f}{recalled(figures)}"


def main() -> None:
    """Print both tables, a row per seed and policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arch", default="dsa")
    parser.add_argument("--home", type=Path, default=Path("runs/policies"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    cells = [
        (seed, policy, options.arch, options.set, options.home)
        for seed, policy in product(options.seeds, get_args(settings.Policy))
    ]
    for seed in options.seeds:  # all policies start from one build: it has one writer
        named = {"arch": (options.arch, ""), "seed": (seed, "")}
        first = resolve.resolve(options=named, sets=options.set).settings
        pretrain.build(first, Session(options.home))
    headings = {
        trained: "seed  trained   NLL      known  right  bleed  pairs, recall",
        asked: "seed  measured  NLL, recall (trained with the indexer)",
    }
    with ProcessPoolExecutor(options.processes) as pool:
        for row, heading in headings.items():
            print(heading, flush=True)
            for text in pool.map(row, *zip(*cells)):
                print(text, flush=True)


if __name__ == "__main__":
    main()
