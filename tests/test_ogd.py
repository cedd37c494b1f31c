"""OGD: the stored directions, and steps that are orthogonal to them.

B batch, T tokens, M targets, K directions, N trained numbers.
"""

from itertools import islice
from typing import Any

import torch
from test_ewc import pretraining, state, story, tune
from test_penalties import stories
from test_projections import SMALL, masked, steps_of
from tiny import noise, tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.ogd import Ogd, OgdSettings, leading


def ogd(model: Transformer, **settings: Any) -> Ogd:
    strategy = Ogd(OgdSettings(**(SMALL["ogd"] | settings)))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    return strategy


def right_logit(model: Transformer, batch: Batch) -> Tensor:
    """Mean logit of what follows, token by token."""
    logits_BTV = model(batch.tokens_BT)
    values = [
        logits_BTV[row, position, target]
        for row, targets_T in enumerate(batch.targets_BT)
        for position, target in enumerate(targets_T.tolist())
        if target != IGNORED
    ]
    return torch.stack(values).mean()


def logit_direction(model: Transformer, batch: Batch) -> Tensor:
    """[N]: its gradient, of length 1."""
    moved = [p for n, p in model.named_parameters() if group_of(n) != "indexer"]
    gradients = torch.autograd.grad(right_logit(model, batch), moved)
    row_N = torch.cat([gradient.flatten() for gradient in gradients])
    return row_N / row_N.norm()


def outside(directions_KN: Tensor, row_N: Tensor) -> float:
    """The share of a row's length that is not within orthonormal directions."""
    rest = row_N - directions_KN.T @ (directions_KN @ row_N)
    return float(rest.norm() / row_N.norm())


def test_directions_are_orthonormal_of_constant_number_and_never_the_same_twice() -> None:
    model = tiny_model("dsa")
    strategy = ogd(model)
    numbers = []
    for task in range(4):
        tune(model, strategy, steps=3)
        strategy.finish_task(trainee_of(strategy, model), stories(5, seed=task), seed=task)
        directions_KN = strategy.memory["directions"]
        gram_KK = directions_KN @ directions_KN.T
        torch.testing.assert_close(gram_KK, torch.eye(len(gram_KK)), rtol=0, atol=1e-5)
        numbers.append(len(directions_KN))
    assert numbers == [7, 9, 10, 10]
    values_K = strategy.memory["values"]
    assert (values_K.diff() <= 0).all()


def test_directions_hold_the_gradient_of_each_right_logit_of_pretraining() -> None:
    model = tiny_model("dsa")
    strategy = ogd(model)
    assert len(strategy.memory["directions"]) == 5
    for number, batch in enumerate(islice(pretraining(), 6)):
        row_N = logit_direction(model, batch)
        torch.testing.assert_close(
            strategy.logit_gradient(trainee_of(strategy, model), batch), row_N, rtol=1e-3, atol=1e-6
        )
        rest = outside(strategy.memory["directions"], row_N)
        assert rest < 1e-4 if number < 5 else rest > 0.1


def test_directions_of_a_task_are_those_of_all_of_its_stories() -> None:
    model = tiny_model("dsa")
    strategy = ogd(model, directions=12, per_task=6)
    rows = [logit_direction(model, batch) for batch in stories(6)]
    strategy.finish_task(trainee_of(strategy, model), stories(6), seed=0)
    assert max(outside(strategy.memory["directions"], row_N) for row_N in rows) < 1e-3


def test_a_sequence_that_comes_twice_adds_no_direction() -> None:
    model = tiny_model("dense")
    strategy = Ogd(OgdSettings(directions=10, pretraining=8, per_task=2))
    strategy.prepare(
        trainee_of(strategy, model), pretraining(), seed=7
    )  # six sequences, of which two come again
    assert len(strategy.memory["directions"]) == 6


def test_leading_directions_of_pieces_are_those_of_the_whole() -> None:
    rows_KN = noise(6, 40, seed=1) * torch.tensor([9.0, 7, 5, 3, 2, 1])[:, None]
    values_K, directions_KN = leading(rows_KN, 6)
    torch.testing.assert_close(directions_KN @ directions_KN.T, torch.eye(6))
    some = leading(rows_KN[:3], 3)
    both = leading(torch.cat([some[0][:, None] * some[1], rows_KN[3:]]), 4)
    torch.testing.assert_close(both[0], values_K[:4])
    overlap = (both[1] @ directions_KN[:4].T).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=1e-5)


def test_every_step_of_adamw_is_orthogonal_to_all_directions() -> None:
    model = tiny_model("dsa")
    strategy = ogd(model)
    directions_KN = strategy.memory["directions"].clone()
    for change in steps_of(model, strategy):
        change_N = torch.cat(
            [change[name].flatten() for name in strategy.trainable(model).lr_scales]
        )
        along_K = directions_KN @ change_N
        assert along_K.norm() < 1e-4 * change_N.norm()


def test_a_step_changes_right_logits_of_earlier_sequences_by_less_than_a_free_one() -> None:
    changes = {}  # on dense: a selection that changes is no matter of first order
    earlier = list(islice(pretraining(), 5))
    for name in ("sgd", "ogd"):
        model = tiny_model("dense")
        cls = strategies[name]
        strategy = cls(cls.Settings(**SMALL.get(name, {})))
        strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
        before = [right_logit(model, batch).item() for batch in earlier]
        tune(model, strategy, steps=1, rate=1e-4)
        after = [right_logit(model, batch).item() for batch in earlier]
        changes[name] = sum(abs(a - b) for a, b in zip(after, before))
    assert changes["ogd"] < 0.02 * changes["sgd"]


def test_beside_a_mask_of_entries_ogd_is_about_the_entries_that_move() -> None:
    ogd_part, trainer = masked("ogd", directions=10, pretraining=5, per_task=2)
    model, before = trainer.model, state(trainer.model)
    for _ in trainer.steps(trainer.optimizer(), story, seed=0, task=0):
        now = state(model)
        steps = [(now[n] - before[n]).flatten() for n in trainer.trainee.parameters]
        step_N = torch.cat(steps)
        assert (ogd_part.memory["directions"] @ step_N).norm() < 1e-4 * step_N.norm()
        before = now
