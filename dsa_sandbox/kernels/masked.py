"""Sparse attention as dense attention under a mask: the fastest way where S is small.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsa_sandbox.core.indexer import kept_mask


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """As `attention.sparse_attention`."""
    kept_B1TS = kept_mask(ids_BTK, k_BSH.shape[1]).unsqueeze(1)
    k_B1SH, v_B1SW = k_BSH.unsqueeze(1), v_BSW.unsqueeze(1)
    # a query without any key sees them all, and what it saw is thrown away: no NaN comes up
    empty_B1T1 = ~kept_B1TS.any(-1, keepdim=True)
    shown_B1TS = kept_B1TS | empty_B1T1
    k, v = (x.expand(-1, q_BNTH.shape[1], -1, -1) for x in (k_B1SH, v_B1SW))
    o_BNTW = F.scaled_dot_product_attention(q_BNTH, k, v, attn_mask=shown_B1TS, scale=scale)
    with torch.no_grad():
        x_BNTS = (scale * q_BNTH @ k_B1SH.transpose(-1, -2)).float()
        lse_BNT = x_BNTS.masked_fill_(~kept_B1TS, -torch.inf).logsumexp(-1)
    return o_BNTW.masked_fill(empty_B1T1, 0.0), lse_BNT
