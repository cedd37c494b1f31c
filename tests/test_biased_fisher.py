"""The two biased estimates of the Fisher, against their formulas and the true one.

M targets, V vocabulary.
"""

import pytest
import torch
import torch.nn.functional as F
from test_ewc import (
    SoftmaxRegression,
    exact_fisher,
    flat,
    sequences,
    state,
)
from test_penalties import names_of, singles

from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.strategies.biased_fisher import empirical, of_batches
from dsa_sandbox.strategies.ewc import sampled_fisher


def test_the_empirical_fisher_is_the_mean_square_of_each_sequences_gradient() -> None:
    model, batch = SoftmaxRegression(), sequences(5)
    expected = torch.zeros_like(flat(state(model)))  # type: ignore[arg-type]
    for tokens_T, targets_T in zip(*batch):
        real_T = targets_T != IGNORED
        log_p_MV = model(tokens_T)[real_T].log_softmax(-1)
        loss = -log_p_MV.gather(1, targets_T[real_T, None]).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        row = flat(dict(zip(names_of(model), gradients)))
        expected += int(real_T.sum()) * row.square() / 5
    found = empirical(model, singles(batch), names_of(model), torch.Generator())  # type: ignore[arg-type]
    torch.testing.assert_close(flat(found), expected)


def test_the_batched_fisher_squares_the_gradient_of_sixteen_sequences_at_once() -> None:
    model, batch = SoftmaxRegression(), sequences(16)
    logits_MV = model(batch.tokens_BT).flatten(0, 1)
    loss = F.cross_entropy(logits_MV, batch.targets_BT.flatten(), ignore_index=IGNORED)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = flat(dict(zip(names_of(model), gradients))).square()
    found = of_batches(model, singles(batch), names_of(model), torch.Generator())  # type: ignore[arg-type]
    torch.testing.assert_close(flat(found), expected)


def test_the_batched_fisher_falls_with_the_batch_and_is_not_even_in_proportion() -> None:
    model, batch = SoftmaxRegression(), sequences(64)
    names, generator = names_of(model), torch.Generator()
    rows = singles(batch)
    fours = [Batch(*map(torch.cat, zip(*rows[i : i + 4]))) for i in range(0, 64, 4)]
    of_16, of_64 = (flat(of_batches(model, b, names, generator)) for b in (rows, fours))  # type: ignore[arg-type]
    assert of_64.sum() < 0.9 * of_16.sum()
    exact = flat(exact_fisher(model, batch))
    seen = exact > 0
    ratio = of_16[seen] / exact[seen]
    assert ratio.max() > 10 * ratio.min()


def test_the_empirical_fisher_vanishes_on_data_known_by_heart_and_the_true_one_does_not() -> None:
    model = SoftmaxRegression()
    with torch.no_grad():  # token v < 3 is followed by v, with probability .9995
        model.features.weight.copy_(torch.eye(5, 3))
        model.out.weight.copy_(8.7 * torch.eye(4, 3))
        model.out.bias.zero_()
    tokens_BT = torch.arange(30).reshape(3, 10) % 3
    batch = Batch(tokens_BT, tokens_BT)
    assert model(tokens_BT).softmax(-1).gather(-1, tokens_BT[..., None]).min() > 0.999
    names, generator = names_of(model), torch.Generator().manual_seed(0)
    exact = flat(exact_fisher(model, batch)).sum()
    with_labels = flat(empirical(model, singles(batch), names, generator)).sum()  # type: ignore[arg-type]
    assert with_labels < 0.01 * exact
    many = (batch for _ in range(1500))
    sampled = flat(sampled_fisher(model, many, names, generator)).sum()  # type: ignore[arg-type]
    assert sampled == pytest.approx(float(exact), rel=0.3)
