"""Sparse attention behind one contract, computed in one of several ways.

* `reference`: the definition in fp64, slow on purpose;
* `masked`: dense attention under a mask, T * S memory;
* `gather`: chunks of queries, T * K memory, on any device;
* `triton`: one kernel for a GPU.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys.
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

# Context from which a step with a selection is faster without the mask. One thread of an EPYC, 4096
# tokens a step, K = length / 8: at 256 tokens gather takes 0.7 to 1.2 of the time of masked, at 512
# 0.5 to 0.8, at 1024 0.3 to 0.6 (dsa-sandbox bench training --length 256,512,1024). CUDA: a guess.
LONG = {"cpu": 512, "cuda": 4096}


def choose(length: int, num_kept: int, device: str) -> str:
    """The fastest backend for a context of `length` tokens of which `num_kept` are kept."""
    kind = torch.device(device).type
    if num_kept >= length or kind not in LONG or length < LONG[kind]:
        return "masked"
    return "triton" if kind == "cuda" and no_triton(device) is None else "gather"


def no_triton(device: str) -> str | None:
    """Why the Triton kernels cannot run on `device`; None where they can."""
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
    """Output [B, N, T, W], and lse [B, N, T] in fp32: natural logarithms, no gradient.

    All N heads of queries share one head of keys and values. `ids_BTK` are int32, ascending, with
    -1 at the end of a row that has fewer than K. The T queries are the last of the S tokens, and no
    id is later than its query. A row without any id has output 0, lse -inf and no gradient.
    """
    module = importlib.import_module(MODULES[backend])  # the others stay out
    return module.sparse_attention(q_BNTH, k_BSH, v_BSW, ids_BTK, scale=scale)
