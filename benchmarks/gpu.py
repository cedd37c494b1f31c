"""Attention over selected tokens on a GPU: Triton and gather against dense flash attention.

    python benchmarks/gpu.py [--lengths 1024 32768] [--kept 64 256 512] [--alike 0 0.8] [--json]

Tokens stay equal: a longer sequence means fewer of them. Times are medians, by CUDA events; memory
is the peak above what the inputs take. `alike` says how much of a key's score the queries of a
stretch of 64 share; `union` is what that makes of the work: keys that neighbours look at together,
as a share of what each would look at alone. Needs torch, triton and this repository, nothing else.
Before anything is timed, the kernels are compared to masked attention.
"""

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dsa_sandbox.kernels import triton_gather

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
COLUMNS = ("length", "batch", "kept", "alike", "rows", "union", "method")
MEASURED = ("forward_ms", "step_ms", "memory_mib")
CHUNK = 1024  # queries that choose at once


def chosen(batch: int, length: int, kept: int, alike: float, device: str) -> Tensor:
    """Ids [B, T, K]: the last K/8 tokens, the first, and the best by chance."""
    position_S = torch.arange(length, device=device)
    chunks = []
    for position_C in position_S.split(CHUNK):
        shared_BCS = torch.rand(batch, -(-len(position_C) // 64), length, device=device)
        shared_BCS = shared_BCS.repeat_interleave(64, dim=1)[:, : len(position_C)]
        own_BCS = torch.rand(batch, len(position_C), length, device=device)
        age_CS = position_C[:, None] - position_S
        score_BCS = alike * shared_BCS + (1 - alike) * own_BCS
        score_BCS = score_BCS.masked_fill((age_CS < kept // 8) | (position_S == 0), 2.0)
        best = score_BCS.masked_fill(age_CS < 0, -1.0).topk(kept, dim=-1)
        ids_BCK = best.indices.masked_fill(best.values < 0, length).sort(dim=-1).values
        chunks.append(ids_BCK.masked_fill(ids_BCK == length, -1).int())
    return torch.cat(chunks, dim=1)


def states(
    batch: int, heads: int, length: int, width: int, shared: bool, device: str
) -> list[Tensor]:
    """Queries, keys, values and a gradient in bf16; `shared`: one head of keys and values."""
    q_shape = (batch, heads, length, width)
    k_shape = (batch, length, width) if shared else q_shape
    shapes = (q_shape, k_shape, k_shape, q_shape)
    q, k, v, grad = (torch.randn(s, device=device, dtype=torch.bfloat16) for s in shapes)
    return [*(x.requires_grad_() for x in (q, k, v)), grad]


def masked(ids_BTK: Tensor, scale: float) -> Attention:
    """The same attention by a mask, in fp32."""

    def attend(q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor) -> Tensor:
        length = k_BSH.shape[1]
        slots_BTK = ids_BTK.long().masked_fill(ids_BTK < 0, length)
        mask_BTS = torch.zeros(
            *ids_BTK.shape[:2], length + 1, dtype=torch.bool, device=q_BNTH.device
        )
        mask_B1TS = mask_BTS.scatter(-1, slots_BTK, True)[:, None, :, :length]
        score_BNTS = q_BNTH.float() @ k_BSH[:, None].float().mT * scale
        weight_BNTS = score_BNTS.masked_fill(~mask_B1TS, -torch.inf).softmax(-1)
        return weight_BNTS @ v_BSW[:, None].float()

    return attend


def selected(module: Any, ids_BTK: Tensor, scale: float) -> Attention:
    """`sparse_attention` of a module of dsa_sandbox.kernels."""
    return lambda q, k, v: module.sparse_attention(q, k, v, ids_BTK, scale=scale)[0]


def check(heads: int, width: int, device: str, length: int = 512, kept: int = 64) -> float:
    """Largest difference to masked attention, as a share of the largest number there is.

    Of the output and of the gradients of queries, keys and values.
    """
    ids_BTK = chosen(2, length, kept, 0.5, device)
    q, k, v, grad = states(2, heads, length, width, True, device)
    worst = 0.0
    results = []
    for attention in (
        selected(triton_gather, ids_BTK, width**-0.5),
        masked(ids_BTK, width**-0.5),
    ):
        o = attention(q, k, v)
        results.append([o, *torch.autograd.grad(o, (q, k, v), grad.to(o.dtype))])
    for found, expected in zip(*results):
        difference = (found - expected).detach().float().abs().max() / expected.abs().max()
        worst = max(worst, difference.item())
    return worst


def median_ms(work: Callable[[], object], repeat: int) -> float:
    """Milliseconds of `work`, the median after three runs for warming up."""
    times = []
    for _ in range(repeat + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])


def measure(attention: Attention, inputs: list[Tensor], repeat: int) -> dict[str, float | None]:
    """Forward, forward and backward in milliseconds, peak memory in MiB; None: out of memory."""
    q, k, v, grad = inputs

    def forward() -> None:
        with torch.no_grad():
            attention(q, k, v)

    def step() -> None:
        torch.autograd.grad(attention(q, k, v), (q, k, v), grad)

    try:
        step()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
        return dict(zip(MEASURED, (median_ms(forward, repeat), median_ms(step, repeat), peak_mib)))
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return dict.fromkeys(MEASURED)


def union_share(ids_BTK: Tensor, heads: int) -> float:
    """Keys of the unions, as a share of the keys of all their queries."""
    return float(triton_gather.pack(ids_BTK, heads).counts_BG.sum() / (ids_BTK >= 0).sum())


def line(values: list[object]) -> str:
    """A row of the table."""
    texts = ["-" if x is None else f"{x:.3f}" if isinstance(x, float) else str(x) for x in values]
    return "".join(f"{text:>11}" for text in texts)


def rows_of(options: argparse.Namespace, gather: Any) -> list[dict[str, object]]:
    """Measure everything, printing each row as it comes: on stderr where stdout is for JSON."""
    rows: list[dict[str, object]] = []
    table = sys.stderr if options.json else sys.stdout
    heads, width, repeat = options.heads, options.width, options.repeat

    def add(attention: Attention, inputs: list[Tensor], **known: object) -> None:
        row = dict.fromkeys(COLUMNS) | known | measure(attention, inputs, repeat)
        rows.append(row)
        print(line(list(row.values())), file=table, flush=True)

    print(line([*COLUMNS, *MEASURED]), file=table)
    for length in options.lengths:
        batch = max(1, options.tokens // length)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            add(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                states(batch, heads, length, width, False, "cuda"),
                length=length,
                batch=batch,
                method="flash",
            )
        inputs = states(batch, heads, length, width, True, "cuda")
        for kept in options.kept:
            if kept >= length:
                continue
            for alike in options.alike:
                ids_BTK = chosen(batch, length, kept, alike, "cuda")
                known = {"length": length, "batch": batch, "kept": kept, "alike": alike}
                for num_rows in options.rows:
                    triton_gather.NUM_ROWS = num_rows
                    add(
                        selected(triton_gather, ids_BTK, width**-0.5),
                        inputs,
                        **known,
                        rows=num_rows,
                        union=union_share(ids_BTK, heads),
                        method="triton",
                    )
            if gather is not None:  # what neighbours share changes nothing for it
                add(selected(gather, ids_BTK, width**-0.5), inputs, **known, method="gather")
    return rows


def main() -> int:
    """Print a row per length, number of kept keys and method; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    lengths = [1024 << n for n in range(6)]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--kept", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--alike", type=float, nargs="+", default=[0.0, 0.8], help="0 to 1")
    parser.add_argument("--tokens", type=int, default=32768, help="of all sequences together")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    parser.add_argument("--rows", type=int, nargs="+", default=[16], help="see NUM_ROWS")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    reason = "there is no CUDA device" if not torch.cuda.is_available() else None
    reason = reason or triton_gather.available()
    if reason:
        print(f"error: benchmarks/gpu.py: {reason}", file=sys.stderr)
        return 2
    difference = check(options.heads, options.width, "cuda")
    print(f"difference to masked attention: {difference:.1e}", file=sys.stderr)
    if not difference < 2e-2:
        print("error: benchmarks/gpu.py: the kernels are wrong here", file=sys.stderr)
        return 1
    try:
        gather = importlib.import_module("dsa_sandbox.kernels.gather")
    except ImportError:
        gather = None
    rows = rows_of(options, gather)
    if options.json:
        versions = {"torch": torch.__version__, "triton": triton_gather.triton.__version__}
        device = torch.cuda.get_device_name()
        print(json.dumps({"device": device, **versions, "difference": difference, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
