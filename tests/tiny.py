"""Networks and inputs small enough to read, and a rotation slow enough to be obvious.

B batch, T tokens, D width, H head width, V vocabulary.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.strategies.base import Strategy, Trainee

VOCABULARY = 31
CONTEXT = 32


def tiny_settings(**overrides: Any) -> Model:
    """Width 32, 2 layers, 4 heads of which 2 are selected, context 32, K = 6 < T / 4."""
    values: dict[str, Any] = {
        "num_layers": 2,
        "width": 32,
        "num_heads": 4,
        "ffn_width": 48,
        "context": CONTEXT,
        "num_kept": 6,
        "indexer_heads": 2,
        "indexer_head_width": 8,
    }
    return Model(**(values | overrides))


def tiny_model(
    arch: str, *, seed: int = 0, vocabulary: int = VOCABULARY, **overrides: Any
) -> Transformer:
    """A network of the tiny settings, its feed-forward matched as in a real run."""
    settings = tiny_settings(**overrides)
    return Transformer(arch, settings, vocabulary, sizes.matched_ffn_width(arch, settings), seed)


def attentions(model: Transformer) -> list[Any]:
    """The attention of each layer; its class depends on the architecture."""
    return [block.attention for block in model.blocks]


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_tokens(batch: int = 2, length: int = CONTEXT, seed: int = 0) -> Tensor:
    """Token ids [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def documents(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """Documents of so many ids each."""
    rng = np.random.default_rng(seed)
    return [rng.integers(VOCABULARY, size=length).astype(np.int32) for length in lengths]


def turned(x_TH: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary position embedding by one rotation matrix per position; pairs are (i, i + H / 2)."""
    width = x_TH.shape[1]
    half = width // 2
    rows = []
    for position, x_H in enumerate(x_TH):
        matrix_HH = torch.zeros(width, width, dtype=x_TH.dtype)
        for i in range(half):
            angle = position * base ** (-2 * i / width)
            matrix_HH[i, i] = matrix_HH[i + half, i + half] = math.cos(angle)
            matrix_HH[i, i + half] = -math.sin(angle)
            matrix_HH[i + half, i] = math.sin(angle)
        rows.append(matrix_HH @ x_H)
    return torch.stack(rows)


def trainee_of(strategy: Strategy, model: Transformer) -> Trainee:
    """The network with the parameters that the strategy trains, as its hooks get it."""
    return Trainee(model, strategy.trainable(model))


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """END, the unknown word, a full stop, 25 words with their space, 3 ends of words."""
    named = ["<|endoftext|>", "<unk>", ".", *(f" w{n}" for n in range(25)), "ing", "ed", "s"]
    assert len(named) == VOCABULARY
    vocabulary = {word: number for number, word in enumerate(named)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(grammar.PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
