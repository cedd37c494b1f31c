"""Weights of words that a document has stated before: where they stand, and what they do.

B batch, T tokens.
"""

import pytest
import torch
from tiny import tiny_model
from tokenizers import Tokenizer

from dsa_sandbox.config.settings import Data, Train
from dsa_sandbox.core.transformer import token_nll
from dsa_sandbox.data import corpus, reading
from dsa_sandbox.data.read_weights import read_weights, reading_ids
from dsa_sandbox.data.tokens import (
    IGNORED,
    Batch,
    batch_of,
    bpe_tokenizer,
    encode,
    word_tokenizer,
)
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.pretrain import make_optimizer

STORIES = list(corpus.grammar_stories(Data(num_stories=60), 4, "train", 128))


@pytest.fixture(scope="module", params=["words", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return word_tokenizer() if request.param == "words" else bpe_tokenizer(STORIES, 1500)


def test_every_later_mention_of_a_read_word_has_the_weight_and_nothing_else(
    tokenizer: Tokenizer,
) -> None:
    ids = reading_ids(tokenizer)
    assert len(ids) == len(reading.read_words())
    batch = batch_of([torch.tensor(encode(tokenizer, story)).numpy() for story in STORIES])
    weights_BT = read_weights(batch, ids, 4.0)
    num_weighted = 0
    for story, targets_T, weights_T in zip(STORIES, batch.targets_BT, weights_BT):
        seen = set()
        for target, weight in zip(targets_T.tolist(), weights_T.tolist()):
            word = tokenizer.decode([target]).strip() if target != IGNORED else ""
            assert weight == (4.0 if word in seen else 1.0), story
            num_weighted += weight == 4.0
            if word in reading.read_words():
                seen.add(word)
    assert num_weighted > 50


def test_a_word_of_another_row_or_behind_is_no_earlier_mention() -> None:
    ids = torch.tensor([7])
    tokens_BT = torch.tensor([[0, 7, 7, 2], [0, 7, 3, 7], [0, 1, 2, 3]])
    targets_BT = torch.tensor([[7, 7, 2, 3], [7, 3, 7, IGNORED], [1, 2, 3, 7]])
    weights_BT = read_weights(Batch(tokens_BT, targets_BT), ids, 3.0)
    assert weights_BT.tolist() == [[1, 3, 1, 1], [1, 1, 3, 1], [1, 1, 1, 1]]


def test_a_tokenizer_without_the_words_weighs_all_alike() -> None:
    tokenizer = bpe_tokenizer(["Once upon a time."] * 9, 300)
    ids = reading_ids(tokenizer)
    assert len(ids) == 0
    batch = batch_of([torch.tensor(encode(tokenizer, text)).numpy() for text in STORIES[:3]])
    assert (read_weights(batch, ids, 4.0) == 1).all()


def test_the_weighted_loss_is_over_the_sum_of_weights_and_what_is_told_is_not_weighted() -> None:
    model = tiny_model("dense")
    tokens_BT = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))
    targets_BT = tokens_BT.roll(-1, 1)
    targets_BT[1, 5:] = IGNORED
    weights_BT = torch.ones(2, 12)
    weights_BT[0, 3:7] = 4.0
    real_BT = targets_BT != IGNORED
    nll_M, weights_M = (
        token_nll(model(tokens_BT)[real_BT], targets_BT[real_BT]),
        weights_BT[real_BT],
    )
    whole = (nll_M * weights_M).sum() / weights_M.sum()
    expected = torch.autograd.grad(whole, list(model.parameters()))
    # each row is a micro-batch: what they add up to is the mean of both
    batches = [Batch(tokens_BT[row : row + 1], targets_BT[row : row + 1]) for row in (0, 1)]
    rows = {batch.tokens_BT.data_ptr(): row for row, batch in enumerate(batches)}
    (step,) = train(
        model,
        make_optimizer(model, Train(learning_rate=1e-9)),
        lambda _: batches,
        lambda _: Phase(1.0),
        start=0,
        stop=1,
        clip=1e9,
        weights_of=lambda batch: weights_BT[rows[batch.tokens_BT.data_ptr()]][None],
    )
    assert step.loss == pytest.approx(nll_M.mean().item(), rel=1e-5)
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
