"""A planted recall that only selection can solve: does the indexer learn to find what is needed?

    python benchmarks/planted.py [--seeds 0 1 2] [--steps 600] [--json]

A fact is one token: one of eight values of one of sixteen families. The first part of a sequence
states one fact of each family, among noise; the last part names families, each followed by the
value that was stated, more than 2K tokens behind the fact. The compressed flow is off, so what a
query needs must be among its K selected keys; in two layers a window of K reaches 2K tokens and no
further, and there are more facts than K, so the choice must depend on what is asked. Each policy is
trained from scratch, with the phases of pre-training: dense, indexer, sparse. Accuracy is exact
match of the value on sequences that training never saw.
"""

import argparse
import json
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsa_sandbox.config.settings import Model, Train
from dsa_sandbox.core.attention import DsaAttention
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.evaluation.diagnostics import layer_row
from dsa_sandbox.registry import archs
from dsa_sandbox.selection import policies
from dsa_sandbox.training.loop import train
from dsa_sandbox.training.pretrain import make_optimizer, phase_of

POLICIES = ("learned", "random", "window", "oracle", "all")
NUM_FAMILIES, NUM_VALUES, NUM_NOISE = 16, 8, 16
FACTS, GAP, NUM_ASKED = 32, 20, 12  # tokens of facts and noise; of noise alone; questions
LENGTH = 1 + FACTS + GAP + 2 * NUM_ASKED
FIRST_FACT = 1 + NUM_FAMILIES  # after END and the names of families
FIRST_NOISE = FIRST_FACT + NUM_FAMILIES * NUM_VALUES
VOCABULARY = FIRST_NOISE + NUM_NOISE
MODEL = Model(
    num_layers=2,
    width=64,
    num_heads=4,
    ffn_width=128,
    context=LENGTH,
    num_kept=8,
    indexer_heads=4,
    indexer_head_width=16,
)


@archs.register("selected-only")
class SelectedOnly(DsaAttention):
    """`dsa` whose compressed flow adds nothing."""

    def attend(self, x_BTD: Tensor, rope_2TH: Tensor, mask_BTS: Tensor | None) -> Tensor:
        return self.selected(x_BTD, rope_2TH, mask_BTS)

    def attend_with_teacher(
        self, x_BTD: Tensor, rope_2TH: Tensor, support_BTS: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.selected.forward_with_teacher(x_BTD, rope_2TH, support_BTS)


def sequence(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [T] and targets [T]: the fact after each family that is named, else IGNORED."""
    ids = FIRST_NOISE + rng.integers(NUM_NOISE, size=LENGTH)
    targets = np.full(LENGTH, IGNORED)
    facts = FIRST_FACT + NUM_VALUES * np.arange(NUM_FAMILIES)
    facts = facts + rng.integers(NUM_VALUES, size=NUM_FAMILIES)
    places = 1 + rng.permutation(FACTS)[:NUM_FAMILIES]
    asked = 1 + FACTS + GAP + 2 * np.arange(NUM_ASKED)
    families = rng.permutation(NUM_FAMILIES)[:NUM_ASKED]
    ids[0], ids[places] = 0, facts
    ids[asked], ids[asked + 1] = 1 + families, facts[families]
    targets[asked] = facts[families]
    assert min(asked) - max(places) > 2 * MODEL.num_kept
    return ids, targets


def batch(key: list[int], size: int) -> Batch:
    """Sequences, a pure function of `key`."""
    rng = np.random.default_rng(key)
    ids, targets = zip(*(sequence(rng) for _ in range(size)))
    return Batch(torch.tensor(np.stack(ids)), torch.tensor(np.stack(targets)))


@torch.no_grad()
def accuracy(model: Transformer, seed: int) -> float:
    """Share of values told right, sparse as the policy says."""
    unseen = batch([seed, 1], 256)
    asked_BT = unseen.targets_BT != IGNORED
    said_BT = model(unseen.tokens_BT).argmax(-1)
    return float((said_BT == unseen.targets_BT)[asked_BT].float().mean())


@torch.no_grad()
def health(model: Transformer, seed: int) -> list[dict[str, float]]:
    """Figures of each layer's indexer over the queries with a target; no others are taught."""
    unseen, rows = batch([seed, 2], 64), []

    def look(attention: Any, inputs: tuple[Any, ...]) -> None:
        rows.append(layer_row(attention, inputs[0], inputs[1], unseen.targets_BT != IGNORED, True))

    layers = [block.get_submodule("attention") for block in model.blocks]
    hooks = [layer.register_forward_pre_hook(look) for layer in layers]
    model(unseen.tokens_BT)
    for hook in hooks:
        hook.remove()
    return rows


def measure(cell: tuple[int, str, int]) -> dict[str, Any]:
    """One network, from scratch to its figures."""
    seed, policy, steps = cell
    torch.set_num_threads(1)
    model = Transformer("selected-only", MODEL, VOCABULARY, MODEL.ffn_width, seed)
    policies.use(model, policy)
    plan = Train(
        steps=steps,
        learning_rate=3e-3,
        indexer_learning_rate=1e-2,
        dense_fraction=0.35,
        indexer_fraction=0.2,
        decay_fraction=0.3,
        selection=policy,
    )
    for _ in train(
        model,
        make_optimizer(model, plan),
        lambda step: [batch([seed, 0, step], 32)],
        phase_of(plan, True, False),
        start=0,
        stop=steps,
        clip=plan.clip,
    ):
        pass
    row: dict[str, float | str | int | list[float]] = {
        "seed": seed,
        "policy": policy,
        "accuracy": accuracy(model, seed),
    }
    if policy == "learned":
        figures = health(model, seed)
        row |= {key: [layer[key] for layer in figures] for key in ("kl_captured", "recall")}
    return row


def main() -> None:
    """A row per seed and policy, then means over seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cells = [(seed, policy, options.steps) for seed, policy in product(options.seeds, POLICIES)]
    rows = []
    chance = 1 / NUM_VALUES
    if not options.json:
        print(f"T {LENGTH}, K {MODEL.num_kept}, {NUM_FAMILIES} facts; chance {chance:.3f}")
        print("seed  policy    accuracy  kl_captured by layer  recall by layer")
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(measure, cells):
            rows.append(row)
            if not options.json:
                lists = [row.get(name, []) for name in ("kl_captured", "recall")]
                shown = (" ".join(f"{x:.3f}" for x in several) for several in lists)
                print(
                    f"{row['seed']:<6}{row['policy']:<10}{row['accuracy']:<10.3f}"
                    + "".join(f"{text:<22}" for text in shown).rstrip(),
                    flush=True,
                )
    means = {
        policy: statistics.mean(row["accuracy"] for row in rows if row["policy"] == policy)
        for policy in POLICIES
    }
    if options.json:
        json.dump({"rows": rows, "mean_accuracy": means, "chance": chance}, sys.stdout)
        print()
    else:
        print("mean  " + "  ".join(f"{policy} {value:.3f}" for policy, value in means.items()))


if __name__ == "__main__":
    main()
