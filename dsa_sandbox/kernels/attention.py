"""Attention over selected keys, by one of several backends with one interface.

* `reference`: the definition in fp64, for tests;
* `masked`: dense attention under a mask, T * S memory;
* `gather`: chunks of queries, T * K memory, on any device;
* `triton`: one kernel for a GPU.

B batch, T queries, S keys, N heads, H key width, W value width, K selected keys.
"""

import importlib
import importlib.util

import torch
from torch import Tensor

MODULES = {
    "masked": "dsa_sandbox.kernels.masked",
    "gather": "dsa_sandbox.kernels.gather",
    "triton": "dsa_sandbox.kernels.triton_gather",
    "reference": "dsa_sandbox.kernels.reference",
}

# Shortest context at which another backend beats `masked` for a sparse training step. CPU: one
# thread of an EPYC, 4096 tokens a step, K = length / 8: `gather` takes 0.7 to 1.2 times as long as
# `masked` at 256 tokens, 0.5 to 0.8 at 512, 0.3 to 0.6 at 1024 (dsa-sandbox bench training --length
# 256,512,1024). CUDA: a guess, not measured.
SPARSE_FROM = {"cpu": 512, "cuda": 4096}


def choose(length: int, num_kept: int, device: str) -> str:
    """The fastest backend for a context of `length` tokens with `num_kept` selected keys."""
    kind = torch.device(device).type
    if num_kept >= length or kind not in SPARSE_FROM or length < SPARSE_FROM[kind]:
        return "masked"
    return "triton" if kind == "cuda" and no_triton(device) is None else "gather"


def no_triton(device: str) -> str | None:
    """Why the Triton kernels cannot run on `device`, for an error message; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    kernels = importlib.import_module(MODULES["triton"])
    why: str | None = kernels.available()
    if why is None and torch.device(device).type != "cuda" and not kernels.INTERPRETED:
        return f"it needs a CUDA device, and the run is on {device}"
    return why


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W], and lse [B, N, T]: the logsumexp of the logits, fp32, no gradient.

    All N query heads share one head of keys and values; logits are `scale` * q . k. `ids_BTK` is
    int32 and ascending, with -1 in the places that a query with fewer than K keys leaves free. The
    queries are the last T of the S tokens, and no id is later than its query. A query without any
    id has output 0, lse -inf and no gradient.
    """
    module = importlib.import_module(MODULES[backend])  # here, as triton may not be installed
    return module.sparse_attention(q_BNTH, k_BSH, v_BSW, ids_BTK, scale=scale)
