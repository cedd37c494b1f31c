"""Strategies that pull weights back, against formulas and slower ways to the same numbers.

B batch, T tokens, M targets, V vocabulary.
"""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_ewc import (
    SoftmaxRegression,
    assert_bit_equal,
    ewc,
    flat,
    part,
    pretraining,
    sequences,
    state,
    story,
    tune,
)
from tiny import documents, noise, tiny_model, trainee_of
from torch import nn

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.strategies.mas import output_importance
from dsa_sandbox.strategies.sgd import Sequential
from dsa_sandbox.strategies.si import Si, SiSettings
from dsa_sandbox.training.trainer import Trainer

PULLING = ("l2sp", "si", "mas", "lwf")


def fresh(name: str, **settings: Any) -> Strategy:
    """A strategy with little to measure."""
    small = {"mas": {"passes": 6, "task_passes": 4}, "ewc-proximal": {"passes": 6}}.get(name, {})
    cls = strategies[name]
    strategy: Strategy = cls(cls.Settings(**(small | settings)))
    return strategy


def made(name: str, model: Transformer, **settings: Any) -> Strategy:
    """One that is ready for the first task."""
    strategy = fresh(name, **settings)
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    return strategy


def stories(number: int = 6, seed: int = 50) -> Iterator[Batch]:
    """Those of a task, one a batch, once; the first half of each is not to be learned."""
    for document in documents(*[18] * number, seed=seed):
        batch = batch_of([document])
        batch.targets_BT[:, :8] = IGNORED
        yield batch


def pull(strategy: Strategy, model: Transformer) -> float:
    """The penalty as the weights are now."""
    penalty = strategy.penalty(trainee_of(strategy, model))
    assert penalty is not None
    return penalty.item()


def singles(batch: Batch) -> list[Batch]:
    return [Batch(*row) for row in zip(batch.tokens_BT.split(1), batch.targets_BT.split(1))]


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# --- facts of all of them ---------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["dense", "dsa"])
@pytest.mark.parametrize("name", PULLING)
def test_of_strength_zero_it_is_sgd_bit_for_bit(name: str, arch: str) -> None:
    sequential, pulled = tiny_model(arch), tiny_model(arch)
    plain, strategy = Sequential(NoSettings()), made(name, pulled, strength=0.0)
    for task in range(2):
        tune(sequential, plain)
        tune(pulled, strategy)
        strategy.finish_task(trainee_of(strategy, pulled), stories(), seed=task)
    assert_bit_equal(state(sequential), state(pulled))


@pytest.mark.parametrize("name", [*PULLING, "ewc-proximal"])
def test_the_first_task_is_held_where_pretraining_can_be_protected(name: str) -> None:
    free, held = tiny_model("dsa"), tiny_model("dsa")
    base = flat(state(free))
    tune(free, Sequential(NoSettings()), steps=12)
    penalties = tune(held, made(name, held, strength=30.0), steps=12)
    distance, distance_free = (float((flat(state(m)) - base).norm()) for m in (held, free))
    if name == "si":  # a path integral needs a path
        assert penalties == [0] * 12
        assert distance == distance_free
    elif name == "lwf":  # it holds what is said, not where weights are
        assert penalties[0] == pytest.approx(0, abs=1e-6)
        assert min(penalties[1:]) > 0
    else:
        assert distance < 0.9 * distance_free
        assert all(p > 0 for p in penalties[1:]) == (name != "ewc-proximal")


@pytest.mark.parametrize("name", PULLING)
def test_memory_is_of_what_moves_of_constant_size_and_not_more_than_promised(name: str) -> None:
    model = tiny_model("dsa")
    parts = {part: fresh(part) for part in ("acft", name)}
    strategy = Combined(parts)
    moving = strategy.trainable(model).lr_scales
    assert 0 < len(moving) < len(state(model))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    sizes, promised = [], strategy.memory_bytes(trainee_of(strategy, model), 3)
    for task in range(3):
        tune(model, strategy, steps=3)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        assert {key.partition(".")[2] for key in parts[name].memory} - {""} == set(moving)
        sizes.append(sum(v.numel() * v.element_size() for v in strategy.memory.values()))
    assert len(set(sizes)) == 1
    assert sizes[0] <= promised + 4  # bytes of a scale


@pytest.mark.parametrize("name", PULLING)
def test_what_is_remembered_requires_no_gradient_and_is_nobody_elses(name: str) -> None:
    model = tiny_model("dsa")
    strategy, generator_state = made(name, model), torch.get_rng_state()
    tune(model, strategy, steps=2)
    strategy.finish_task(trainee_of(strategy, model), stories(), seed=0)
    kept = {key: value.clone() for key, value in strategy.memory.items()}
    assert not any(value.requires_grad for value in strategy.memory.values())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert_bit_equal(strategy.memory, kept)
    assert torch.equal(torch.get_rng_state(), generator_state)


@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-v32"])
def test_no_network_computes_otherwise_in_training_mode(arch: str) -> None:
    model, (batch,) = tiny_model(arch), story(0)
    assert torch.equal(model.train()(batch.tokens_BT), model.eval()(batch.tokens_BT))


# --- Fishers as they are mismeasured ----------------------------------------------------------


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_importance_after_a_task_knows_nothing_of_penalties_and_gradients_before(name: str) -> None:
    found = []
    for strength in (0.0, 1e6):
        model = tiny_model("dsa")
        strategy = made(name, model, strength=strength, passes=4, task_passes=4)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        penalty = strategy.penalty(trainee_of(strategy, model))
        assert (penalty is None) == (strength == 0)
        if penalty is not None:
            penalty.backward()
        strategy.finish_task(trainee_of(strategy, model), stories(), seed=3)
        found.append(part(strategy.memory, "fisher."))
    assert_bit_equal(*found)


# --- l2sp -------------------------------------------------------------------------------------


def test_l2sp_is_ewc_with_a_fisher_of_one() -> None:
    model, same = tiny_model("dsa"), tiny_model("dsa")
    strategy = ewc(same, strength=5.0)
    for key, value in strategy.memory.items():
        if not key.startswith("anchor."):
            strategy.memory[key] = torch.ones_like(value)
    penalties = tune(model, made("l2sp", model, strength=5.0))
    assert penalties == pytest.approx(tune(same, strategy), rel=1e-4)
    assert penalties[-1] > 0


@pytest.mark.parametrize("anchor", ["base", "latest"])
def test_l2sp_pulls_to_the_base_or_to_where_the_task_began(anchor: str) -> None:
    model = tiny_model("dsa")
    strategy = made("l2sp", model, anchor=anchor, strength=2.0)
    base = state(model)
    tune(model, strategy, steps=3)
    began = state(model)
    tune(model, strategy, steps=3)
    towards = base if anchor == "base" else began
    assert_bit_equal(
        part(strategy.memory, "anchor."),
        {n: towards[n] for n in strategy.trainable(model).lr_scales},
    )
    now = state(model)
    squares = [(now[n] - towards[n]).square().sum() for n in strategy.trainable(model).lr_scales]
    assert pull(strategy, model) == pytest.approx(float(sum(squares)), rel=1e-5)


# --- si ---------------------------------------------------------------------------------------


def si_task(model: Transformer, strategy: Si, batch: Batch, rate: float, steps: int) -> float:
    """A task of one batch by plain gradient descent; by how much its loss falls."""
    plan = Finetune(
        indexer="frozen",
        learning_rate=rate,
        warmup_steps=0,
        max_steps=steps,
        optimizer="sgd",
        clip=1e9,
    )
    trainer = Trainer(strategy, model, copy.deepcopy(model), plan)
    strategy.start_task(trainee_of(strategy, model))

    def loss() -> float:
        logits_MV = model(batch.tokens_BT).flatten(0, 1)
        return F.cross_entropy(logits_MV, batch.targets_BT.flatten(), ignore_index=IGNORED).item()

    before = loss()
    for _ in trainer.steps(trainer.optimizer(), lambda step: [batch], seed=0, task=0):
        pass
    return before - loss()


def test_the_path_integral_is_the_fall_of_the_tasks_loss_whatever_the_penalty_does() -> None:
    model = tiny_model("dsa")
    strategy = Si(SiSettings(strength=20.0, damping=1e-4))
    for number in range(2):
        batch = batch_of(documents(20, 20, 15, seed=number))
        fall = si_task(model, strategy, batch, rate=2e-3, steps=40)
        paths = part(strategy.memory, "path.")
        assert flat(paths).sum().item() == pytest.approx(fall, rel=0.05)
        if number:  # the penalty was strong enough to matter
            assert pull(strategy, model) > 0.02 * fall
        strategy.finish_task(trainee_of(strategy, model), iter(()), seed=0)
        assert not flat(part(strategy.memory, "path.")).any()


def test_importance_is_the_positive_path_over_the_damped_square_of_the_way_and_adds_up() -> None:
    model = tiny_model("dense")
    strategy = Si(SiSettings(strength=50.0, damping=2e-3))
    expected = {name: torch.zeros_like(p) for name, p in state(model).items()}
    for task in range(3):
        began = state(model)
        tune(model, strategy, steps=10)
        paths, now = part(strategy.memory, "path."), state(model)
        assert flat(paths).max() > 0
        assert task == 0 or flat(paths).min() < 0  # the penalty drove some weights uphill
        for name, path in paths.items():
            gain = path.clamp(min=0) / ((now[name] - began[name]) ** 2 + 2e-3)
            expected[name] = expected[name] + gain
        strategy.finish_task(trainee_of(strategy, model), iter(()), seed=task)
        found = part(strategy.memory, "importance.")
        torch.testing.assert_close(found, expected)
        assert flat(found).min() >= 0
        assert_bit_equal(part(strategy.memory, "anchor."), now)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        assert pull(strategy, model) == pytest.approx(50.0 * 0.01 * float(flat(found).sum()))
        model.load_state_dict(now | {k: v for k, v in model.state_dict().items() if k not in now})


# --- mas --------------------------------------------------------------------------------------


def test_importance_is_the_mean_magnitude_of_each_sequences_gradient() -> None:
    model, batch = SoftmaxRegression(), sequences(7)
    expected = torch.zeros_like(flat(state(model)))  # type: ignore[arg-type]
    for tokens_T, targets_T in zip(*batch):
        logits_MV = model(tokens_T[targets_T != IGNORED])
        spread = (logits_MV - logits_MV.mean(1, keepdim=True)).pow(2).sum() / len(logits_MV)
        gradients = torch.autograd.grad(spread, list(model.parameters()))
        expected += flat(dict(zip(names_of(model), gradients))).abs() / 7
    for batches in ([batch], singles(batch)):
        found = flat(output_importance(model, batches, names_of(model)))  # type: ignore[arg-type]
        torch.testing.assert_close(found, expected)


def test_a_shift_of_all_logits_changes_no_importance() -> None:
    model, batch = SoftmaxRegression(), sequences(4)
    before = output_importance(model, [batch], names_of(model))  # type: ignore[arg-type]
    with torch.no_grad():
        model.out.bias.add_(3.0)
        model.out.weight.add_(noise(1, 3))
    after = output_importance(model, [batch], names_of(model))  # type: ignore[arg-type]
    torch.testing.assert_close(after, before)


def test_mas_sums_importance_over_tasks_around_one_anchor_and_keeps_its_scale() -> None:
    model = tiny_model("dsa")
    strategy = made("mas", model, strength=3.0)
    names = list(strategy.trainable(model).lr_scales)
    expected = output_importance(model, islice(pretraining(), 6), names)
    scale = strategy.memory["scale"].clone()
    torch.testing.assert_close(scale, 1 / flat(expected).mean())
    for task in range(2):
        tune(model, strategy, steps=3)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        new = output_importance(model, islice(stories(seed=task), 4), names)
        expected = {name: expected[name] + new[name] for name in names}
    torch.testing.assert_close(part(strategy.memory, "fisher."), expected)
    assert_bit_equal(
        part(strategy.memory, "anchor."), {n: p for n, p in state(model).items() if n in names}
    )
    assert torch.equal(strategy.memory["scale"], scale)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    expected_pull = 3.0 / 2 * scale * 0.01 * flat(expected).sum()
    assert pull(strategy, model) == pytest.approx(float(expected_pull), rel=1e-4)


# --- lwf --------------------------------------------------------------------------------------


def test_the_path_takes_gradients_as_they_are_before_clipping(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = Finetune
    monkeypatch.setitem(globals(), "Finetune", lambda **more: plan(**(more | {"clip": 0.05})))
    model = tiny_model("dsa")
    strategy = Si(SiSettings(strength=0.0))
    fall = si_task(model, strategy, batch_of(documents(20, 20, 15)), rate=4e-2, steps=40)
    assert flat(part(strategy.memory, "path.")).sum().item() == pytest.approx(fall, rel=0.05)


def test_the_pull_is_clipped_with_the_rest() -> None:
    model = tiny_model("dsa")
    strategy = made("l2sp", model, strength=1e4)
    strategy.start_task(trainee_of(strategy, model))
    for anchor in strategy.memory.values():
        anchor.add_(0.1)
    before = flat(state(model))
    plan = Finetune(
        indexer="frozen", optimizer="sgd", learning_rate=1.0, warmup_steps=0, max_steps=1, clip=0.01
    )
    trainer = Trainer(strategy, model, copy.deepcopy(model), plan)
    (step,) = trainer.steps(trainer.optimizer(), story, seed=0, task=0)
    assert step.grad_norm > 100
    assert float((flat(state(model)) - before).norm()) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize("name", ["ewc", "ewc-proximal", "l2sp", "si", "mas", "lwf"])
def test_no_rule_is_sgd_by_default(name: str) -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    few = {"passes": 4} if name in ("ewc", "ewc-proximal", "mas") else {}
    strategy, free = made(name, model, **few), Sequential(NoSettings())
    for task in range(2):
        tune(plain, free)
        tune(model, strategy)
        strategy.finish_task(trainee_of(strategy, model), stories(), seed=task)
    assert any(not torch.equal(p, state(plain)[n]) for n, p in state(model).items())


@pytest.mark.parametrize("name", ["ewc", "l2sp", "si", "mas", "lwf"])
def test_small_ways_are_not_lost_where_products_are_bf16(name: str) -> None:
    """Weights, anchors and importances are fp32: in bf16 a way of 1e-3 of a weight would be 0."""
    model = tiny_model("dsa")
    strategy = made(name, model, **({"passes": 4} if name in ("ewc", "mas") else {}))
    strategy.start_task(trainee_of(strategy, model))
    before = state(model)
    trainer = Trainer(
        strategy,
        model,
        copy.deepcopy(model),
        Finetune(indexer="frozen", learning_rate=1e-5, max_steps=2),
    )
    list(trainer.steps(trainer.optimizer(), story, seed=0, task=1, autocast=torch.bfloat16))
    strategy.finish_task(trainee_of(strategy, model), stories(), seed=1)
    kept = [value for value in strategy.memory.values() if value.is_floating_point()]
    assert {value.dtype for value in [*kept, *state(model).values()]} == {torch.float32}
    ways = {key: now - before[key] for key, now in state(model).items()}
    lost = flat({key: before[key].bfloat16() + way.bfloat16() for key, way in ways.items()})
    stayed = lost == flat({key: value.bfloat16() for key, value in before.items()})
    assert (flat(ways)[stayed] != 0).float().mean() > 0.5  # what bf16 would have lost
