"""Attention over selected keys as defined, in fp64: the reference that tests compare with.

B batch, T queries, S keys, N heads, H key width, W value width, K selected keys.
"""

import torch
from torch import Tensor


def sparse_attention(
    q_BNTH: Tensor, k_BSH: Tensor, v_BSW: Tensor, ids_BTK: Tensor, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, N, T, W] and lse [B, N, T], as `attention.sparse_attention`."""
    with torch.autocast(q_BNTH.device.type, enabled=False):
        q = q_BNTH.double()
        k = k_BSH.double()
        v = v_BSW.double()
        position_S = torch.arange(k.shape[1], device=k.device)
        selected_BTS = (ids_BTK.unsqueeze(-1) == position_S).any(-2)  # -1 equals no position
        x_BNTS = scale * q @ k.transpose(-1, -2).unsqueeze(1)
        x_BNTS = x_BNTS.masked_fill(~selected_BTS.unsqueeze(1), -torch.inf)
        lse_BNT = x_BNTS.detach().logsumexp(-1)
        # The softmax of a row of -inf is NaN, also in its gradient. So the rows without ids get
        # finite logits, and their weights are then set to 0.
        empty_B1T1 = ~selected_BTS.any(-1)[:, None, :, None]
        p_BNTS = x_BNTS.masked_fill(empty_B1T1, 0.0).softmax(-1)
        p_BNTS = p_BNTS.masked_fill(empty_B1T1, 0.0)
        o_BNTW = p_BNTS @ v.unsqueeze(1)
    return o_BNTW.to(q_BNTH.dtype), lse_BNT.to(torch.promote_types(q_BNTH.dtype, torch.float32))
