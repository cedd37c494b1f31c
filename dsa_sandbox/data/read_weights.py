"""Weights of the words that a document has stated before, in the loss of pre-training.

Such words are few: with more weight, reading is learned in about half the tokens.

B batch, T tokens, M weighted targets, N ids.
"""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox.data import reading
from dsa_sandbox.data.tokens import Batch


def reading_ids(tokenizer: Tokenizer) -> Tensor:
    """Ids of the words that reading stories read back, behind a space; words of one token only."""
    encoded = (tokenizer.encode(f"It was {word}").ids for word in reading.read_words())
    before = len(tokenizer.encode("It was").ids)
    found = {ids[-1] for ids in encoded if len(ids) == before + 1}
    return torch.tensor(sorted(found), dtype=torch.int64)


def read_weights(batch: Batch, ids_N: Tensor, weight: float) -> Tensor:
    """[B, T] weights of the targets: `weight` for one of the ids that its row has had before, or 1.

    A function of the tokens alone: a row of text that repeats such a word is weighted too.
    """
    tokens_BT, targets_BT = batch
    weights_BT = torch.ones(targets_BT.shape)
    row_M, place_M = torch.isin(targets_BT, ids_N).nonzero(as_tuple=True)
    stated_MT = tokens_BT[row_M] == targets_BT[row_M, place_M, None]
    stated_MT &= torch.arange(tokens_BT.shape[1]) <= place_M[:, None]
    weights_BT[row_M, place_M] = stated_MT.any(1).float() * (weight - 1) + 1
    return weights_BT
