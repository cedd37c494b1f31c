"""Seconds per token of decoding far into a context, beside transformers' Llama of the same shape.

    python benchmarks/decoding.py [--context 4096] [--turns 12] [--threads 1]

Random weights, batch 1. The networks take turns of ten tokens, of which the last eight are timed:
each meets the machine as busy as the others do. Reported are medians and minima of wall time, and
of the time that the processor worked for the thread, which a busy machine disturbs less.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.decoding.generate import Decoder

VOCABULARY, PIECE, TURN, UNTIMED = 1000, 256, 10, 2
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "dsa, latent": ("dsa", {}),
    "dsa, block of 16": ("dsa", {"compression": "block", "block_size": 16}),
    "dsa, block of 64": ("dsa", {"compression": "block", "block_size": 64}),
    "dsa-v32": ("dsa-v32", {"force_sink": 0, "force_local": 0}),
}


def settings(context: int, **overrides: int | str) -> Model:
    """Four layers of width 256, K an eighth of the context."""
    values = {"num_layers": 4, "width": 256, "num_heads": 8, "ffn_width": 1024}
    return Model(**(values | {"context": context, "num_kept": context // 8} | overrides))


def ours(arch: str, model: Model) -> Callable[[Tensor], Tensor]:
    """A decoder of random weights."""
    width = sizes.matched_ffn_width(arch, model)
    return Decoder(Transformer(arch, model, VOCABULARY, width, seed=0)).feed


def llama(cache_kind: str, model: Model) -> Callable[[Tensor], Tensor]:
    """Transformers' Llama, as large as `dense`."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=model.width,
        intermediate_size=sizes.matched_ffn_width("dense", model),
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_heads,
        max_position_embeddings=model.context,
        tie_word_embeddings=True,
    )
    network = LlamaForCausalLM(config).eval()
    if cache_kind == "static":
        cache = StaticCache(config=config, max_cache_len=model.context)
    else:
        cache = DynamicCache(config=config)

    @torch.inference_mode()
    def feed(tokens_BT: Tensor) -> Tensor:
        return network(tokens_BT, past_key_values=cache, logits_to_keep=1).logits

    return feed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    feeds = {
        name: ours(arch, settings(chosen.context, **overrides))
        for name, (arch, overrides) in NETWORKS.items()
    }
    for kind in ("static", "dynamic"):
        feeds[f"Llama, {kind} cache"] = llama(kind, settings(chosen.context))
    tokens_BT = torch.randint(VOCABULARY, (1, chosen.context))
    prompt_BT = tokens_BT[:, : chosen.context - TURN * chosen.turns]
    for feed in feeds.values():
        for piece_BT in prompt_BT.split(PIECE, dim=1):
            feed(piece_BT)
    wall: dict[str, list[float]] = {name: [] for name in feeds}
    worked: dict[str, list[float]] = {name: [] for name in feeds}
    for _ in range(chosen.turns):
        for name, feed in feeds.items():
            for token in range(TURN):
                wall_s, worked_s = time.perf_counter(), time.thread_time()
                feed(tokens_BT[:, :1])
                if token >= UNTIMED:
                    worked[name].append(time.thread_time() - worked_s)
                    wall[name].append(time.perf_counter() - wall_s)
    print(f"{'ms a token':20} {'wall':>7} {'least':>7} {'worked':>7} {'least':>7}  tokens/s worked")
    for name in feeds:
        times = [f(t[name]) for t in (wall, worked) for f in (statistics.median, min)]
        shown = " ".join(f"{1e3 * seconds:7.2f}" for seconds in times)
        print(f"{name:20} {shown}  {1 / times[2]:.0f}")


if __name__ == "__main__":
    main()
