"""Scores of a network on probe items and held-out text.

Context and answer are encoded jointly; a tie is a failure. B rows, T tokens, D width, V vocabulary,
N items, M places in the rows, A answers that are asked at a place.
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
from dsa_sandbox.data.spelling import boundaries, common_length, text_after
from dsa_sandbox.data.tokens import IGNORED, Packed, encode, micro_batches
from dsa_sandbox.decoding.generate import stream
from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks.schema import Item

MICRO_TOKENS = 4096  # tokens of a batch; larger ones leave the cache of a CPU


class Score(NamedTuple):
    """How a network answers one item."""

    answer: float  # log-probability of the answer, nats
    wrong: list[float]  # of each wrong candidate, the contrary object first
    exact: bool  # greedy decoding gives the answer and then ends the word
    terms: list[int]  # log-probabilities that each candidate's sums up, the answer first
    said: list[int]  # greedy ids, up to the first that differs from the answer

    @property
    def margin(self) -> float:
        """Log-probability of the answer minus that of the best other, nats; 0 is a failure."""
        return self.answer - max(self.wrong)

    @property
    def per_token(self) -> bool:
        """Whether answer and contrary differ in their number of tokens."""
        return self.terms[0] != self.terms[1]

    @property
    def compared(self) -> list[float]:
        """Log-probabilities by which candidates are compared, nats, the answer first.

        Sums where answer and contrary have equally many tokens, else means over each candidate's
        tokens: a longer text would lose by its length.
        """
        sums = [self.answer, *self.wrong]
        return [a / b for a, b in zip(sums, self.terms)] if self.per_token else sums


class Encoded(NamedTuple):
    """Items as token rows."""

    rows: list[list[int]]  # opener, prompt, candidate
    starts: list[int]  # where the candidate begins in its row
    owners: list[tuple[int, int]]  # item, candidate (0 is the answer)
    shared: list[list[int] | None]  # ids of all candidates of an item that needs only one row

    def leads(self) -> list[list[int]]:
        """For each item the ids before its answer."""
        found = {}
        for row, start, (number, candidate) in zip(self.rows, self.starts, self.owners):
            if candidate == 0:
                found[number] = row[:start]
        return [found[number] for number in range(len(self.shared))]


def encode_items(items: list[Item], tokenizer: Tokenizer) -> Encoded:
    """Rows for all candidates; one row for an item whose candidates are single tokens.

    A candidate's tokens follow the longest common part of the prompt and all texts, so a tokenizer
    that merges across the border is scored on the tokens that differ. UserError where a candidate
    has no such token: its score would be that of any end of a word.
    """
    encoded = Encoded([], [], [], [])
    for number, item in enumerate(items):
        prompt = encode(tokenizer, item.prompt)
        candidates = [item.answer, *item.wrong]
        wholes = [encode(tokenizer, item.prompt + text) for text in candidates]
        start = min(common_length(prompt, whole) for whole in wholes)
        tails = [whole[start:] for whole in wholes]
        for text, tail in zip(candidates, tails):
            if not tail:
                raise UserError(
                    f"{text!r} has no token of its own behind {item.prompt[-40:]!r}; the base's "
                    "tokenizer drops it"
                )
        single = all(len(tail) == 1 for tail in tails)
        encoded.shared.append([tail[0] for tail in tails] if single else None)
        for candidate, whole in enumerate(wholes[:1] if single else wholes):
            encoded.rows.append(whole)
            encoded.starts.append(start)
            encoded.owners.append((number, candidate))
    return encoded


@lru_cache(maxsize=8)
def boundary_of(tokenizer_json: str) -> Tensor:
    """[V] True for tokens that end the word before them: specials, spaces, punctuation."""
    return torch.tensor(boundaries(Tokenizer.from_str(tokenizer_json)))


class Answers(NamedTuple):
    """A score for each item, and the prediction at its gap."""

    scores: list[Score]
    gap_NV: Tensor  # log-probabilities of the token after each prompt, nats


def score(model: Transformer, encoded: Encoded, tokenizer: Tokenizer) -> list[Score]:
    """One Score for each item.

    The score of a single-token candidate is its log-probability; that of a longer one adds up the
    log-probabilities of its tokens and of the word's end. A greedy path that spells the answer with
    other tokens counts as a failure, and so does a tie.
    """
    return answers(model, encoded, tokenizer).scores


class Read(NamedTuple):
    """Predictions of a chunk of rows, from each row's gap to the end of its candidate."""

    firsts: list[int]  # place of each row's gap among the M places
    lasts: list[int]  # and of the end of its candidate
    logp_MV: Tensor  # log-probabilities of the next token
    top: list[int]  # the argmax, by place; -1 where it is not a number
    said: list[float]  # log-probability of the row's own next token, by place
    alone: list[bool]  # whether that token is the only argmax, by place
    ended: list[bool]  # whether the argmax at the end of the candidate ends the word, by row
    end: list[float]  # log-probability of the word's end there, by row


def read_chunk(model: Transformer, encoded: Encoded, chunk: list[int], boundary_V: Tensor) -> Read:
    """The predictions of the rows with the numbers of a chunk."""
    device = boundary_V.device
    firsts = []
    lasts = []
    pairs: list[tuple[int, int]] = []  # row of the chunk, position in the row
    for index, row in enumerate(chunk):
        firsts.append(len(pairs))
        for position in range(encoded.starts[row] - 1, len(encoded.rows[row])):
            pairs.append((index, position))
        lasts.append(len(pairs) - 1)
    rows_M, places_M = torch.tensor(pairs, device=device).unbind(1)
    tokens_BT = padded([encoded.rows[row] for row in chunk]).to(device)
    logits_MV = model.logits(hidden_at(model, tokens_BT, rows_M, places_M)).float()
    logp_MV = logits_MV.log_softmax(-1)
    # the last position of a row has no next token: its value is never used
    next_M1 = tokens_BT.roll(-1, dims=1)[rows_M, places_M, None]
    said_M1 = logp_MV.gather(1, next_M1)
    alone_M = (logp_MV >= said_M1).sum(1) == 1  # in a tie, and among NaN, no token is the argmax
    best_M, top_M = logp_MV.max(-1)
    top_M = top_M.masked_fill(best_M.isnan(), -1)
    logp_BV = logp_MV[torch.tensor(lasts, device=device)]
    ends_B = logp_BV.masked_fill(~boundary_V, -torch.inf).amax(1)
    goes_on_B = logp_BV.masked_fill(boundary_V, -torch.inf).amax(1)
    end_B = logp_BV[:, boundary_V].logsumexp(1)
    return Read(
        firsts,
        lasts,
        logp_MV,
        top_M.tolist(),
        said_M1[:, 0].tolist(),
        alone_M.tolist(),
        (ends_B > goes_on_B).tolist(),
        end_B.tolist(),
    )


@torch.no_grad()
def answers(model: Transformer, encoded: Encoded, tokenizer: Tokenizer) -> Answers:
    """One Score for each item, as `score` defines it, and the log-probabilities at its gap."""
    device = next(model.parameters()).device
    boundary_V = boundary_of(tokenizer.to_str()).to(device)
    found: dict[tuple[int, int], float] = {}
    terms: dict[tuple[int, int], int] = {}
    exact: dict[int, bool] = {}
    said: dict[int, list[int]] = {}
    gaps: dict[int, Tensor] = {}
    lengths = [len(row) for row in encoded.rows]
    # rows of similar length share a batch, which needs less padding
    for chunk in chunks(sorted(range(len(lengths)), key=lengths.__getitem__), lengths):
        read = read_chunk(model, encoded, chunk, boundary_V)
        asked: list[tuple[int, int, int, int]] = []  # item, candidate, place of the gap, id
        for index, row in enumerate(chunk):
            number, candidate = encoded.owners[row]
            first = read.firsts[index]
            last = read.lasts[index]
            if candidate == 0:
                exact[number] = all(read.alone[first:last]) and read.ended[index]
                gaps[number] = read.logp_MV[first]
                own = encoded.rows[row][encoded.starts[row] :]
                said[number] = greedy(read.top[first : last + 1], own, boundary_V)
            shared = encoded.shared[number]
            if shared is None:
                found[number, candidate] = sum(read.said[first:last]) + read.end[index]
                terms[number, candidate] = last - first + 1
                continue
            for other, id_ in enumerate(shared):
                asked.append((number, other, first, id_))
        if asked:
            gap_A, id_A = torch.tensor([one[2:] for one in asked], device=device).unbind(1)
            for (number, other, *_), value in zip(asked, read.logp_MV[gap_A, id_A].tolist()):
                found[number, other] = value
    num_candidates = Counter(number for number, _ in found)
    scores = []
    for number in range(len(encoded.shared)):
        candidates = range(num_candidates[number])
        values = [found[number, candidate] for candidate in candidates]
        counts = [terms.get((number, candidate), 1) for candidate in candidates]
        scores.append(Score(values[0], values[1:], exact[number], counts, said[number]))
    none_NV = torch.empty(0, len(boundary_V), device=device)
    return Answers(scores, torch.stack([gaps[n] for n in range(len(scores))]) if gaps else none_NV)


def greedy(top: list[int], own: list[int], boundary_V: Tensor) -> list[int]:
    """The greedy ids behind a prompt up to the first that is not the candidate's own.

    Where the whole candidate is said, the next token follows only if the word goes on with it.
    """
    said: list[int] = []
    for id_, expected in zip(top, [*own, -1]):
        ended = expected == -1 and bool(boundary_V[id_])
        if id_ == -1 or ended:
            return said
        said.append(id_)
        if id_ != expected:
            return said
    return said


def hidden_at(model: Transformer, tokens_BT: Tensor, rows_M: Tensor, places_M: Tensor) -> Tensor:
    """`model.hidden` at M places, [M, D]; the last feed-forward computes only these."""
    x_BTD = model.embed(tokens_BT)
    *blocks, last = model.blocks
    assert isinstance(last, Block)
    for block in blocks:
        x_BTD, _ = block(x_BTD, model.rope_2TH, sparse=True, train_indexer=False)
    y_BTD, _ = last.attention(last.attention_norm(x_BTD), model.rope_2TH)
    x_MD = (x_BTD + y_BTD)[rows_M, places_M]
    return model.final_norm(x_MD + last.feedforward(last.feedforward_norm(x_MD)))


def padded(rows: list[list[int]]) -> Tensor:
    """[B, T] rows of ids, shorter ones filled up with 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def chunks(order: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows in batches of at most MICRO_TOKENS tokens, padding included."""
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
    total = 0.0
    count = 0
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
    total = 0.0
    count = 0
    for batch in micro_batches(documents, MICRO_TOKENS):
        tokens_BT, targets_BT = batch.to(device)
        real_BT = targets_BT != IGNORED
        p_MV = log_probabilities(base, tokens_BT, real_BT)
        q_MV = log_probabilities(model, tokens_BT, real_BT)
        total += float((p_MV.exp() * (p_MV - q_MV)).sum())
        count += batch.num_targets
    return total / count


def log_probabilities(model: Transformer, tokens_BT: Tensor, real_BT: Tensor) -> Tensor:
    """[M, V] log-probabilities of the next token at the places that are `real_BT`, nats."""
    return model.logits(model.hidden(tokens_BT)[0][real_BT]).float().log_softmax(-1)


def unigram_nll(packed: Packed, documents: list[np.ndarray], vocabulary: int) -> float:
    """Nats per token of windows under the token counts of a text, with add-one smoothing."""
    counts_V = np.ones(vocabulary)
    for begin in range(0, len(packed.ids), 2**24):
        counts_V += np.bincount(packed.ids[begin : begin + 2**24], minlength=vocabulary)
    first = np.asarray(packed.ids)[packed.starts[:-1]]  # openers of documents are never predicted
    counts_V -= np.bincount(first, minlength=vocabulary)
    nats_V = -np.log(counts_V / counts_V.sum())
    return float(nats_V[np.concatenate([document[1:] for document in documents])].mean())


def num_bytes(documents: list[np.ndarray], tokenizer: Tokenizer) -> int:
    """Bytes of text in the targets of windows.

    Windows of one document are decoded together: a border may divide a word or a character.
    """
    wholes: list[list[int]] = []
    for window in documents:
        first, *targets = window.tolist()
        if first == 0 or not wholes or wholes[-1][-1] != first:
            wholes.append([first])
        wholes[-1] += targets
    total = 0
    for whole in wholes:
        before = [id_ for id_ in whole[:1] if id_]
        after = [id_ for id_ in whole[1:] if id_]
        total += len(text_after(tokenizer, before, after).encode())
    return total


def sample_story(
    model: Transformer, tokenizer: Tokenizer, prompt: str, seed: int, temperature: float = 0.7
) -> str:
    """A story of tokens drawn at `temperature` until the end token or the end of the context."""
    ids = encode(tokenizer, prompt)
    drawn = stream(
        model, [ids], max_tokens=model.context, temperature=temperature, top_p=1.0, seed=seed
    )
    ids += [new for (new,) in drawn if new is not None]
    return tokenizer.decode([i for i in ids[1:] if i])


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Summed nats as bits, over the bytes of their text."""
    return nats / math.log(2) / num_bytes


def batch_rows(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Texts as documents: opener, text, END."""
    return [np.array([*encode(tokenizer, text), 0], dtype=np.int64) for text in texts]
