"""A-GEM: the projected gradient, and the memory that it is projected by.

B batch, T tokens, M targets.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_ewc import assert_bit_equal, pretraining
from test_penalties import stories
from test_projections import SMALL, masked
from tiny import documents, noise, tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.agem import Agem, AgemSettings
from dsa_sandbox.strategies.base import Position


def agem(model: Transformer, **settings: Any) -> Agem:
    """A strategy that remembers pre-training, in its first step."""
    strategy = Agem(AgemSettings(**(SMALL["agem"] | settings)))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    strategy.start_step(trainee_of(strategy, model), Position(0, 0, 0))
    return strategy


def reference(model: Transformer, batches: list[Batch]) -> dict[str, Tensor]:
    """The gradient of the mean over single sequences of their mean losses, one after another."""
    model.zero_grad()
    for batch in batches:
        logits_MV, targets_M = model(batch.tokens_BT).flatten(0, 1), batch.targets_BT.flatten()
        (F.cross_entropy(logits_MV, targets_M, ignore_index=IGNORED) / len(batches)).backward()
    moved = {n: p for n, p in model.named_parameters() if group_of(n) != "indexer"}
    return {n: p.grad.clone() for n, p in moved.items() if p.grad is not None}


def set_gradients(model: Transformer, gradients: dict[str, Tensor]) -> None:
    for name, gradient in gradients.items():
        model.get_parameter(name).grad = gradient.clone()


def gradients_of(model: Transformer) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def drawn(strategy: Agem) -> list[Batch]:
    """What the step looks at, without padding."""
    rows = []
    for number in strategy.drawn.tolist():
        tokens_T, targets_T = strategy.memory["tokens"][number], strategy.memory["targets"][number]
        length = int((targets_T != IGNORED).nonzero().max()) + 1
        rows.append(Batch(tokens_T[None, :length], targets_T[None, :length]))
    return rows


def test_a_gradient_against_the_reference_loses_its_part_along_it_and_no_other() -> None:
    model = tiny_model("dsa")
    strategy = agem(model, pretraining=0.5, size=12)
    strategy.finish_task(trainee_of(strategy, model), stories(), seed=0)
    strategy.start_step(trainee_of(strategy, model), Position(0, 1, 5))
    r = reference(model, drawn(strategy))
    g = {name: noise(*p.shape, seed=3) * p.std() - 0.3 * p for name, p in r.items()}
    along = sum(float((g[name] * r[name]).sum()) for name in r)
    length = sum(float(r[name].square().sum()) for name in r)
    assert along < 0
    set_gradients(model, g)
    strategy.transform_gradients(trainee_of(strategy, model))
    found = gradients_of(model)
    for name in r:
        expected = g[name] - along / length * r[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-7)
    left = sum(float((found[name] * r[name]).sum()) for name in r)
    assert abs(left) < 1e-4 * abs(along)


def test_a_gradient_that_does_not_point_against_the_reference_is_left_alone() -> None:
    model = tiny_model("dsa")
    strategy = agem(model)
    g = reference(model, drawn(strategy))
    for number, name in enumerate(g):  # single tensors may point against it, not all together
        g[name] *= -0.5 if number % 3 == 1 else 1.0
    set_gradients(model, g)
    strategy.transform_gradients(trainee_of(strategy, model))
    assert_bit_equal(gradients_of(model), g)


def test_without_anything_remembered_the_first_task_is_free() -> None:
    model = tiny_model("dense")
    strategy = agem(model, pretraining=0.0)
    g = {name: -p for name, p in reference(model, list(stories())).items()}
    set_gradients(model, g)
    strategy.transform_gradients(trainee_of(strategy, model))
    assert_bit_equal(gradients_of(model), g)


def numbered(count: int) -> Iterator[Batch]:
    """Stories that say which they are."""
    for number in range(count):
        ids = torch.full((1, 6), number % 31)
        ids[0, 0] = number // 31
        yield Batch(ids, ids.masked_fill(ids == 999, IGNORED))


def numbers(strategy: Agem) -> list[int]:
    first = int(strategy.memory["pretraining"])
    tokens_NT = strategy.memory["tokens"][first:]
    return (31 * tokens_NT[:, 0] + tokens_NT[:, 1]).tolist()


def test_every_story_of_finished_tasks_is_remembered_with_equal_chance() -> None:
    model = tiny_model("dense")
    counts = torch.zeros(60)
    every = list(numbered(60))
    for seed in range(200):
        strategy = agem(model, size=10, pretraining=0.0)
        for task in range(3):
            tasks_own = every[20 * task : 20 * task + 20]
            strategy.finish_task(
                trainee_of(strategy, model), iter(tasks_own), seed=1000 * seed + task
            )
        kept = numbers(strategy)
        assert len(set(kept)) == 10
        counts[kept] += 1
    expected, deviation = 200 * 10 / 60, math.sqrt(200 * (1 / 6) * (5 / 6))
    assert ((counts - expected).abs() < 4.5 * deviation).all()
    for third in counts.split(20):
        assert third.sum().item() == pytest.approx(
            200 * 10 / 3, abs=4.5 * math.sqrt(200 * 10 * 2 / 9)
        )


def test_pretraining_keeps_its_share_of_a_memory_of_constant_size() -> None:
    model = tiny_model("dense")
    strategy = agem(model, size=8, pretraining=0.25)
    first = {key: strategy.memory[key][:2].clone() for key in ("tokens", "targets")}
    shapes = []
    for task in range(4):
        strategy.finish_task(trainee_of(strategy, model), stories(10, seed=task), seed=task)
        shapes.append({key: value.shape for key, value in strategy.memory.items()})
    assert all(shape == shapes[0] for shape in shapes)
    assert int(strategy.memory["seen"]) == 40
    for batch, tokens_T, targets_T in zip(pretraining(), first["tokens"], first["targets"]):
        length = batch.tokens_BT.shape[1]
        assert torch.equal(tokens_T[:length], batch.tokens_BT[0])
        assert torch.equal(targets_T[:length], batch.targets_BT[0])
        assert (targets_T[length:] == IGNORED).all()
    for key, rows in first.items():
        assert torch.equal(strategy.memory[key][:2], rows)


def test_a_story_takes_all_of_the_place_of_a_longer_one() -> None:
    model = tiny_model("dense")
    strategy = agem(model, size=1, pretraining=1.0)
    (short,) = [batch_of(documents(5))]
    strategy.store(0, short)
    assert torch.equal(strategy.memory["targets"][0, :4], short.targets_BT[0])
    assert (strategy.memory["targets"][0, 4:] == IGNORED).all()
    assert not strategy.memory["tokens"][0, 4:].any()


def test_what_a_step_looks_at_is_decided_by_its_place_alone() -> None:
    model = tiny_model("dense")
    strategy, other = agem(model), agem(model)
    draws = []
    for place in (Position(0, 0, 1), Position(0, 0, 2), Position(0, 1, 1), Position(1, 0, 1)):
        strategy.start_step(trainee_of(strategy, model), place)
        other.start_step(trainee_of(other, model), Position(9, 9, 9))
        other.start_step(trainee_of(other, model), place)
        assert torch.equal(strategy.drawn, other.drawn)
        assert len(set(strategy.drawn.tolist())) == 4
        draws.append(tuple(strategy.drawn.tolist()))
    assert len(set(draws)) > 1


def test_beside_a_mask_of_entries_agem_is_about_the_entries_that_move() -> None:
    agem_part, trainer = masked("agem", size=8, batch=4, pretraining=1.0)
    trainee, model = trainer.trainee, trainer.model
    agem_part.start_step(trainee, Position(0, 0, 0))
    references = zip(trainee.parameters, agem_part.references(trainee))
    r = {name: reference * trainee.masks[name] for name, reference in references}
    length = sum(float(reference.square().sum()) for reference in r.values())
    for seed in range(10):
        set_gradients(
            model, {n: noise(*p.shape, seed=seed) * p.std() - 0.3 * p for n, p in r.items()}
        )
        trainer.before_update()
        found = gradients_of(model)
        assert sum(float((found[name] * r[name]).sum()) for name in r) > -1e-4 * length
