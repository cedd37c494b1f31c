"""Sparse attention as its definition reads, in fp64: what the other backends are compared with.

B batch, T queries, S keys, N heads, H key width, W value width, K kept keys.
"""

import torch
from torch import Tensor


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """As `attention.sparse_attention`."""
    with torch.autocast(q_BNTH.device.type, enabled=False):
        q, k, v = q_BNTH.double(), k_BSH.double(), v_BSW.double()
        position_S = torch.arange(k.shape[1], device=k.device)
        kept_BTS = (ids_BTK.unsqueeze(-1) == position_S).any(-2)  # -1 is no position
        x_BNTS = scale * q @ k.transpose(-1, -2).unsqueeze(1)
        x_BNTS = x_BNTS.masked_fill(~kept_BTS.unsqueeze(1), -torch.inf)
        lse_BNT = x_BNTS.detach().logsumexp(-1)
        # a row of -inf alone has no softmax: it is given any finite one, and then nothing of it
        empty_B1T1 = ~kept_BTS.any(-1)[:, None, :, None]
        p_BNTS = x_BNTS.masked_fill(empty_B1T1, 0.0).softmax(-1).masked_fill(empty_B1T1, 0.0)
        o_BNTW = p_BNTS @ v.unsqueeze(1)
    return o_BNTW.to(q_BNTH.dtype), lse_BNT.float()
