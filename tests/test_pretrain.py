"""Pre-training's numbers, pinned: they change only on purpose.

A change that alters them bumps NUMERICS in store.py, and the values here.
"""

import itertools

import pytest
import torch
from tiny import documents, tiny_model, tiny_settings

from dsa_sandbox.core.transformer import IGNORED, Transformer, nll_sum
from dsa_sandbox.data.tokens import Batch, batch_of
from dsa_sandbox.settings import Train
from dsa_sandbox.training.loop import Phase, train, warmup_then_decay
from dsa_sandbox.training.pretrain import has_indexer, make_optimizer, phase_of

PINNED = {
    "dense": [4.4453, 3.92615, 3.46483, 3.07479, 2.74586, 2.55087],
    "dsa": [4.42695, 3.90665, 3.82929, 3.78017, 3.78511, 3.5186],
}


def losses(arch: str) -> list[float]:
    """Six steps on one small batch; for dsa two of each phase."""
    model, plan = tiny_model(arch), Train(steps=6, dense_fraction=0.33, indexer_fraction=0.33)
    batch = batch_of(documents(31, 20, 9, seed=4))
    steps = train(
        model,
        make_optimizer(model, plan),
        lambda _: [batch],
        phase_of(plan, has_indexer(model), False),
        start=0,
        stop=6,
        clip=1.0,
    )
    return [step.loss + step.indexer_kl for step in steps]


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_the_losses_of_six_steps_are_those_that_numerics_stands_for(arch: str) -> None:
    torch.testing.assert_close(losses(arch), PINNED[arch], rtol=0, atol=1e-4)


def test_logits_made_in_pieces_give_the_loss_and_the_gradients_of_all_at_once() -> None:
    vocabulary = 2**18  # four targets' logits at a time
    model = Transformer("dense", tiny_settings(), vocabulary, 48, 0)
    tokens_BT = torch.randint(vocabulary, (2, 12), generator=torch.Generator().manual_seed(0))
    targets_BT = tokens_BT.roll(-1, 1)
    targets_BT[1, 5:] = IGNORED
    real_BT = targets_BT != IGNORED
    nll = nll_sum(model(tokens_BT)[real_BT], targets_BT[real_BT])
    whole = torch.autograd.grad(nll / 17, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = Batch(tokens_BT, targets_BT)
    (step,) = train(
        model, optimizer, lambda _: [batch], lambda _: Phase(1.0), start=0, stop=1, clip=1e9
    )
    assert step.loss == pytest.approx(nll.item() / 17, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), whole):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    rates = [warmup_then_decay(step, 100, 0.1, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[99] == pytest.approx(1 / 50)
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


def test_the_phases_of_dsa_are_dense_then_indexer_only_then_sparse() -> None:
    at = phase_of(Train(steps=100, dense_fraction=0.6, indexer_fraction=0.1), True, False)
    assert [at(step).name for step in (0, 59, 60, 69, 70, 99)] == [
        "dense", "dense", "indexer", "indexer", "sparse", "sparse",
    ]  # fmt: skip
    assert not at(0).teach
    assert not at(60).trunk
    assert (at(99).sparse, at(99).teach, at(99).trunk) == (True, True, True)
    assert all(phase_of(Train(steps=100), False, False)(step).name == "dense" for step in (0, 99))


def test_in_the_indexer_phase_nothing_but_the_indexer_moves() -> None:
    model = tiny_model("dsa")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = batch_of(documents(31, 20))
    phase = Phase(1.0, sparse=False, teach=True, trunk=False)
    optimizer = make_optimizer(model, Train())
    for _ in train(model, optimizer, lambda _: [batch], lambda _: phase, start=0, stop=2, clip=1.0):
        pass
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("indexer" not in name), name
