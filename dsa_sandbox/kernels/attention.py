"""Sparse attention behind one contract, computed in one of several ways.

* `reference`: the definition in fp64, slow on purpose;
* `masked`: dense attention under a mask, T * S memory;
* `gather`: chunks of queries, T * K memory, on any device;
* `triton`: one kernel for a GPU.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys.
"""

import importlib

from torch import Tensor

MODULES = {
    "masked": "dsa_sandbox.kernels.masked",
    "gather": "dsa_sandbox.kernels.gather",
    "triton": "dsa_sandbox.kernels.triton_gather",
    "reference": "dsa_sandbox.kernels.reference",
}

# Context from which `gather` is faster than `masked` in a training step, K = context / 8
LONG = {"cpu": 1024, "cuda": 4096}


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W], and lse [B, N, T] in fp32: natural logarithms, no gradient.

    All N heads of queries share one head of keys and values. `ids_BTK` are int32, ascending, with
    -1 at the end of a row that has fewer than K. The T queries are the last of the S tokens, and no
    id is later than its query. A row without any id has output 0, lse -inf and no gradient.
    """
    module = importlib.import_module(
        MODULES[backend]
    )  # by name: Triton is large, and may be missing
    return module.sparse_attention(q_BNTH, k_BSH, v_BSW, ids_BTK, scale=scale)
