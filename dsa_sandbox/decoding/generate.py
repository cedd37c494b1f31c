"""Autoregressive decoding: a decoder with a cache, and sampling of the next tokens.

B batch, T new tokens, S all tokens so far, D width, V vocabulary.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dsa_sandbox.core.transformer import Block, Transformer
from dsa_sandbox.decoding.layer_cache import cache_of

END_ID = 0


class Decoder:
    """Feeds tokens to a network piece by piece; logits equal those of one forward pass.

    The weights must not change meanwhile. If a layer cannot be cached (selection.policies, or an
    attention of the user's), all tokens are computed again with every piece.
    """

    @torch.inference_mode()
    def __init__(self, model: Transformer, capacity: int | None = None) -> None:
        """`capacity`: most tokens that will be fed [the context, which is also the limit]."""
        self.model = model
        self.length = 0
        self.capacity = min(model.context, capacity or model.context)
        self.caches = []
        for block in model.blocks:
            cache = cache_of(block.get_submodule("attention"), model.rope_2TH, self.capacity)
            if cache is not None:
                self.caches.append(cache)
        self.cached = len(self.caches) == len(model.blocks)
        self.tokens_BS: Tensor | None = None  # all so far, if the layers cannot be cached

    @torch.inference_mode()
    def feed(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V] after each new token; ValueError if they exceed the capacity."""
        start = self.length
        self.length = start + tokens_BT.shape[1]
        if self.length > self.capacity:
            raise ValueError(f"{self.length} tokens exceed the capacity, {self.capacity}")
        if not self.cached:
            if self.tokens_BS is None:
                self.tokens_BS = tokens_BT
            else:
                self.tokens_BS = torch.cat([self.tokens_BS, tokens_BT], dim=1)
            return self.model(self.tokens_BS)[:, start:]
        # the same in all layers
        angles = self.caches[0].rope.angles(start, self.length)
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
    """Yield the next id of each prompt, or None after its end, until all prompts have ended.

    All prompts must have one length. Temperature 0 is greedy decoding. Each prompt has a random
    generator of its own, so that its continuation does not depend on the other prompts.
    """
    device = next(model.parameters()).device
    decoder = Decoder(model, len(prompts[0]) + max_tokens)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    ended = [False] * len(prompts)
    tokens_BT = torch.tensor(prompts, device=device)
    for _ in range(min(max_tokens, model.context - tokens_BT.shape[1] + 1)):
        logits_BV = decoder.feed(tokens_BT)[:, -1].float().cpu()
        ids = []
        for logits_V, generator in zip(logits_BV, generators):
            ids.append(draw(logits_V, temperature, top_p, generator))
        ended = [over or number == END_ID for over, number in zip(ended, ids)]
        yield [None if over else number for over, number in zip(ended, ids)]
        if all(ended) or decoder.length == model.context:
            return
        tokens_BT = torch.tensor(ids, device=device)[:, None]


def draw(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """A token by nucleus sampling (arXiv 1904.09751); the likeliest one if temperature is 0."""
    if temperature == 0:
        return int(logits_V.argmax())
    p_V, ids_V = (logits_V / temperature).softmax(-1).sort(descending=True)
    if p_V[0].isnan():  # the temperature underflows, or the network has diverged
        return int(logits_V.nan_to_num(nan=-torch.inf).argmax())
    # a token is left out if the likelier ones alone reach top_p; so one token always remains
    likelier_V = p_V.cumsum(-1) - p_V
    p_V = p_V.masked_fill(likelier_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(p_V, 1, generator=generator)])
