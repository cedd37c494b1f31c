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
    exact_fisher,
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
from dsa_sandbox.strategies.base import NoSettings, Strategy, Trainable, Trainee
from dsa_sandbox.strategies.biased_fisher import empirical, of_batches
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.strategies.ewc import EwcSettings, sampled_fisher
from dsa_sandbox.strategies.ewc_proximal import EwcProximal
from dsa_sandbox.strategies.lwf import Lwf, LwfSettings, real_tokens, softened_kl
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


# --- EWC as a proximal step -------------------------------------------------------------------


def test_the_proximal_step_is_its_closed_form() -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    strategy = made("ewc-proximal", model, strength=40.0)
    for anchor in part(strategy.memory, "anchor.").values():
        anchor.add_(0.05 * noise(*anchor.shape))
    tune(plain, Sequential(NoSettings()), steps=1, rate=3e-3)
    tune(model, strategy, steps=1, rate=3e-3)
    stepped, now, scale = state(plain), state(model), strategy.memory["scale"]
    anchors = part(strategy.memory, "anchor.")
    for name, fisher in part(strategy.memory, "fisher.").items():
        pull = 3e-3 * 40.0 * scale * fisher
        expected = (stepped[name] + pull * anchors[name]) / (1 + pull)
        torch.testing.assert_close(now[name], expected, rtol=1e-5, atol=1e-7)


def test_a_proximal_step_goes_by_the_rate_at_which_its_weight_moves() -> None:
    model = tiny_model("dsa")
    strategy = made("ewc-proximal", model, strength=40.0)
    names = strategy.trainable(model).lr_scales
    trainee = Trainee(model, Trainable({n: 1.0 + 3.0 * (i % 2) for i, n in enumerate(names)}))
    for anchor in part(strategy.memory, "anchor.").values():
        anchor.add_(0.05 * noise(*anchor.shape))
    before = state(model)
    strategy.after_step(trainee, 3e-3)
    for name, rate in trainee.lr_scales.items():
        fisher, anchor = (strategy.memory[f"{kind}.{name}"] for kind in ("fisher", "anchor"))
        pull = 3e-3 * rate * 40.0 * strategy.memory["scale"] * fisher
        expected = (before[name] + pull * anchor) / (1 + pull)
        torch.testing.assert_close(state(model)[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strength", [1e30, 1e300])
def test_a_boundless_proximal_step_ends_at_the_anchor_where_the_fisher_is_not_zero(
    strength: float,
) -> None:
    free, model = tiny_model("dsa"), tiny_model("dsa")
    base = state(model)
    strategy = made("ewc-proximal", model, strength=strength)
    for fisher in part(strategy.memory, "fisher.").values():
        fisher.flatten()[::3] = 0.0
    tune(free, Sequential(NoSettings()), steps=1)
    tune(model, strategy, steps=1)
    stepped, now = state(free), state(model)
    for name, fisher in part(strategy.memory, "fisher.").items():
        held = fisher > 0
        assert now[name].isfinite().all()
        torch.testing.assert_close(now[name][held], base[name][held], rtol=1e-6, atol=1e-8)
        assert torch.equal(now[name][~held], stepped[name][~held])


def test_a_proximal_step_of_strength_zero_is_sgd_bit_for_bit() -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    strategy = EwcProximal(EwcSettings(strength=0.0, passes=2))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=0)
    tune(plain, Sequential(NoSettings()))
    tune(model, strategy)
    assert_bit_equal(state(plain), state(model))


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
    plan = Finetune(learning_rate=rate, warmup_steps=0, max_steps=steps, optimizer="sgd", clip=1e9)
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
        for tokens_T, length in zip(batch.tokens_BT, (15, 8, 11)):  # row by row, without padding
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
    plan = Finetune(optimizer="sgd", learning_rate=1.0, warmup_steps=0, max_steps=1, clip=0.01)
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


def test_of_several_batches_each_has_the_weight_of_its_targets() -> None:
    """The loss beside them is one mean over the step, as the language loss is."""
    model = tiny_model("dsa")
    strategy = made("lwf", model, strength=1.0)
    strategy.start_task(trainee_of(strategy, model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * noise(*parameter.shape, seed=3))
    trainer = Trainer(strategy, model, copy.deepcopy(model), Finetune(max_steps=1, warmup_steps=0))
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


@pytest.mark.parametrize("name", ["ewc", "l2sp", "si", "mas", "lwf"])
def test_small_ways_are_not_lost_where_products_are_bf16(name: str) -> None:
    """Weights, anchors and importances are fp32: in bf16 a way of 1e-3 of a weight would be 0."""
    model = tiny_model("dsa")
    strategy = made(name, model, **({"passes": 4} if name in ("ewc", "mas") else {}))
    strategy.start_task(trainee_of(strategy, model))
    before = state(model)
    trainer = Trainer(
        strategy, model, copy.deepcopy(model), Finetune(learning_rate=1e-5, max_steps=2)
    )
    list(trainer.steps(trainer.optimizer(), story, seed=0, task=1, autocast=torch.bfloat16))
    strategy.finish_task(trainee_of(strategy, model), stories(), seed=1)
    kept = [value for value in strategy.memory.values() if value.is_floating_point()]
    assert {value.dtype for value in [*kept, *state(model).values()]} == {torch.float32}
    ways = {key: now - before[key] for key, now in state(model).items()}
    lost = flat({key: before[key].bfloat16() + way.bfloat16() for key, way in ways.items()})
    stayed = lost == flat({key: value.bfloat16() for key, value in before.items()})
    assert (flat(ways)[stayed] != 0).float().mean() > 0.5  # what bf16 would have lost
