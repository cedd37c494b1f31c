"""Tokens per second of a training step, and the share of the machine's matrix-product limit.

    python benchmarks/training.py [--preset smoke] [--threads 1] [--repeat 7]

The limit is measured here: the fastest of several products of the feed-forward's shape. The work
of a step is counted as 6 FLOP per parameter and token (PaLM, arXiv 2204.02311, appendix B), plus
12 * layers * width * length / 2 for causal attention.
"""

import argparse
import statistics
import time

import torch

from dsa_sandbox import machine, settings, sizes
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.pretrain import make_optimizer


def product_limit(width: int, hidden: int, rows: int, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of twenty products [rows, width] x [width, hidden]."""
    a = torch.randn(rows, width).to(dtype)
    b = torch.randn(width, hidden).to(dtype)
    times = []
    for _ in range(20):
        started_s = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started_s)
    return 2 * rows * width * hidden / min(times)


def measure(arch: str, resolved: settings.Settings, repeat: int, phase: Phase) -> tuple[float, int]:
    """(seconds of a step, its tokens): the median of `repeat` after one for warming up."""
    plan, model = resolved.train, resolved.model
    vocabulary = corpus.nominal_vocabulary(resolved.data)
    network = Transformer(arch, model, vocabulary, sizes.matched_ffn_width(arch, model), 0)
    rows = max(1, plan.tokens_per_step // model.context)
    tokens_BT = torch.randint(vocabulary, (rows, model.context + 1))
    batch = Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous())
    engine = machine.resolve(resolved.machine, resolved.preset)
    steps = train(
        network,
        make_optimizer(network, plan),
        lambda _: [batch],
        lambda _: phase,
        start=0,
        stop=repeat + 1,
        clip=1.0,
        autocast=engine.autocast,
    )
    times = []
    started_s = time.perf_counter()
    for _ in steps:
        now_s = time.perf_counter()
        times.append(now_s - started_s)
        started_s = now_s
    return statistics.median(times[1:]), batch.num_targets


def main() -> None:
    """Print a table: a network and phase a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    resolved = settings.resolve(
        preset=options.preset, sets=[f"machine.threads={options.threads}"]
    ).settings
    engine = machine.resolve(resolved.machine, resolved.preset)
    machine.start(engine)
    model = resolved.model
    dtype = engine.autocast or torch.float32
    limit = product_limit(model.width, model.ffn_width, resolved.train.tokens_per_step, dtype)
    version = torch.__version__
    print(f"{options.preset}, {engine.threads} threads, {engine.precision}, torch {version}")
    print(f"matrix-product limit {limit / 1e9:.0f} GFLOP/s")
    print(f"{'network':<22}{'ms/step':>9}{'tokens/s':>10}{'of limit':>10}")
    phases = {
        "dense": [Phase(1.0, name="")],
        "dsa": [
            Phase(1.0, sparse=False, name="dense phase"),
            Phase(1.0, sparse=False, teach=True, trunk=False, name="indexer phase"),
            Phase(1.0, teach=True, name="sparse phase"),
            Phase(1.0, name="fine-tuning"),
        ],
    }
    for arch, several in phases.items():
        for phase in several:
            elapsed_s, num_tokens = measure(arch, resolved, options.repeat, phase)
            vocabulary = corpus.nominal_vocabulary(resolved.data)
            total = sizes.table(arch, model, vocabulary)["total"]
            flop = 6 * total + 6 * model.num_layers * model.width * model.context
            if not phase.trunk:
                flop = flop / 3
            share = flop * num_tokens / elapsed_s / limit
            print(
                f"{arch + ' ' + phase.name:<22}{1000 * elapsed_s:>9.0f}"
                f"{num_tokens / elapsed_s:>10.0f}{share:>10.0%}"
            )


if __name__ == "__main__":
    main()
