"""Forgetting at matched learning over seeds: tables in Markdown from the arms of a home.

    export DSA_SANDBOX_HOME=runs/matched
    dsa-sandbox tune --strategies sgd,acft,ewc
    for seed in 20 21 22; do
      dsa-sandbox run --archs dense,dsa,dsa-full --strategies sgd,acft --seed $seed --count 12 \
          --singles 12
      for more in stream single "single --set finetune.placebo=true"; do
        dsa-sandbox finetune pretrain-dense-smoke-s$seed --strategy ewc \
            --tasks make-tasks-contradiction-test-smoke-s$seed --set finetune.experiment=$more
      done
    done
    python benchmarks/matched.py --home runs/matched --seeds 20 21 22

Bases, single tasks (damage at each level, with the placebo beside), streams, and the contrasts of
H2c (interaction of architecture and mask, task by task) and H2 with their SD between seeds. Nothing
here is a verdict: a few seeds say how noisy the figures are.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsa_sandbox.metrics import arm
from dsa_sandbox.metrics.damage import LEVELS
from dsa_sandbox.metrics.figure import NAN
from dsa_sandbox.metrics.placebo import damage_there
from dsa_sandbox.runs.folder import Run, readable_manifest
from dsa_sandbox.tuning import choices

Figures = dict[str, Any]
Key = tuple[str, int, str, str, bool]  # experiment, seed, architecture, strategy, placebo
CONTROLS = ("dsa-full", "dense")


def table(head: str, rows: Iterable[list[str]]) -> None:
    """Print rows under a head of names that are separated by `|`."""
    names = [name.strip() for name in head.split("|")]
    print("|", " | ".join(names), "|")
    print("|", " | ".join("---" for _ in names), "|")
    for row in rows:
        print("|", " | ".join(row), "|")
    print()


def shown(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    missing = value is None or math.isnan(value)
    return "-" if missing else f"{value:.{digits}f}"


def finished(home: Path, command: str) -> list[Run]:
    """Finished runs of a command, by name."""
    found = []
    for path in sorted(home.glob(f"{command}-*")):
        manifest = readable_manifest(Run(path))
        if manifest.get("state") == "finished":
            found.append(Run(path))
    return found


def arms_of(home: Path, seeds: list[int]) -> dict[Key, Figures]:
    """Figures of the arms of these seeds; SystemExit where two differ only in settings."""
    found: dict[Key, Figures] = {}
    for run in finished(home, "finetune"):
        f = arm.figures_of(run)
        key = (f["experiment"], f["seed"], f["arch"], f["strategy"], f["placebo"])
        if f["seed"] in seeds and key in found:
            sys.exit(f"{home}: several arms of {key[2]} {key[3]}, {key[0]}, seed {key[1]}")
        if f["seed"] in seeds:
            found[key] = f
    return found


def names_of(arms: dict[Key, Figures], experiment: str) -> list[tuple[str, str]]:
    """Architectures and strategies that an experiment holds, in the order of the table."""
    return sorted({key[2:4] for key in arms if key[0] == experiment})


def bases(home: Path, seeds: list[int]) -> None:
    """Quality, gate, recall and hit rates of the bases."""
    rows = []
    for run in finished(home, "pretrain"):
        manifest = run.manifest
        f = manifest["figures"]
        if manifest["seed"] not in seeds:
            continue
        far = f.get("far_worlds") or {}
        layers = " ".join(shown(share, 2) for share in far.get("by_layer", [])) or "-"
        rows.append(
            [
                str(manifest["seed"]),
                manifest["arch"],
                shown(f["valid"]["nll"], 4),
                f"{shown(f['gate']['right'], 2)} / {shown(f['gate']['bleed'], 2)}",
                f"{f['known_facts']} of {f['asked_facts']}",
                layers,
                shown(far.get("chance"), 2),
            ]
        )
    print("### Bases\n")
    table("seed | base | NLL | gate | known | far worlds, hit rate by layer | chance", rows)
    recall(home, seeds)


def recall(home: Path, seeds: list[int]) -> None:
    """Recall of stated names and relations by distance, and where indexers put its keys."""
    rows = []
    for run in finished(home, "pretrain"):
        manifest = run.manifest
        if manifest["seed"] not in seeds:
            continue
        f = manifest["figures"]
        cells = [str(manifest["seed"]), manifest["arch"]]
        for of in ("names", "relations"):
            here = [row for row in f["recall"] if row["of"] == of]
            cells.append(" ".join(shown(row["right"], 2) for row in here))
            chosen = [row for row in here if row.get("hit") is not None and row["hit_chance"] < 1]
            cells.append(" ".join(shown(row["hit"], 2) for row in chosen) or "-")
        cells += [shown(f["recall_chance"], 2), shown(f["recall_bigram"], 2)]
        rows.append(cells)
        distances = " ".join(str(row["distance"]) for row in f["recall"] if row["of"] == "names")
        num = f["recall"][0]["num"]
    if rows:
        print(f"### Recall after {distances} tokens, {num} items each\n")
        print("An interval (Wilson, 95 %): 64 of 64 is .94 to 1.00, 60 of 64 is .85 to .98.\n")
        table("seed | base | names | hit | relations | hit | chance | bigram", rows)


def singles(arms: dict[Key, Figures], seeds: list[int], level: float) -> None:
    """A row for each arm and seed."""
    print("### Single tasks: damage at matched learning, medians over tasks\n")
    damages, details = [], []
    for arch, strategy in names_of(arms, "single"):
        for seed in seeds:
            f = arms.get(("single", seed, arch, strategy, False))
            if f is None:
                continue
            placebo = arms.get(("single", seed, arch, strategy, True))
            place = [f"{arch} {strategy}", str(seed)]
            by_level = [f["by_level"][str(one)] for one in LEVELS]
            damages.append(
                [
                    *place,
                    *(shown(one["damage"]) for one in by_level),
                    shown(damage_there(f, placebo, f"{level:g}") if placebo else NAN),
                    " ".join(f"{one['reached']:.0%}" for one in by_level),
                ]
            )
            here = f["by_level"][str(level)]
            keys = ("near_in", "far_in", "out", "transfer", "stop_items")
            steps = shown(here["steps"], 0)
            details.append([*place, steps, *(shown(here[key], 2) for key in keys)])
    levels = " | ".join(map(str, LEVELS))
    table(f"arm | seed | {levels} | placebo at {level} | reached, by level", damages)
    head = f"arm | seed | steps to {level} | near-in | far-in | out | transfer | stop items"
    table(head, details)


def interaction(
    arms: dict[Key, Figures], seed: int, control: str, level: float
) -> tuple[float, int]:
    """H2c of a seed, and its number of tasks; NaN and 0 where an arm is missing."""
    four = {
        f"{arch} {strategy}": arms.get(("single", seed, arch, strategy, False))
        for arch in ("dsa", control)
        for strategy in ("acft", "sgd")
    }
    known = {name: one for name, one in four.items() if one is not None}
    return choices.interaction(known, control, level) if len(known) == 4 else (NAN, 0)


def spread(values: list[float]) -> str:
    """Mean and SD of the finite values."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return "-"
    return f"{statistics.mean(known):+.3f}, SD {statistics.stdev(known):.3f}"


def contrasts_of_singles(arms: dict[Key, Figures], seeds: list[int]) -> None:
    """H2c: the median over tasks for each seed and level, and their SD between seeds."""
    rows = []
    medians: dict[tuple[str, float], list[float]] = {}
    for control in CONTROLS:
        for level in LEVELS:
            cells = []
            for seed in seeds:
                middle, num_tasks = interaction(arms, seed, control, level)
                medians.setdefault((control, level), []).append(middle)
                cells.append(f"{shown(middle)} ({num_tasks} tasks)")
            rows.append([control, str(level), *cells, spread(medians[control, level])])
    print("### H2c: [dsa acft - dsa sgd] - [control acft - control sgd], median over tasks\n")
    table(f"control | level | {' | '.join(f'seed {s}' for s in seeds)} | mean, SD of seeds", rows)
    for level in LEVELS:
        pairs = [
            (a, b)
            for a, b in zip(*(medians[control, level] for control in CONTROLS))
            if not math.isnan(a) and not math.isnan(b)
        ]
        if len(pairs) > 2:
            print(f"Correlation of the two over seeds at {level}: "
                  f"{statistics.correlation(*zip(*pairs)):+.2f}")  # fmt: skip
    print()


def streams(arms: dict[Key, Figures], seeds: list[int]) -> None:
    """A row for each arm and seed, the curve over lags, and H2's contrasts."""
    print("### Streams\n")
    rows, lags = [], []
    for arch, strategy in names_of(arms, "stream"):
        for seed in seeds:
            f = arms.get(("stream", seed, arch, strategy, False))
            if f is None:
                continue
            place = [f"{arch} {strategy}", str(seed)]
            keys = ("drift", "lost", "own_discrimination", "own_near_in", "own_far_in", "own_out")
            steps = shown(f["steps"], 0)
            rows.append([*place, *(shown(f[key]) for key in keys), str(f["capped"]), steps])
            lags.append([*place, *(shown(value, 2) for value in f["discrimination_by_lag"])])
    head = "arm | seed | drift | lost | own row | near-in | far-in | out | capped | steps"
    table(head, rows)
    most = max((len(row) for row in lags), default=2) - 2
    table(f"discrimination at lag | seed | {' | '.join(map(str, range(most)))}", lags)
    rows = []
    for other in (("dense", "ewc"), ("dense", "sgd")):
        for key in ("drift", "lost"):
            values = []
            for seed in seeds:
                pair = [
                    arms.get(("stream", seed, *name, False)) for name in (("dsa", "acft"), other)
                ]
                known = [one[key] for one in pair if one is not None]
                values.append(known[0] - known[1] if len(known) == 2 else NAN)
            name = f"dsa acft - {' '.join(other)}"
            rows.append([name, key, *map(shown, values), spread(values)])
    print("### H2's contrasts\n")
    table(f"contrast | figure | {' | '.join(f'seed {s}' for s in seeds)} | mean, SD", rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=Path, default=Path("runs/matched"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[20, 21, 22])
    parser.add_argument("--level", type=float, default=0.7, choices=LEVELS)
    options = parser.parse_args()
    if not options.home.is_dir():
        parser.error(f"--home {options.home}: no such folder")
    arms = arms_of(options.home, options.seeds)
    bases(options.home, options.seeds)
    singles(arms, options.seeds, options.level)
    contrasts_of_singles(arms, options.seeds)
    streams(arms, options.seeds)


if __name__ == "__main__":
    main()
