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

from dsa_sandbox.core.transformer import Block, Transformer, nll_sum
from dsa_sandbox.data.grammar import Pair
from dsa_sandbox.data.spelling import boundaries, common_length, said_behind
from dsa_sandbox.data.tokens import IGNORED, Packed, encode, micro_batches
from dsa_sandbox.decoding.generate import stream
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks.schema import Item

MICRO_TOKENS = 4096  # what a processor's cache likes best


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

    rows: list[list[int]]  # opener, prompt, candidate
    starts: list[int]  # where the candidate begins in its row
    owners: list[tuple[int, int]]  # item, candidate (0 is the answer)
    shared: list[list[int] | None]  # of one-token items: the candidates' ids, in one row


def encode_items(items: list[Item], tokenizer: Tokenizer) -> Encoded:
    """Rows for all candidates; items whose candidates are single tokens need one row.

    A candidate's tokens are those that follow the longest common part of prompt and whole, so a
    tokenizer that merges across the joint is scored on what differs. UserError where a candidate
    has no such token: it would be as likely as any end of a word.
    """
    rows, starts, owners, shared = [], [], [], []
    for number, item in enumerate(items):
        prompt = encode(tokenizer, item.prompt)
        wholes = [encode(tokenizer, item.prompt + text) for text in (item.answer, *item.foils)]
        start = min(common_length(prompt, whole) for whole in wholes)
        tails = [whole[start:] for whole in wholes]
        if not all(tails):
            silent = [text for text, tail in zip((item.answer, *item.foils), tails) if not tail]
            raise UserError(
                f"{silent[0]!r} has no token of its own behind {item.prompt[-40:]!r}; the base's "
                "tokenizer drops it"
            )
        single = all(len(tail) == 1 for tail in tails)
        shared.append([tail[0] for tail in tails] if single else None)
        for candidate, whole in enumerate(wholes[:1] if single else wholes):
            rows.append(whole)
            starts.append(start)
            owners.append((number, candidate))
    return Encoded(rows, starts, owners, shared)


@lru_cache(maxsize=8)
def boundary_of(tokenizer_json: str) -> Tensor:
    """[V] True for tokens that end the word before them: specials, spaces, punctuation."""
    return torch.tensor(boundaries(Tokenizer.from_str(tokenizer_json)))


class Answers(NamedTuple):
    """A score for each item, and what the network expects at its gap."""

    scores: list[Score]
    gap_NV: Tensor  # log-probabilities of the token behind each prompt, nats


def score(model: Transformer, encoded: Encoded, tokenizer: Tokenizer) -> list[Score]:
    """One Score for each item.

    A single-token candidate scores its log-probability; of longer ones, the summed log-probability
    of its tokens and of the word's end. A greedy path that spells the answer with other tokens
    counts as a failure, and so does a tie.
    """
    return answers(model, encoded, tokenizer).scores


@torch.no_grad()
def answers(model: Transformer, encoded: Encoded, tokenizer: Tokenizer) -> Answers:
    """One Score for each item, as `score` has it, and the log-probabilities at its gap."""
    device = next(model.parameters()).device
    boundary_V = boundary_of(tokenizer.to_str()).to(device)
    found: dict[tuple[int, int], float] = {}
    exact: dict[int, tuple[bool, bool]] = {}
    gaps: dict[int, Tensor] = {}
    lengths = [len(row) for row in encoded.rows]
    for chunk in chunks(sorted(range(len(lengths)), key=lengths.__getitem__), lengths):
        # of each row, the places from the gap to the end of the candidate
        spans = [range(encoded.starts[row] - 1, lengths[row]) for row in chunk]
        pairs = [(index, place) for index, span in enumerate(spans) for place in span]
        rows_M, places_M = torch.tensor(pairs, device=device).unbind(1)
        tokens_BT = padded([encoded.rows[row] for row in chunk]).to(device)
        logp_MV = model.logits(hidden_at(model, tokens_BT, rows_M, places_M)).float()
        logp_MV = logp_MV.log_softmax(-1)
        next_M1 = tokens_BT.roll(-1, dims=1)[rows_M, places_M, None]  # at an end, means nothing
        said_M1 = logp_MV.gather(1, next_M1)
        alone_M = (logp_MV >= said_M1).sum(1) == 1  # of a tie, and among NaN, none is the argmax
        ends = np.cumsum([len(span) for span in spans]) - 1
        logp_BV = logp_MV[torch.from_numpy(ends).to(device)]
        ends_B, goes_on_B = (
            logp_BV.masked_fill(others_V, -torch.inf).amax(1)
            for others_V in (~boundary_V, boundary_V)
        )
        end_B = logp_BV[:, boundary_V].logsumexp(1)
        said, alone, ended, end = (
            x.tolist() for x in (said_M1[:, 0], alone_M, ends_B > goes_on_B, end_B)
        )
        asked: list[tuple[int, int, int, int]] = []  # item, candidate, place of the gap, id
        for index, row in enumerate(chunk):
            number, candidate = encoded.owners[row]
            last = int(ends[index])
            first = last + 1 - len(spans[index])
            if candidate == 0:
                tf_em = all(alone[first:last])
                exact[number] = (tf_em, tf_em and ended[index])
                gaps[number] = logp_MV[first]
            shared = encoded.shared[number]
            if shared is None:
                found[number, candidate] = sum(said[first:last]) + end[index]
            else:
                asked += [(number, other, first, id_) for other, id_ in enumerate(shared)]
        if asked:
            gap_A, id_A = torch.tensor([a[2:] for a in asked], device=device).unbind(1)
            for (number, other, *_), value in zip(asked, logp_MV[gap_A, id_A].tolist()):
                found[number, other] = value
    num_candidates = Counter(number for number, _ in found)
    scores = []
    for number in range(len(encoded.shared)):
        values = [found[number, candidate] for candidate in range(num_candidates[number])]
        scores.append(Score(values[0], values[1:], *exact[number]))
    none_NV = torch.empty(0, len(boundary_V), device=device)
    return Answers(scores, torch.stack([gaps[n] for n in range(len(scores))]) if gaps else none_NV)


def hidden_at(model: Transformer, tokens_BT: Tensor, rows_M: Tensor, places_M: Tensor) -> Tensor:
    """`model.hidden` at M places only, [M, D]: the last feed-forward is spared the others."""
    x_BTD = model.embed(tokens_BT)
    *blocks, last = model.blocks
    assert isinstance(last, Block)
    for block in blocks:
        x_BTD, _ = block(x_BTD, model.rope_2TH, sparse=True, train_indexer=False)
    y_BTD, _ = last.attention(last.attention_norm(x_BTD), model.rope_2TH)
    x_MD = (x_BTD + y_BTD)[rows_M, places_M]
    return model.final_norm(x_MD + last.feedforward(last.feedforward_norm(x_MD)))


def padded(rows: list[list[int]]) -> Tensor:
    """[B, T] rows of ids, those that are shorter filled up with 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


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


def pair_accuracy(model: Transformer, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """Share of minimal pairs, per kind, whose good form is likelier; a tie is a failure."""
    return pair_shares(model, pairs, encode_pairs(pairs, tokenizer), tokenizer)


def fitting_pairs(pairs: list[Pair], tokenizer: Tokenizer, context: int) -> list[Pair]:
    """Those that a context has room for, in both forms."""
    rows = [encode_pairs([pair], tokenizer).rows for pair in pairs]
    return [p for p, several in zip(pairs, rows) if max(map(len, several)) <= context]


def encode_pairs(pairs: list[Pair], tokenizer: Tokenizer) -> Encoded:
    """Pairs as items with one foil."""
    items = [Item(prompt=pair.prefix, answer=pair.good, foils=[pair.bad]) for pair in pairs]
    return encode_items(items, tokenizer)


def pair_shares(
    model: Transformer, pairs: list[Pair], encoded: Encoded, tokenizer: Tokenizer
) -> dict[str, float]:
    """As `pair_accuracy`, of pairs that are encoded already."""
    return by_kind(pairs, [one.margin > 0 for one in score(model, encoded, tokenizer)])


def bigram_accuracy(packed: Packed, pairs: list[Pair], tokenizer: Tokenizer) -> dict[str, float]:
    """The same for counts of neighbouring tokens in the training text; a tie counts one half.

    What is counted is the first token that the two forms do not share, behind the one before it;
    of a form that ends there, whatever ends a word.
    """
    ids = np.asarray(packed.ids)
    boundary_V = boundary_of(tokenizer.to_str()).numpy()
    forms = [
        [encode(tokenizer, pair.prefix + text) for text in (pair.good, pair.bad)] for pair in pairs
    ]
    places = [common_length(*both) for both in forms]
    lasts = [both[0][place - 1] for both, place in zip(forms, places)]
    following = {last: ids[1:][ids[:-1] == last] for last in set(lasts)}
    right = []
    for both, place, last in zip(forms, places, lasts):
        next_N = following[last]
        good, bad = (
            int((next_N == form[place] if place < len(form) else boundary_V[next_N]).sum())
            for form in both
        )
        right.append(1.0 if good > bad else 0.5 if good == bad else 0.0)
    return by_kind(pairs, right)


def by_kind(pairs: list[Pair], right: list[bool] | list[float]) -> dict[str, float]:
    """Mean of `right` for each kind of pair."""
    kinds = sorted({pair.kind for pair in pairs})
    return {
        kind: float(np.mean([r for p, r in zip(pairs, right) if p.kind == kind])) for kind in kinds
    }


def unigram_nll(packed: Packed, documents: list[np.ndarray], vocabulary: int) -> float:
    """Nats per token of windows under the token counts of a text, each count one higher."""
    counts_V = np.ones(vocabulary)
    for begin in range(0, len(packed.ids), 2**24):
        counts_V += np.bincount(packed.ids[begin : begin + 2**24], minlength=vocabulary)
    first = np.asarray(packed.ids)[packed.starts[:-1]]  # what opens a document is never predicted
    counts_V -= np.bincount(first, minlength=vocabulary)
    nats_V = -np.log(counts_V / counts_V.sum())
    return float(nats_V[np.concatenate([document[1:] for document in documents])].mean())


def num_bytes(documents: list[np.ndarray], tokenizer: Tokenizer) -> int:
    """Bytes that the targets of windows say.

    Windows of one document are read as one: a cut may stand in a word, or in half a character.
    """
    wholes: list[list[int]] = []
    for window in documents:
        first, *targets = window.tolist()
        if first == 0 or not wholes or wholes[-1][-1] != first:
            wholes.append([first])
        wholes[-1] += targets
    said = (
        said_behind(tokenizer, *([i for i in part if i] for part in (whole[:1], whole[1:])))
        for whole in wholes
    )
    return sum(len(text.encode()) for text in said)


def sample_story(
    model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int, temperature: float = 0.7
) -> str:
    """A sample story: tokens drawn at `temperature` until the end token or the context is full."""
    ids = encode(tokenizer, prompt)
    drawn = stream(
        model, [ids], max_tokens=model.context, temperature=temperature, top_p=1.0, seed=seed
    )
    ids += [new for (new,) in drawn if new is not None]
    return tokenizer.decode([i for i in ids[1:] if i])


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Summed nats over the bytes they say."""
    return nats / math.log(2) / num_bytes


def batch_rows(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Texts as documents: opener, text, END."""
    return [np.array([*encode(tokenizer, text), 0], dtype=np.int64) for text in texts]
