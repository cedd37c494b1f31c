"""What a network says: probe items, held-out text, minimal pairs.

Context and answer are encoded jointly; a tie is a failure.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from dsa_sandbox.core.transformer import IGNORED, Transformer, nll_sum
from dsa_sandbox.data.grammar import Pair
from dsa_sandbox.data.tokens import Packed, encode, micro_batches
from dsa_sandbox.tasks.stream import Item
from dsa_sandbox.variants.decoding import stream

MICRO_TOKENS = 8192


class Score(NamedTuple):
    """How a network answers one item."""

    answer: float  # log-probability of the answer, nats
    foils: list[float]  # of each foil
    tf_em: bool  # every token of the answer is the argmax, given those before it
    gen_em: bool  # greedy decoding says the answer and then ends the word

    @property
    def margin(self) -> float:
        """Answer minus best rival, nats; not above 0 is a failure."""
        return self.answer - max(self.foils)


class Encoded(NamedTuple):
    """Items as token rows, made once and scored often."""

    rows: list[list[int]]  # END, prompt, candidate
    starts: list[int]  # where the candidate begins in its row
    owners: list[tuple[int, int]]  # item, candidate (0 is the answer)
    shared: list[list[int] | None]  # of one-token items: the candidates' ids, in one row


def encode_items(items: list[Item], tokenizer: Tokenizer) -> Encoded:
    """Rows for all candidates; items whose candidates are single tokens need one row.

    A candidate's tokens are those that follow the longest common part of prompt and whole, so a
    tokenizer that merges across the joint is scored on what differs.
    """
    rows, starts, owners, shared = [], [], [], []
    for number, item in enumerate(items):
        prompt = encode(tokenizer, item.prompt)
        wholes = [encode(tokenizer, item.prompt + text) for text in (item.answer, *item.foils)]
        start = min(common_length(prompt, whole) for whole in wholes)
        tails = [whole[start:] for whole in wholes]
        single = all(len(tail) == 1 for tail in tails)
        shared.append([tail[0] for tail in tails] if single else None)
        for candidate, whole in enumerate(wholes[:1] if single else wholes):
            rows.append(whole)
            starts.append(start)
            owners.append((number, candidate))
    return Encoded(rows, starts, owners, shared)


def common_length(a: list[int], b: list[int]) -> int:
    """How many first ids two rows share."""
    for index, (left, right) in enumerate(zip(a, b)):
        if left != right:
            return index
    return min(len(a), len(b))


@lru_cache(maxsize=8)
def boundary_of(tokenizer_json: str) -> Tensor:
    """[V] True for tokens that end the word before them: specials, spaces, punctuation."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    texts = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    return torch.tensor([not text or not text[0].isalnum() for text in texts])


@torch.no_grad()
def score(model: Transformer, encoded: Encoded, tokenizer: Tokenizer) -> list[Score]:
    """One Score for each item.

    A single-token candidate scores its log-probability; of longer ones, the summed log-probability
    of its tokens and of the word's end. A greedy path that spells the answer with other tokens
    counts as a failure.
    """
    device = next(model.parameters()).device
    boundary_V = boundary_of(tokenizer.to_str()).to(device)
    found: dict[tuple[int, int], float] = {}
    exact: dict[int, tuple[bool, bool]] = {}
    order = sorted(range(len(encoded.rows)), key=lambda row: len(encoded.rows[row]))
    for chunk in chunks(order, [len(row) for row in encoded.rows]):
        rows = [encoded.rows[row] for row in chunk]
        longest = max(len(row) for row in rows)
        tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        x_BTD, _ = model.hidden(tokens_BT)
        for index, row in enumerate(chunk):
            start, ids = encoded.starts[row], encoded.rows[row]
            number, candidate = encoded.owners[row]
            logp_TV = model.logits(x_BTD[index, start - 1 : len(ids)]).float().log_softmax(-1)
            tail = tokens_BT[index, start : len(ids)]
            if candidate == 0:
                greedy = logp_TV.argmax(-1)
                tf_em = bool((greedy[:-1] == tail).all())
                exact[number] = (tf_em, tf_em and bool(boundary_V[greedy[-1]]))
            shared = encoded.shared[number]
            if shared is not None:
                for other, value in enumerate(logp_TV[0, shared].tolist()):
                    found[number, other] = value
            else:
                said = logp_TV[:-1].gather(1, tail[:, None]).sum()
                ends = logp_TV[-1][boundary_V].logsumexp(0)
                found[number, candidate] = float(said + ends)
    num_candidates = Counter(number for number, _ in found)
    scores = []
    for number in range(len(encoded.shared)):
        values = [found[number, candidate] for candidate in range(num_candidates[number])]
        scores.append(Score(values[0], values[1:], *exact[number]))
    return scores


def chunks(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows in batches of at most MICRO_TOKENS tokens, padding in."""
    chunk: list[int] = []
    for row in order:
        if chunk and (len(chunk) + 1) * lengths[row] > MICRO_TOKENS:
            yield chunk
            chunk = []
        chunk.append(row)
    if chunk:
        yield chunk


@torch.no_grad()
def heldout_nll(
    model: Transformer, documents: list[np.ndarray], *, sparse: bool = True
) -> tuple[float, int]:
    """Summed negative log-likelihood (nats) and number of tokens of windows of held-out text."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in micro_batches(documents, MICRO_TOKENS):
        tokens_BT, targets_BT = batch.to(device)
        real_BT = targets_BT != IGNORED
        x_BTD, _ = model.hidden(tokens_BT, sparse=sparse)
        total += nll_sum(model.logits(x_BTD[real_BT]), targets_BT[real_BT]).item()
        count += batch.num_targets
    return total, count


@torch.no_grad()
def heldout_kl(base: Transformer, model: Transformer, documents: list[np.ndarray]) -> float:
    """Mean KL(base || model) over the tokens of held-out text, nats."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in micro_batches(documents, MICRO_TOKENS):
        tokens_BT, targets_BT = batch.to(device)
        real_BT = targets_BT != IGNORED
        p, q = (
            net.logits(net.hidden(tokens_BT)[0][real_BT]).float().log_softmax(-1)
            for net in (base, model)
        )
        total += float((p.exp() * (p - q)).sum())
        count += batch.num_targets
    return total / count


@torch.no_grad()
def pair_accuracy(model: Transformer, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """Share of minimal pairs, per kind, whose good form is likelier; a tie is a failure."""
    items = [Item(prompt=pair.prefix, answer=pair.good, foils=[pair.bad]) for pair in pairs]
    scores = score(model, encode_items(items, tokenizer), tokenizer)
    return by_kind(pairs, [one.margin > 0 for one in scores])


def bigram_accuracy(packed: Packed, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """The same for counts of neighbouring tokens in the training text; a tie counts one half."""
    ids = np.asarray(packed.ids)
    right = []
    for pair in pairs:
        last = encode(tokenizer, pair.prefix)[-1]
        following = ids[1:][ids[:-1] == last]
        good, bad = (
            int((following == tokenizer.encode(text).ids[0]).sum())
            for text in (pair.good, pair.bad)
        )
        right.append(1.0 if good > bad else 0.5 if good == bad else 0.0)
    return by_kind(pairs, right)


def by_kind(pairs: list[Pair], right: list[bool] | list[float]) -> dict[str, float]:
    """Mean of `right` for each kind of pair."""
    kinds = sorted({pair.kind for pair in pairs})
    return {
        kind: float(np.mean([r for p, r in zip(pairs, right) if p.kind == kind])) for kind in kinds
    }


def sample_story(
    model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int, temperature: float = 0.7
) -> str:
    """A sample story: tokens drawn at `temperature` until the end token or the context is full."""
    ids = encode(tokenizer, prompt)
    drawn = stream(
        model, [ids], max_tokens=model.context, temperature=temperature, top_p=1.0, seed=seed
    )
    ids += [new for (new,) in drawn if new is not None]
    return tokenizer.decode([i for i in ids if i])


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Summed nats over the bytes they say."""
    return nats / math.log(2) / num_bytes


def batch_rows(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Texts as documents with END on both sides."""
    return [np.array([*encode(tokenizer, text), 0], dtype=np.int64) for text in texts]
