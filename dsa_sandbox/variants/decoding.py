"""Decoding with a cache: of each token, every layer keeps what its flows read again.

Of `dense` keys and values; of a compressed flow its latent and rotary key; of a selected flow one
key and one value head; of an indexer its key.

B batch, T new tokens, S all tokens so far, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dsa_sandbox.core.attention import DenseAttention, DsaAttention, Flow
from dsa_sandbox.core.indexer import kept_mask, select
from dsa_sandbox.core.rope import Table, half
from dsa_sandbox.core.transformer import Block, Transformer
from dsa_sandbox.variants.v32 import V32Attention

END_ID = 0


class Cache:
    """What one layer keeps, by name; the last axis but one of each tensor counts tokens."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def grown(self, name: str, *new: Tensor) -> list[Tensor]:
        """The tensors of `name` with those of new tokens behind them."""
        for number, tensor in enumerate(new):
            key = f"{name}.{number}"
            old = self.tensors.get(key)
            self.tensors[key] = tensor if old is None else torch.cat([old, tensor], dim=-2)
        return [self.tensors[f"{name}.{number}"] for number in range(len(new))]


class Decoder:
    """A network that is fed tokens in pieces, and says the same as if fed them at once.

    Where a control chooses the keys (variants.policies), it is asked about all tokens each time.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, self.length = model, 0
        self.caches = [Cache() for _ in model.blocks]
        self.cached = all(knows(block.attention) for block in model.blocks)
        self.tokens_BS: Tensor | None = None  # all so far, where nothing is cached

    @torch.no_grad()
    def feed(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the next tokens; ValueError where the context is full."""
        start, self.length = self.length, self.length + tokens_BT.shape[1]
        if self.length > self.model.context:
            raise ValueError(f"{self.length} tokens exceed the context, {self.model.context}")
        if not self.cached:
            seen = [] if self.tokens_BS is None else [self.tokens_BS]
            self.tokens_BS = torch.cat([*seen, tokens_BT], dim=1)
            return self.model(self.tokens_BS)[:, start:]
        table = Table(self.model.cos_TH[start:], self.model.sin_TH[start:])
        # of these rows alone: a mask of all would cost T^2 a token
        num_new = tokens_BT.shape[1]
        past_TS = tokens_BT.new_ones(num_new, self.length, dtype=torch.bool).tril(start)
        past_BTS = past_TS.expand(len(tokens_BT), -1, -1)
        x_BTD = self.model.embed(tokens_BT)
        for block, cache in zip(self.model.blocks, self.caches):
            assert isinstance(block, Block)
            y_BTD = attention(block.attention, block.attention_norm(x_BTD), table, cache, past_BTS)
            x_BTD = x_BTD + y_BTD
            x_BTD = x_BTD + block.feedforward(block.feedforward_norm(x_BTD))
        return self.model.logits(self.model.final_norm(x_BTD))


def knows(layer: object) -> bool:
    """Whether `attention` can decode this layer: it chooses keys by what it keeps of each token."""
    return isinstance(layer, DenseAttention | DsaAttention) and "scores" not in vars(layer)


def attention(layer: nn.Module, x_BTD: Tensor, table: Table, cache: Cache, past: Tensor) -> Tensor:
    """Output [B, T, D] of the new tokens; `past` [B, T, S] is the causal mask."""
    if isinstance(layer, DenseAttention):
        return flow(layer, "dense", x_BTD, table, cache, past)
    assert isinstance(layer, DsaAttention)
    kept = chosen(layer, x_BTD, cache, past)
    if isinstance(layer, V32Attention):
        q_BNTF, *new = layer.project(x_BTD, table)
        return layer.mix(q_BNTF, *cache.grown("latent", *new), kept=kept)
    compressed_BTD = flow(layer.compressed, "compressed", x_BTD, half(table), cache, past)
    return compressed_BTD + flow(layer.selected, "selected", x_BTD, table, cache, kept)


def flow(
    layer: Flow | DenseAttention,
    name: str,
    x_BTD: Tensor,
    table: Table | None,
    cache: Cache,
    kept: Tensor,
) -> Tensor:
    """Output [B, T, D] of a flow for the new tokens."""
    q_BNTH, *new = layer.project(x_BTD, table)
    return layer.mix(q_BNTH, *cache.grown(name, *new), kept=kept)


def chosen(layer: DsaAttention, x_BTD: Tensor, cache: Cache, past_BTS: Tensor) -> Tensor:
    """Which keys [B, T, S] the new queries look at."""
    num_new, length = past_BTS.shape[-2:]
    query_BTR = layer.query(x_BTD) if isinstance(layer, V32Attention) else None
    q_BITH, w_BTI, k_BTH = layer.indexer.project(x_BTD, query_BTR, start=length - num_new)
    (k_BSH,) = cache.grown("indexer", k_BTH)
    if layer.num_kept >= length:
        return past_BTS
    scores_BTS = layer.indexer.score(q_BITH, w_BTI, k_BSH)
    ids_BTK = select(scores_BTS, layer.num_kept, layer.num_sink, layer.num_local)
    return kept_mask(ids_BTK, length)


@torch.no_grad()
def stream(
    model: Transformer,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> Iterator[list[int | None]]:
    """One new id for each prompt at a time, None for those that have ended, until all have.

    Prompts have one length. Temperature 0 takes the likeliest token. Each prompt has a generator of
    its own, so that it goes on alike alone and in company.
    """
    device = next(model.parameters()).device
    decoder = Decoder(model)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    ended = [False] * len(prompts)
    tokens_BT = torch.tensor(prompts, device=device)
    for _ in range(min(max_tokens, model.context - tokens_BT.shape[1] + 1)):
        logits_BV = decoder.feed(tokens_BT)[:, -1].float().cpu()
        ids = [draw(row, temperature, top_p, g) for row, g in zip(logits_BV, generators)]
        ended = [over or number == END_ID for over, number in zip(ended, ids)]
        yield [None if over else number for over, number in zip(ended, ids)]
        if all(ended) or decoder.length == model.context:
            return
        tokens_BT = torch.tensor(ids, device=device)[:, None]


def draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token drawn from the likeliest ones that together reach `top_p` (arXiv 1904.09751)."""
    if temperature == 0:
        return int(logits_V.argmax())
    p_V, ids_V = (logits_V / temperature).softmax(-1).sort(descending=True)
    before_V = p_V.cumsum(-1) - p_V  # what likelier tokens have reached
    p_V = p_V.masked_fill(before_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(p_V, 1, generator=generator)])
