"""Decoding: a network that is fed tokens as they come, and the drawing of the next ones.

B batch, T new tokens, S all tokens so far, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dsa_sandbox.core.rope import Table
from dsa_sandbox.core.transformer import Block, Transformer
from dsa_sandbox.decoding.layer_cache import cache_of

END_ID = 0


class Decoder:
    """A network that is fed tokens in pieces, and says the same as if fed them at once.

    Its weights must stay as they are. Where a control chooses the keys (variants.policies), the
    network is asked about all tokens each time.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, capacity: int | None = None) -> None:
        """`capacity`: most tokens that will come, at most the context."""
        self.model, self.length = model, 0
        self.capacity = min(model.context, capacity or model.context)
        table = Table(model.cos_TH, model.sin_TH)
        layers = [block.get_submodule("attention") for block in model.blocks]
        caches = [cache_of(layer, table, self.capacity) for layer in layers]
        self.caches = [cache for cache in caches if cache is not None]
        self.cached = len(self.caches) == len(caches)
        self.tokens_BS: Tensor | None = None  # all so far, where nothing is cached

    @torch.inference_mode()
    def feed(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] of the next tokens; ValueError where there is no room."""
        start, self.length = self.length, self.length + tokens_BT.shape[1]
        if self.length > self.capacity:
            raise ValueError(f"{self.length} tokens exceed the capacity, {self.capacity}")
        if not self.cached:
            seen = [] if self.tokens_BS is None else [self.tokens_BS]
            self.tokens_BS = torch.cat([*seen, tokens_BT], dim=1)
            return self.model(self.tokens_BS)[:, start:]
        angles = self.caches[0].turning.angles(start, self.length)
        x_BTD = self.model.embed(tokens_BT)
        for block, cache in zip(self.model.blocks, self.caches):
            assert isinstance(block, Block)
            x_BTD = x_BTD + cache.step(block.attention_norm(x_BTD), angles)
            x_BTD = x_BTD + block.feedforward(block.feedforward_norm(x_BTD))
        return self.model.logits(self.model.final_norm(x_BTD))


@torch.inference_mode()
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
    decoder = Decoder(model, len(prompts[0]) + max_tokens)
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
    if p_V[0].isnan():  # colder than floats can say, or logits of a network that has diverged
        return int(logits_V.nan_to_num(nan=-torch.inf).argmax())
    before_V = p_V.cumsum(-1) - p_V  # what likelier tokens have reached
    p_V = p_V.masked_fill(before_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(p_V, 1, generator=generator)])
