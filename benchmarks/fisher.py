"""How far two common mistakes are from the true diagonal Fisher, on a base of one's own.

    python benchmarks/fisher.py pretrain-dense --home runs/demo

Every estimate is made on the pre-training text of the base with the same number of sequences. The
true one is estimated twice, with other labels: no estimate can agree with it better than it agrees
with itself. A ratio is that of the means; the correlation is Spearman's, over all weights that a
gradient reaches.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox import machine
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import tokens
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.report.numbers import number
from dsa_sandbox.report.wrapping import plain, rendered
from dsa_sandbox.runs import home as store
from dsa_sandbox.runs.load import SavedNetwork
from dsa_sandbox.runs.session import Session
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies import biased_fisher
from dsa_sandbox.strategies.ewc import sampled_fisher


def main() -> None:
    """Print one table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", help="a finished base")
    options.add_argument("--home", type=Path, default=None)
    options.add_argument("--sequences", type=int, default=2000, help="for each estimate")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    home = store.home_folder(chosen.home)
    run = store.find_run(home, chosen.run)
    saved = SavedNetwork(run)
    resolved = saved.settings
    machine.start(machine.resolve(resolved.machine, resolved.preset))
    model, text = saved.network(), saved.text(Session(home))
    names = [name for name, _ in model.named_parameters() if group_of(name) != "indexer"]
    batches = tokens.Batches(text.train, model.context, model.context, resolved.seed + 7919)

    def singles() -> Iterator[Batch]:
        """The first sequences, one a batch; the same for each estimate."""
        documents = (document for step in range(10**9) for document in batches[step])
        for document in islice(documents, chosen.sequences):
            yield tokens.batch_of([document])

    def flat(estimate: biased_fisher.Estimator, seed: int = 0) -> Tensor:
        found = estimate(model, singles(), names, torch.Generator().manual_seed(seed))
        return torch.cat([found[name].flatten() for name in names]).double()

    true = flat(sampled_fisher)
    rows: list[dict[str, Any]] = []
    for title, other in (
        ("true, other labels", flat(sampled_fisher, seed=1)),
        ("empirical", flat(biased_fisher.empirical)),
        *((f"batched, {size} sequences", flat(batched(size))) for size in (4, 16, 64)),
    ):
        rows.append(
            {
                "estimate": title,
                "ratio": float(other.mean() / true.mean()),
                "rank_correlation": rank_correlation(true, other),
            }
        )
    if chosen.json:
        print(json.dumps({"run": run.name, "sequences": chosen.sequences, "rows": rows}))
        return
    print(f"{run.name}: {chosen.sequences} sequences, {len(true):,} weights")
    drawn = plain()
    for heading in ("estimate", "mean over that of the true", "rank correlation with it"):
        drawn.add_column(heading)
    for row in rows:
        drawn.add_row(row["estimate"], f"{row['ratio']:.4g}", number(row["rank_correlation"], 3))
    print(rendered(drawn))


def batched(size: int) -> biased_fisher.Estimator:
    """The legacy estimator with batches of so many sequences."""

    def estimate(
        model: Transformer, found: Iterable[Batch], names: list[str], _: torch.Generator
    ) -> dict[str, Tensor]:
        return biased_fisher.squares(
            model, biased_fisher.joined(found, size), names, times_tokens=False
        )

    return estimate


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, over the entries that are above 0 in both."""
    seen = (a > 0) & (b > 0)
    ranks = torch.stack([x[seen].argsort().argsort().double() for x in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
