"""LwF: the loss of a batch against its formula, its teacher, and its gradient.

B batch, T tokens, M targets, V vocabulary.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_ewc import (
    assert_bit_equal,
    part,
    state,
    story,
    tune,
)
from test_penalties import made
from tiny import documents, noise, tiny_model, trainee_of
from torch import nn

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.strategies.lwf import Lwf, LwfSettings, real_tokens, softened_kl
from dsa_sandbox.training.trainer import Trainer


def test_softened_kl_is_its_sum_in_the_direction_from_the_teacher() -> None:
    teacher_MV, student_MV = noise(3, 5, seed=1), noise(3, 5, seed=2)
    p, q = (torch.softmax(logits / 1.7, -1) for logits in (teacher_MV, student_MV))
    expected = 1.7**2 * (p * (p / q).log()).sum() / 3
    reverse = 1.7**2 * (q * (q / p).log()).sum() / 3
    found = softened_kl(teacher_MV, student_MV, 1.7)
    torch.testing.assert_close(found, expected)
    assert abs(found - reverse) > 0.05


def test_the_gradient_of_the_kl_reaches_the_student_only() -> None:
    teacher_MV, student_MV = (noise(4, 6, seed=s).requires_grad_() for s in (1, 2))
    softened_kl(teacher_MV, student_MV, 2.0).backward()
    assert teacher_MV.grad is None
    expected = 2.0 * ((student_MV / 2).softmax(-1) - (teacher_MV / 2).softmax(-1)) / 4
    assert student_MV.grad is not None
    torch.testing.assert_close(student_MV.grad, expected)


def ragged(seed: int) -> Batch:
    """Rows of several lengths, the beginnings of which are not to be learned."""
    batch = batch_of(documents(16, 9, 12, seed=seed))
    batch.targets_BT[:, :4] = IGNORED
    return batch


def test_real_tokens_end_with_the_last_target_of_a_row() -> None:
    expected = [[position < length for position in range(15)] for length in (15, 8, 11)]
    assert real_tokens(ragged(0)).tolist() == expected


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_each_batch_is_compared_with_what_the_earlier_network_says_of_it(arch: str) -> None:
    model = tiny_model(arch)
    strategy = Lwf(LwfSettings(strength=0.7, temperature=1.5))
    strategy.start_task(trainee_of(strategy, model))
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for name in strategy.trainable(model).lr_scales:
            parameter = model.get_parameter(name)
            parameter.add_(0.05 * noise(*parameter.shape))
    moved = state(model)
    losses = []
    for seed in (0, 1):
        batch = ragged(seed)
        rows = []
        for tokens_T, length in zip(batch.tokens_BT, (15, 8, 11)):  # no padding
            tokens_1T = tokens_T[None, :length]
            p, q = (F.softmax(network(tokens_1T)[0] / 1.5, -1) for network in (teacher, model))
            rows.append((p * (p / q).log()).sum(-1))
        expected = 0.7 * 1.5**2 * torch.cat(rows).mean()
        found = strategy.auxiliary_loss(
            trainee_of(strategy, model), batch, model.hidden(batch.tokens_BT)[0]
        )
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        losses.append(found.item())
    assert abs(losses[0] - losses[1]) > 1e-4
    assert_bit_equal(state(model), moved)  # the model has its own weights back
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.parameters())


def test_what_stands_in_padding_changes_no_loss() -> None:
    model = tiny_model("dsa")
    strategy = Lwf(LwfSettings())
    strategy.start_task(trainee_of(strategy, model))
    with torch.no_grad():
        model.final_norm.weight.mul_(1.3)
    losses = []
    for filler in (0, 17):
        batch = ragged(0)
        batch.tokens_BT[~real_tokens(batch)] = filler
        losses.append(
            strategy.auxiliary_loss(
                trainee_of(strategy, model), batch, model.hidden(batch.tokens_BT)[0]
            )
        )
    assert losses[0] is not None
    assert losses[1] is not None
    torch.testing.assert_close(losses[0], losses[1])
    assert losses[0] > 0.01


@pytest.mark.parametrize("teacher", ["previous", "base"])
def test_the_teacher_is_the_network_before_the_task_or_before_the_first(teacher: str) -> None:
    model = tiny_model("dsa")
    strategy = made("lwf", model, teacher=teacher)
    base = state(model)
    tune(model, strategy, steps=3)
    began = state(model)
    tune(model, strategy, steps=3)
    expected = base if teacher == "base" else began
    assert_bit_equal(
        part(strategy.memory, "teacher."),
        {n: expected[n] for n in strategy.trainable(model).lr_scales},
    )


def test_listening_to_the_teacher_keeps_the_network_nearer_to_what_it_said() -> None:
    kls = []
    for strength in (0.0, 10.0):
        model = tiny_model("dsa")
        teacher, (batch,) = copy.deepcopy(model), story(0)
        tune(model, made("lwf", model, strength=strength), steps=15)
        with torch.no_grad():
            said, says = (network(batch.tokens_BT).flatten(0, 1) for network in (teacher, model))
        kls.append(softened_kl(said, says, 1.0).item())
    assert kls[1] < 0.5 * kls[0]


def test_of_several_batches_each_has_the_weight_of_its_targets() -> None:
    """The loss beside them is one mean over the step, as the language loss is."""
    model = tiny_model("dsa")
    strategy = made("lwf", model, strength=1.0)
    strategy.start_task(trainee_of(strategy, model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * noise(*parameter.shape, seed=3))
    trainer = Trainer(
        strategy,
        model,
        copy.deepcopy(model),
        Finetune(indexer="frozen", max_steps=1, warmup_steps=0),
    )
    long, short = batch_of(documents(20, 20)), batch_of(documents(6))
    each = []
    for batch in (long, short):
        extra = strategy.auxiliary_loss(
            trainee_of(strategy, model), batch, model.hidden(batch.tokens_BT)[0]
        )
        assert extra is not None
        each.append(float(extra.detach()))
    (step,) = trainer.steps(trainer.optimizer(), lambda step: [long, short], seed=0, task=0)
    weights = [batch.num_targets for batch in (long, short)]
    expected = sum(w * value for w, value in zip(weights, each)) / sum(weights)
    assert step.penalty == pytest.approx(expected, rel=1e-4)
    assert step.penalty != pytest.approx(sum(each), rel=1e-2)
