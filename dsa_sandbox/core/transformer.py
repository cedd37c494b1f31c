"""A pre-norm decoder around either kind of attention.

B batch, T tokens, D width, V vocabulary, L layers.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import DenseAttention, DsaAttention, Out, Teach, linear
from dsa_sandbox.core.rope import Table, rope_table
from dsa_sandbox.registry import archs, feedforwards

archs.register("dense")(DenseAttention)


archs.register("dsa")(DsaAttention)


@archs.register("dsa-full")
def dsa_full(model: Model) -> DsaAttention:
    """`dsa` with K = T: the same weights, without sparsity."""
    return DsaAttention(model.model_copy(update={"num_kept": model.context}))


@feedforwards.register("mlp")
class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6) of three matrices, or GELU of two."""

    def __init__(self, model: Model, hidden: int) -> None:
        super().__init__()
        self.up = linear(model.width, hidden)
        self.down = linear(hidden, model.width)
        self.gate = linear(model.width, hidden) if model.activation == "swiglu" else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(F.gelu(self.up(x_BTD)))
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """Attention and feed-forward, each behind an RMSNorm and added to the stream."""

    def __init__(self, arch: str, model: Model, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.attention = archs[arch](model)
        self.feedforward_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.feedforward = feedforwards[model.ffn](model, hidden)

    def forward(self, x_BTD: Tensor, table: Table, sparse: bool, teach: Teach) -> Out:
        normed_BTD = self.attention_norm(x_BTD)
        y_BTD, kl_BT = self.attention(normed_BTD, table, sparse=sparse, teach=teach)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD)), kl_BT


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; tied, the embedding is also the output matrix."""

    cos_TH: Tensor
    sin_TH: Tensor

    def __init__(self, arch: str, model: Model, vocabulary: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.context = model.context
        self.embedding = nn.Embedding(vocabulary, model.width)
        self.output = None if model.tied else linear(model.width, vocabulary)
        self.blocks = nn.ModuleList(Block(arch, model, hidden) for _ in range(model.num_layers))
        self.final_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        table = rope_table(model.context, model.width // model.num_heads, model.rope_base)
        self.register_buffer("cos_TH", table.cos_TH, persistent=False)
        self.register_buffer("sin_TH", table.sin_TH, persistent=False)
        initialise(self, seed)

    def forward(self, tokens_BT: Tensor, *, sparse: bool = True) -> Tensor:
        """Logits [B, T, V]; `sparse=False` lifts the selection."""
        return self.logits(self.hidden(tokens_BT, sparse=sparse)[0])

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """What the blocks are given, [B, T, D]."""
        # scaled by sqrt(D) (arXiv 1706.03762, section 3.4): a tied embedding is small for the sake
        # of the logits, and unscaled its tokens drown in what the blocks write
        return self.embedding(tokens_BT) * self.embedding.embedding_dim**0.5

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]: all of them, or those that are asked for."""
        return F.linear(x_BTD, (self.output or self.embedding).weight)

    def hidden(
        self, tokens_BT: Tensor, *, sparse: bool = True, teach: Teach = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [B, T, D], and with `teach` the indexer loss [B, T] of each layer."""
        x_BTD = self.embed(tokens_BT)
        table, losses = Table(self.cos_TH, self.sin_TH), []
        for block in self.blocks:
            x_BTD, kl_BT = block(x_BTD, table, sparse, teach)
            losses += [] if kl_BT is None else [kl_BT]
        return self.final_norm(x_BTD), losses


def nll_sum(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Summed negative log-likelihood of M targets, nats, in fp32."""
    return F.cross_entropy(logits_MV.float(), targets_M, reduction="sum")


def group_of(name: str) -> str:
    """The group of a parameter by its name: what parameter tables and freeze plans count in."""
    parts = name.split(".")
    if "attention" in parts:
        return parts[parts.index("attention") + 1]
    if any("norm" in part for part in parts):
        return "norm"
    mixture = ("experts", "router", "feedforward")  # a mixture has groups of its own
    return next((group for group in mixture if group in parts), "embedding")


def initialise(model: Transformer, seed: int) -> None:
    """Fill each tensor from a generator of its own (seed, name): networks share what they can.

    Matrices and the embedding get standard deviation width^-1/2 (of their input), those that write
    into the stream 1/sqrt(2L) of it (GPT-2, section 2.3); norms 1 and 0.
    """
    matrices = [(name, p) for name, p in model.named_parameters() if p.dim() > 1]
    for name, parameter in matrices:  # norms are born as they should be
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        std = parameter.shape[-1] ** -0.5
        if name.endswith(".o.weight") or ("feedforward" in name and "down" in name):
            std *= (2 * len(model.blocks)) ** -0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
