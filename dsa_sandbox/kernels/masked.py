"""Attention over selected keys as dense attention under a mask: the fastest backend for small S.

B batch, T queries, S keys, N heads, H key width, W value width, K selected keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsa_sandbox.core.indexer import selected_mask
from dsa_sandbox.core.rope import at_least_fp32


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W] and lse [B, N, T], as `attention.sparse_attention`."""
    num_heads = q_BNTH.shape[1]
    mask_B1TS = selected_mask(ids_BTK, k_BSH.shape[1]).unsqueeze(1)
    # A softmax over no key is NaN. So a query without ids attends to all keys, and its output is
    # then set to 0.
    empty_B1T1 = ~mask_B1TS.any(-1, keepdim=True)
    k_BNSH = k_BSH.unsqueeze(1).expand(-1, num_heads, -1, -1)
    v_BNSW = v_BSW.unsqueeze(1).expand(-1, num_heads, -1, -1)
    o_BNTW = F.scaled_dot_product_attention(
        q_BNTH, k_BNSH, v_BNSW, attn_mask=mask_B1TS | empty_B1T1, scale=scale
    )
    with torch.no_grad():
        x_BNTS = at_least_fp32(scale * q_BNTH @ k_BSH.unsqueeze(1).transpose(-1, -2))
        lse_BNT = x_BNTS.masked_fill_(~mask_B1TS, -torch.inf).logsumexp(-1)
    return o_BNTW.masked_fill(empty_B1T1, 0.0), lse_BNT
