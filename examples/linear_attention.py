"""An architecture of one's own in one file: causal linear attention (arXiv 2006.16236, eq. 9).

`dsa-sandbox pretrain --include examples/linear_attention.py --arch linear`

B batch, T query tokens, S key tokens, D width, N heads, H head width.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import Output, Queries, linear, merge_heads, split_heads
from dsa_sandbox.core.rope import rotate
from dsa_sandbox.registry import archs


@archs.register("linear")
class LinearAttention(nn.Module):
    """Linear attention: softmax gives way to a product of positive features of query and key.

    Parameters are counted, frozen and trained in groups; a group is an attribute of this class.
    `address` decides which tokens a query looks at, `content` what it takes from them. There is no
    attribute `indexer`, so commands refuse settings that train one.
    """

    # the group that the strategy `acft` trains; it freezes all else
    focus: ClassVar[dict[str, tuple[str, ...]]] = {"matched": ("content",), "all": ("content",)}

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.head_width = model.width // model.num_heads
        self.address = nn.ModuleDict({name: linear(model.width, model.width) for name in "qk"})
        self.content = nn.ModuleDict({name: linear(model.width, model.width) for name in "vo"})

    def forward(
        self, x_BTD: Tensor, rope_2TH: Tensor, sparse: bool = True, train_indexer: Queries = False
    ) -> Output:
        """Output [B, T, D] and no loss: without an indexer, the last two arguments do nothing."""
        q_BNTH, k_BNSH = (
            F.elu(rotate(split_heads(self.address[name](x_BTD), self.head_width), rope_2TH)) + 1
            for name in "qk"
        )
        v_BNSH = split_heads(self.content["v"](x_BTD), self.head_width)
        # In fp32: the sum over the past grows with T. All positions at once, T * T numbers a head;
        # a state of H * H numbers would give the same, one position after another.
        weights_BNTS = (q_BNTH.float() @ k_BNSH.float().transpose(-1, -2)).tril()
        weights_BNTS = weights_BNTS / weights_BNTS.sum(-1, keepdim=True)
        return self.content["o"](merge_heads(weights_BNTS.to(v_BNSH.dtype) @ v_BNSH)), None
