"""A pre-norm decoder around any of the attention layers, and how its weights are initialised.

B batch, T tokens, D width, V vocabulary, L layers, M targets.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import DenseAttention, DsaAttention, Output, Queries, linear
from dsa_sandbox.core.rope import at_least_fp32, rope_table
from dsa_sandbox.registry import archs, feedforwards

archs.register("dense")(DenseAttention)
archs.register("dsa")(DsaAttention)


@archs.register("dsa-full")
def dsa_full(model: Model) -> DsaAttention:
    """`dsa` with K = T: the same weights without sparsity."""
    return DsaAttention(model.model_copy(update={"num_kept": model.context}))


@feedforwards.register("mlp")
class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6) with three matrices, or GELU with two."""

    def __init__(self, model: Model, hidden: int) -> None:
        super().__init__()
        self.up = linear(model.width, hidden)
        self.down = linear(hidden, model.width)
        self.gate = linear(model.width, hidden) if model.activation == "swiglu" else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Output [B, T, D]."""
        if self.gate is None:
            return self.down(F.gelu(self.up(x_BTD)))
        return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


class Block(nn.Module):
    """A layer: attention and feed-forward, each behind an RMSNorm, added to the residual stream."""

    def __init__(self, arch: str, model: Model, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.attention = archs[arch](model)
        self.feedforward_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        self.feedforward = feedforwards[model.ffn](model, hidden)

    def forward(
        self, x_BTD: Tensor, rope_2TH: Tensor, sparse: bool, train_indexer: Queries
    ) -> Output:
        """The residual stream [B, T, D] after this layer, and the indexer's loss or None."""
        normed_BTD = self.attention_norm(x_BTD)
        y_BTD, kl_BT = self.attention(normed_BTD, rope_2TH, sparse, train_indexer)
        x_BTD = x_BTD + y_BTD
        x_BTD = x_BTD + self.feedforward(self.feedforward_norm(x_BTD))
        return x_BTD, kl_BT


class Transformer(nn.Module):
    """Token ids [B, T] to logits [B, T, V]; if tied, the embedding is also the output matrix."""

    rope_2TH: Tensor

    def __init__(self, arch: str, model: Model, vocabulary: int, hidden: int, seed: int) -> None:
        super().__init__()
        self.context = model.context
        self.embedding = nn.Embedding(vocabulary, model.width)
        self.output = None if model.tied else linear(model.width, vocabulary)
        self.blocks = nn.ModuleList(Block(arch, model, hidden) for _ in range(model.num_layers))
        self.final_norm = nn.RMSNorm(model.width, eps=model.norm_eps)
        rope_2TH = rope_table(model.context, model.width // model.num_heads, model.rope_base)
        self.register_buffer("rope_2TH", rope_2TH, persistent=False)
        initialise(self, seed)

    def forward(self, tokens_BT: Tensor, *, sparse: bool = True) -> Tensor:
        """Logits [B, T, V]; with `sparse=False` every query attends to all past keys."""
        return self.logits(self.hidden(tokens_BT, sparse=sparse)[0])

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """The input of the first layer, [B, T, D]."""
        # Times sqrt(D) (arXiv 1706.03762, section 3.4): the tied matrix has small entries for the
        # sake of the logits, and unscaled embeddings are lost among the outputs of the layers.
        return self.embedding(tokens_BT) * self.embedding.embedding_dim**0.5

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        return F.linear(x_BTD, (self.output or self.embedding).weight)

    def hidden(
        self, tokens_BT: Tensor, *, sparse: bool = True, train_indexer: Queries = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [B, T, D], and the indexer's loss of each layer, in nats.

        `train_indexer`: False for no loss (an empty list, as for networks without an indexer), True
        for the loss of every query [B, T], a tensor [Q] for that of queries at these positions
        [B, Q].
        """
        x_BTD = self.embed(tokens_BT)
        losses = []
        for block in self.blocks:
            x_BTD, kl_BT = block(x_BTD, self.rope_2TH, sparse, train_indexer)
            if kl_BT is not None:
                losses.append(kl_BT)
        return self.final_norm(x_BTD), losses


def token_nll(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """[M] negative log-likelihood of every target, in nats, computed in fp32."""
    return F.cross_entropy(at_least_fp32(logits_MV), targets_M, reduction="none")


def nll_sum(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """Summed negative log-likelihood of M targets, in nats."""
    return token_nll(logits_MV, targets_M).sum()


def initialise(model: Transformer, seed: int) -> None:
    """Draw every matrix from a normal distribution; norms keep their ones and zeros.

    The standard deviation is (input width)^-1/2, divided by sqrt(2L) for the matrices that write
    into the residual stream (GPT-2, section 2.3). Each matrix has a generator of its own, seeded by
    `seed` and its name, so that matrices that two architectures share begin equal.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() <= 1:
            continue
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        std = parameter.shape[-1] ** -0.5
        # matrices that write into the stream: the output of attention and of the feed-forward
        if name.endswith(".o.weight") or ("feedforward" in name and "down" in name):
            std *= (2 * len(model.blocks)) ** -0.5
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
