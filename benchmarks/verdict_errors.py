"""How often the whole verdict is wrong, on simulated studies whose truth is known.

    python benchmarks/verdict_errors.py [--studies 2000] [--seeds 10] [--tables 100]

First table: blocks of H2 and H2c, normal and skewed, through the rules of the verdict. `supported
at 0` and `refuted at -smallest` are errors; normal blocks keep both at 5 % or less, skewed ones do
not, and by how much is what this prints. Second table: null studies made task by task, with tasks
that arms miss, through the whole of `judge` for every claim.
"""

import argparse
from collections import Counter

import numpy as np

from dsa_sandbox.config.terms import Terms
from dsa_sandbox.registry import claims
from dsa_sandbox.verdict import power
from dsa_sandbox.verdict.blocks import ArmKey, Block
from dsa_sandbox.verdict.judge import judge

LEVEL = 0.7
MISSED = 0.03  # share of tasks that an arm misses


def rules_table(studies: int, n: int) -> None:
    """Errors of the rules, by claim and skewness."""
    print(f"n = {n}, {studies} studies; SD 1.6 smallest effects, correlation .5")
    print("claim  skewness  supported at 0  refuted at -smallest  supported at -2 smallest")
    for claim in power.PLANS:
        for skew in (0.0, 1.0, -1.0, 2.0, -2.0, 3.0, -3.0):
            null, least, strong = (
                power.simulated(claim, n, effect=effect, sd=1.6, skew=skew, studies=studies)
                for effect in (0, -1, -2)
            )
            print(
                f"{claim:5}  {skew:+8.1f}  {null.supported:14.3f}  {least.refuted:20.3f}  "
                f"{strong.supported:24.3f}"
            )


def task_figures(damage: float) -> dict[str, object]:
    """A task of an arm at the level; infinite: it misses it."""
    reached = bool(np.isfinite(damage))
    place = {"from_step": 0, "to_step": 4, "share": 1.0}
    here = {"damage": damage, "place": place} if reached else None
    far = {f"{LEVEL:g}": damage if reached else None}
    return {"levels": {f"{LEVEL:g}": here}, "far_levels": far, "dnll": {0: 0.0, 4: damage}}


def arm(key: ArmKey, generator: np.random.Generator, difficulty: np.ndarray) -> dict[str, object]:
    """An arm of a null study: no arm is better than another, but for the luck of its seed."""
    if key.experiment == "stream":
        drift, lost = generator.normal([0.5, 0.3], [0.1, 0.1])
        plain = {"tasks": 12, "capped": 0, "learned": 1.0, "diverged_after": None}
        return plain | {"drift": drift, "lost": lost, "own_discrimination": 0.7, "level": LEVEL}
    luck = generator.normal(0, 0.04) + generator.normal(0, 0.03, len(difficulty))
    damages = np.maximum(difficulty + luck, 0)
    damages[generator.random(len(damages)) < MISSED] = np.inf
    trajectories = [task_figures(float(damage)) for damage in damages]
    return {
        "level": LEVEL,
        "tasks": len(damages),
        "trajectories": trajectories,
        "terms": {"finetune.learning_rate": 1e-4 if key.variant else 1e-3},
    }


def base(generator: np.random.Generator) -> dict[str, object]:
    """A base as good as every other."""
    chances = {"by_layer": [0.5, 0.5], "chance": 0.2}
    return {
        "valid": {"nll": 0.74 + generator.normal(0, 0.004)},
        "gate": {"open": True},
        "known_facts": 115,
        "asked_facts": 120,
        "pairs": {"pronoun": 0.9, "agreement": 0.9},
        "pairs_bigram": {"pronoun": 0.5, "agreement": 0.5},
        "far_worlds": chances,
        "recall": [{"hit": 0.5, "hit_chance": 0.2}],
    }


def null_study(n: int, generator: np.random.Generator) -> list[Block]:
    """Blocks with all arms that any claim asks for."""
    keys = dict.fromkeys(key for name in claims for key in claims[name]().needs())
    valued = [
        key._replace(variant=f"{key.variant}=0.0001")
        if key.variant and "=" not in key.variant
        else key
        for key in keys
    ]
    more = [name for claim in claims for name in claims[claim].bases]
    names = dict.fromkeys(["dense", "dsa", "dsa-full", *more])
    blocks = []
    for seed in range(100, 100 + n):
        difficulty = generator.normal(0.4, 0.08, 12)
        arms = {key: arm(key, generator, difficulty) for key in valued}
        blocks.append(Block(seed, {name: base(generator) for name in names}, arms))
    return blocks


def judge_table(studies: int, n: int) -> None:
    """Shares of verdicts of every claim on null studies, through `judge`."""
    terms = Terms(claims=tuple(claims), level=LEVEL, seeds=tuple(range(100, 100 + n)))
    found: dict[str, Counter[str]] = {name: Counter() for name in claims}
    for study in range(studies):
        blocks = null_study(n, np.random.default_rng(study))
        for one in judge(blocks, terms, resample=False).findings:
            found[one.claim][one.verdict] += 1
    print(f"\nnull studies task by task, n = {n}, {studies} studies, through judge")
    print("(H1 and H2e are true in these studies: no arm differs)")
    for name, words in found.items():
        shares = ", ".join(f"{word} {count / studies:.3f}" for word, count in words.most_common())
        print(f"{name:5}  {shares}")


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", type=int, default=100)
    options = parser.parse_args()
    rules_table(options.studies, options.seeds)
    judge_table(options.tables, options.seeds)


if __name__ == "__main__":
    main()
