"""What is remembered, what comes of it in a step, and factors in the place of matrices.

B batch, T tokens, M targets, V vocabulary, K kept of it.
"""

import copy
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import CONTEXT, documents, noise, tiny_model, trainee_of
from torch import Tensor, nn

from dsa_sandbox.commands import finetune
from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import NoSettings, Position, Strategy
from dsa_sandbox.strategies.der import Der, DerSettings, log_probabilities
from dsa_sandbox.strategies.lora import Lora, LoraSettings
from dsa_sandbox.strategies.masks import trained_by_acft
from dsa_sandbox.strategies.rehearsal import Rehearsal, RehearsalSettings
from dsa_sandbox.strategies.replay import Replay
from dsa_sandbox.strategies.sgd import Sequential
from dsa_sandbox.strategies.wise import Wise, WiseSettings
from dsa_sandbox.training.trainer import Trainer

Memory = dict[str, Tensor]


def pretraining(seed: int = 0) -> Iterator[Batch]:
    return cycle([batch_of([document]) for document in documents(*[20] * 6, seed=seed)])


def stories(count: int, seed: int = 0) -> list[Batch]:
    """Single stories of many lengths whose first ids are not learned."""
    lengths = torch.Generator().manual_seed(seed)
    found: list[Batch] = []
    for length in torch.randint(8, CONTEXT + 1, (count,), generator=lengths).tolist():
        batch = batch_of(documents(length + 1, seed=10_000 * seed + len(found)))
        batch.targets_BT[:, : length // 2] = IGNORED
        found.append(batch)
    return found


def story(step: int) -> list[Batch]:
    return [batch_of(documents(16, 16, 12, seed=1000 + step))]


def trainer_of(model: Transformer, strategy: Strategy, **plan: Any) -> Trainer:
    values = {"learning_rate": 3e-3, "warmup_steps": 0, "max_steps": 6, "indexer": "frozen"} | plan
    return Trainer(strategy, model, copy.deepcopy(model), Finetune(**values))


def tune(model: Transformer, strategy: Strategy, task: int = 0, **plan: Any) -> list[float]:
    """One task as fine-tuning runs it; the losses that the strategy added."""
    trainer = trainer_of(model, strategy, **plan)
    strategy.start_task(trainee_of(strategy, model))
    added = [s.penalty for s in trainer.steps(trainer.optimizer(), story, seed=0, task=task)]
    trainer.assert_frozen()
    return added


def state(model: Transformer) -> Memory:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_bit_equal(a: Memory, b: Memory) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def num_bytes(strategy: Strategy) -> int:
    return sum(t.numel() * t.element_size() for t in strategy.memory.values() if t.dim())


# --- what is remembered -----------------------------------------------------------------------


def test_a_kept_story_comes_back_as_it_was() -> None:
    model, kept = tiny_model("dsa"), stories(5)
    replay = Replay(RehearsalSettings(size=5))
    replay.finish_task(trainee_of(replay, model), kept, seed=0)
    for row, batch in enumerate(kept):
        for one, other in zip(replay.batch("tasks", torch.tensor([row])), batch):
            assert torch.equal(one, other)
    together, length = replay.batch("tasks", torch.arange(5)), 0
    for row, batch in enumerate(kept):
        end = batch.tokens_BT.shape[1]
        length = max(length, end)
        assert torch.equal(together.tokens_BT[row, :end], batch.tokens_BT[0])
        assert torch.equal(together.targets_BT[row, :end], batch.targets_BT[0])
        assert (together.targets_BT[row, end:] == IGNORED).all()
    assert together.tokens_BT.shape == (5, length)


def test_of_what_stood_in_a_row_before_nothing_comes_back() -> None:
    model, short = tiny_model("dsa"), batch_of(documents(9))
    for strategy in (Replay(RehearsalSettings(size=1)), Der(DerSettings(size=1, top=3))):
        for batch in (batch_of(documents(30)), short):
            strategy.store(trainee_of(strategy, model), "tasks", 0, batch)
        for one, other in zip(strategy.batch("tasks", torch.tensor([0])), short):
            assert torch.equal(one, other)


def test_the_reservoir_keeps_every_story_with_the_same_chance() -> None:
    model, kept = tiny_model("dsa"), [batch_of(documents(9, seed=s)) for s in range(24)]
    hits = torch.zeros(24)
    for seed in range(400):
        replay = Replay(RehearsalSettings(size=6))
        for task in range(3):  # whatever task it is of
            replay.finish_task(
                trainee_of(replay, model), kept[8 * task : 8 * task + 8], seed=3 * seed + task
            )
        for ids in replay.memory["tasks.ids"]:
            hits += torch.tensor([torch.equal(ids[:8], b.tokens_BT[0].int()) for b in kept])
    assert hits.sum() == 400 * 6
    expected = 400 * 6 / 24
    assert (hits - expected).abs().max() < 4 * (expected * 0.75) ** 0.5


@pytest.mark.parametrize(
    "strategy",
    [
        Replay(RehearsalSettings(size=7, pretraining_size=4)),
        Der(DerSettings(size=7, pretraining_size=4, top=5)),
        Der(DerSettings(size=7, pretraining_size=4, top=1000)),
    ],
    ids=["replay", "der", "der of all"],
)
def test_memory_is_what_was_announced_and_does_not_grow_with_tasks(strategy: Rehearsal) -> None:
    model = tiny_model("dsa")
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=0)
    for task in range(30):
        strategy.finish_task(trainee_of(strategy, model), stories(3, seed=task), seed=task)
    announced = strategy.memory_bytes(trainee_of(strategy, model), 30)
    assert num_bytes(strategy) <= announced <= 1.05 * num_bytes(strategy)
    assert strategy.count("tasks.seen") == 90


def test_what_comes_back_depends_on_the_place_alone_and_is_counted_apart() -> None:
    model = tiny_model("dsa")
    replay = Replay(RehearsalSettings(size=20, pretraining_size=6, tasks=3, pretraining=2))
    replay.prepare(trainee_of(replay, model), pretraining(), seed=0)
    (before_tasks,) = replay.extra_batches(
        trainee_of(replay, model), Position(0, 0, 0)
    )  # nothing of tasks yet
    assert len(before_tasks.tokens_BT) == 2
    replay.finish_task(trainee_of(replay, model), stories(20), seed=0)
    drawn = [
        replay.extra_batches(trainee_of(replay, model), place)
        for place in (Position(0, 1, 5), Position(0, 1, 5), Position(0, 1, 6), Position(1, 1, 5))
    ]
    for of_tasks, sequences in drawn:
        assert len(of_tasks.tokens_BT) == 3
        assert len({tuple(row.tolist()) for row in of_tasks.tokens_BT}) == 3
        assert len(sequences.tokens_BT) == 2
    assert torch.equal(drawn[0][0].tokens_BT, drawn[1][0].tokens_BT)
    for other in drawn[2:]:
        assert not torch.equal(drawn[0][0].tokens_BT, other[0].tokens_BT)
    assert replay.row_notes() == {"replayed": {"tasks": 12, "pretraining": 10}}


# --- what comes of it -------------------------------------------------------------------------


def gradients(model: Transformer, batches: list[Batch]) -> Memory:
    """Of the mean loss over all tokens of the batches."""
    copied = copy.deepcopy(model).requires_grad_(True)
    losses = []
    for batch in batches:
        logits_MV = copied(batch.tokens_BT).flatten(0, 1)
        targets_M = batch.targets_BT.flatten()
        losses.append(F.cross_entropy(logits_MV, targets_M, reduction="sum", ignore_index=IGNORED))
    (torch.stack(losses).sum() / sum(batch.num_targets for batch in batches)).backward()
    return {n: p.grad for n, p in copied.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("strategy", ["replay", "der"])
def test_with_nothing_to_come_back_it_is_sgd_bit_for_bit(strategy: str) -> None:
    plain, other = tiny_model("dsa"), tiny_model("dsa")
    idle: Strategy = Replay(RehearsalSettings(tasks=0, pretraining=0))
    if strategy == "der":
        idle = Der(DerSettings(strength=0))
    idle.prepare(trainee_of(idle, other), pretraining(), seed=0)
    for task in range(2):
        tune(plain, Sequential(NoSettings()), task)
        tune(other, idle, task)
        idle.finish_task(trainee_of(idle, other), stories(3), seed=task)
    assert_bit_equal(state(plain), state(other))


def added_gradients(model: Transformer, strategy: Strategy, place: Position) -> Memory:
    """Of the strategy's penalty at a place."""
    model.zero_grad()
    strategy.start_step(trainee_of(strategy, model), place)
    penalty = strategy.penalty(trainee_of(strategy, model))
    assert penalty is not None
    penalty.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(a: Memory, b: Memory, rtol: float = 1e-4, atol: float = 1e-7) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=rtol, atol=atol)


def test_a_step_with_replay_is_a_step_on_all_its_stories_together() -> None:
    model = tiny_model("dsa")
    replay = Replay(RehearsalSettings(size=20, pretraining_size=6, tasks=3, pretraining=2))
    replay.prepare(trainee_of(replay, model), pretraining(), seed=0)
    replay.finish_task(trainee_of(replay, model), stories(20), seed=0)
    trainer, found = (
        trainer_of(model, replay, clip=1e9, optimizer="sgd", learning_rate=1.0),
        state(model),
    )
    (step,) = trainer.steps(trainer.optimizer(), story, seed=0, task=1, stop=1)
    again = [*story(0), *replay.extra_batches(trainee_of(replay, model), Position(0, 1, 0))]
    assert [len(batch.tokens_BT) for batch in again] == [3, 3, 2]
    assert step.num_tokens == sum(batch.num_targets for batch in again)
    model.load_state_dict(found, strict=False)
    expected = gradients(model, again)
    moved = {n: p for n, p in found.items() if group_of(n) != "indexer"}
    trainer = trainer_of(model, replay, clip=1e9, optimizer="sgd", learning_rate=1.0)
    list(trainer.steps(trainer.optimizer(), story, seed=0, task=1, stop=1))
    now = state(model)
    assert_close({n: moved[n] - now[n] for n in moved}, expected, rtol=1e-3, atol=1e-6)


# --- dark experience replay -------------------------------------------------------------------


def test_kept_answers_are_a_distribution_and_do_not_know_a_shift_of_the_logits() -> None:
    logits_MV = 3 * noise(6, 11)
    for num_top in (1, 4, 10, 11):
        ids_MK = logits_MV.topk(num_top).indices
        kept = log_probabilities(logits_MV, ids_MK)
        assert kept.shape == (6, min(num_top + 1, 11))
        torch.testing.assert_close(kept.exp().sum(-1), torch.ones(6))
        torch.testing.assert_close(log_probabilities(logits_MV + 7 * noise(6, 1), ids_MK), kept)
        p_MV = logits_MV.double().softmax(-1)
        for row, (ids, p) in enumerate(zip(ids_MK.tolist(), p_MV)):
            rest = sum(float(value) for v, value in enumerate(p) if v not in ids)
            parts = [float(p[v]) for v in ids] + ([rest] if num_top < 11 else [])
            torch.testing.assert_close(kept[row].double().exp(), torch.tensor(parts).double())


def logp(model: Transformer, batch: Batch) -> Tensor:
    """Log-probabilities [M, V] at the learned tokens."""
    return model(batch.tokens_BT)[batch.targets_BT != IGNORED].log_softmax(-1)


def test_with_the_whole_vocabulary_der_is_the_squared_distance_of_log_probabilities() -> None:
    base, kept, sequences = tiny_model("dsa"), stories(2), [next(pretraining())]
    kept_rows: dict[str, Any] = {"size": 2, "pretraining_size": 1, "tasks": 2, "pretraining": 1}
    der = Der(DerSettings(top=31, strength=0.7, **kept_rows))
    der.prepare(trainee_of(der, base), iter(sequences), seed=0)
    der.finish_task(trainee_of(der, base), kept, seed=0)
    model = tiny_model("dsa", seed=1)
    der.start_step(trainee_of(der, model), Position(0, 1, 0))
    penalty = der.penalty(trainee_of(der, model))
    squares = [
        (logp(model, one) - logp(base, one).detach()).square() for one in (*kept, *sequences)
    ]
    expected = 0.7 * torch.cat(squares).mean()
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)
    got = added_gradients(model, der, Position(0, 1, 0))
    expected.backward()
    assert_close(got, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert der.row_notes() == {"answered": {"tasks": 4, "pretraining": 2}}


def test_der_asks_for_what_was_answered_then_and_costs_nothing_there() -> None:
    model = tiny_model("dsa")
    der = Der(DerSettings(size=4, pretraining_size=4, top=5))
    der.prepare(trainee_of(der, model), pretraining(), seed=0)
    der.finish_task(trainee_of(der, model), stories(4), seed=0)
    place = Position(0, 1, 0)
    der.start_step(trainee_of(der, model), place)
    penalty = der.penalty(trainee_of(der, model))
    assert penalty is not None
    assert penalty < 1e-10
    base = copy.deepcopy(model)
    tune(model, Sequential(NoSettings()))
    der.start_step(trainee_of(der, model), place)
    after = der.penalty(trainee_of(der, model))
    assert after is not None
    assert after > 1e-4
    kept = [der.batch(shelf, rows) for shelf, rows in der.distilled.items()]
    squares = []
    for batch in kept:
        then, now = logp(base, batch), logp(model, batch)
        ids = then.topk(5).indices
        squares.append(
            (log_probabilities(now, ids) - log_probabilities(then, ids)).square().mean(-1)
        )
    torch.testing.assert_close(after, 0.5 * torch.cat(squares).mean())


def test_the_two_terms_of_der_plus_plus_have_rows_of_their_own() -> None:
    base, model = tiny_model("dsa"), tiny_model("dsa", seed=1)
    kept_rows: dict[str, Any] = {
        "size": 40,
        "pretraining_size": 40,
        "top": 31,
        "tasks": 3,
        "pretraining": 3,
    }
    der = Der(DerSettings(strength=0.0, labels=0.3, **kept_rows))
    der.prepare(trainee_of(der, base), pretraining(), seed=0)
    der.finish_task(trainee_of(der, base), stories(40), seed=0)
    for step in range(3):
        der.start_step(trainee_of(der, model), Position(0, 1, step))
        for shelf in ("tasks", "pretraining"):
            assert not torch.equal(der.distilled[shelf], der.labelled[shelf])
    got = added_gradients(model, der, Position(0, 1, 2))
    rows = [der.batch(shelf, rows) for shelf, rows in der.labelled.items()]
    expected = gradients(model, rows)
    assert_close(got, {name: 0.3 * gradient for name, gradient in expected.items()})


# --- thin factors -----------------------------------------------------------------------------


def factors(model: Transformer, lora: Lora) -> Memory:
    """W_0 + alpha / rank B A of every matrix, as a function of A and B."""
    scale = lora.settings.alpha / lora.rank(trainee_of(lora, model))
    return {
        name: lora.memory[f"{name}.start"]
        + scale * lora.memory[f"{name}.b"] @ lora.memory[f"{name}.a"]
        for name in lora.trainable(model).lr_scales
    }


NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("dsa", {}),
    ("dsa-v32", {}),
    ("dsa", {"ffn": "moe", "ffn_width": 64, "num_experts": 3}),
]


class Chain(nn.Module):
    """Two matrices where lora looks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=False))
        for seed, p in enumerate(self.parameters()):
            p.data = noise(*p.shape, seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x).tanh())


def test_training_the_factors_is_what_modules_with_factors_would_do() -> None:
    ours, x, y = Chain(), noise(16, 5, seed=8), noise(16, 3, seed=9)
    theirs, lora = copy.deepcopy(ours), Lora(LoraSettings(rank=2, alpha=3.0))
    model: Any = ours
    lora.start_task(trainee_of(lora, model))
    lora.start_step(trainee_of(lora, model), Position(0, 0, 0))
    own = lora.adapters(trainee_of(lora, model))
    factors_ = {name: p.detach().clone().requires_grad_(True) for name, p in own.items()}
    optimizers = [torch.optim.AdamW(p.values(), lr=0.1) for p in (own, factors_)]
    for step in range(8):
        lora.start_step(trainee_of(lora, model), Position(0, 0, step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.mse_loss(ours(x), y).backward()
        lora.transform_gradients(trainee_of(lora, model))
        made = {
            name: p + 3.0 / 2 * factors_[f"{name}.b"] @ factors_[f"{name}.a"]
            for name, p in theirs.named_parameters()
        }
        F.mse_loss(torch.func.functional_call(theirs, made, x), y).backward()
        for optimizer in optimizers:
            optimizer.step()
        lora.after_step(trainee_of(lora, model), learning_rate=0.1)
    start = F.mse_loss(theirs(x), y)
    assert F.mse_loss(ours(x), y) < 0.5 * start
    for name, p in theirs.named_parameters():
        expected = p + 3.0 / 2 * factors_[f"{name}.b"] @ factors_[f"{name}.a"]
        torch.testing.assert_close(ours.get_parameter(name), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arch", "network"), NETWORKS)
def test_the_gradients_of_the_factors_are_those_of_autograd(
    arch: str, network: dict[str, Any]
) -> None:
    model, lora = tiny_model(arch, **network), Lora(LoraSettings(rank=3, alpha=5.0))
    tune(model, lora, max_steps=2)  # so that B is not zero
    (batch,) = story(7)
    real_BT = batch.targets_BT != IGNORED

    def backward() -> None:
        logits_BTV = model(batch.tokens_BT)
        F.cross_entropy(logits_BTV[real_BT], batch.targets_BT[real_BT]).backward()

    pairs = lora.adapters(trainee_of(lora, model))
    for p in pairs.values():
        p.grad = None
    backward()
    named = dict(model.named_parameters())
    made = [(matrix, named[name].grad) for name, matrix in factors(model, lora).items()]
    torch.stack([(matrix * g).sum() for matrix, g in made if g is not None]).sum().backward()
    expected = {key: p.grad.clone() for key, p in pairs.items() if p.grad is not None}
    assert expected.keys() == pairs.keys()
    assert all(gradient.any() for gradient in expected.values())
    for p in [*pairs.values(), *model.parameters()]:
        p.grad = None
    backward()
    lora.transform_gradients(trainee_of(lora, model))
    assert_close({k: p.grad for k, p in pairs.items() if p.grad is not None}, expected, atol=1e-6)
    assert all(named[name].grad is None for name in lora.trainable(model).lr_scales)


@pytest.mark.parametrize(("arch", "network"), NETWORKS)
def test_a_task_moves_matrices_by_no_more_than_the_rank_and_nothing_else(
    arch: str, network: dict[str, Any]
) -> None:
    model, lora = tiny_model(arch, **network), Lora(LoraSettings(rank=2))
    for task in range(3):
        before = state(model)
        tune(model, lora, task)
        for name, now in state(model).items():
            if name not in lora.trainable(model).lr_scales:
                assert torch.equal(now, before[name]), name
                continue
            values = torch.linalg.svdvals(now - before[name])
            assert (values[..., 1] > 1e-3 * values[..., 0]).all(), name
            assert (values[..., 2:] < 1e-4 * values[..., :1]).all(), name
            torch.testing.assert_close(now, factors(model, lora)[name])


def test_factors_do_not_pile_up_and_each_task_begins_where_the_last_has_ended() -> None:
    model, lora = tiny_model("dsa"), Lora(LoraSettings(rank=2))
    announced, kept = lora.memory_bytes(trainee_of(lora, model), 50), []
    firsts = []
    for task in range(3):
        before = state(model)
        lora.start_task(trainee_of(lora, model))
        assert_bit_equal(
            {n: before[n] for n in lora.trainable(model).lr_scales}, factors(model, lora)
        )
        lora.start_step(trainee_of(lora, model), Position(0, task, 0))
        firsts.append(lora.memory["blocks.0.attention.selected.q.weight.a"].detach().clone())
        assert_bit_equal(
            {n: before[n] for n in lora.trainable(model).lr_scales}, factors(model, lora)
        )
        tune(model, lora, task)
        kept.append(num_bytes(lora))
    assert kept == [announced] * 3
    assert firsts[0].abs().max() <= 32**-0.5
    assert not torch.equal(firsts[0], firsts[1])


@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-v32"])
def test_rank_zero_is_the_rank_whose_count_is_nearest_to_acfts(arch: str) -> None:
    model = tiny_model(arch)
    count = sum(trained_by_acft(model).values())

    def of(rank: int) -> int:
        lora = Lora(LoraSettings(rank=rank))
        trainer = trainer_of(model, lora)
        own = sum(p.numel() for p in trainer.optimized().values())
        assert finetune.mask_of(trainer)["trainable"] == own
        return own

    lora = Lora(LoraSettings(rank=0))
    chosen = lora.rank(trainee_of(lora, model))
    assert of(0) == of(chosen)
    distances = [abs(of(rank) - count) for rank in range(1, chosen + 3)]
    assert min(distances) == distances[chosen - 1]


def test_the_optimiser_of_lora_holds_factors_and_no_matrix() -> None:
    model, lora = tiny_model("dsa"), Lora(LoraSettings(rate=7.0))
    trainer = trainer_of(model, lora, learning_rate=0.5)
    lora.start_task(trainee_of(lora, model))
    optimizer = trainer.optimizer()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in lora.adapters(trainee_of(lora, model)).values()}
    assert [group["lr"] for group in optimizer.param_groups] == [3.5]


# --- on the way back --------------------------------------------------------------------------


def test_wise_learns_as_sgd_and_is_measured_between_it_and_the_base() -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    base, wise = state(model), Wise(WiseSettings(alpha=0.3))
    wise.prepare(trainee_of(wise, model), pretraining(), seed=0)
    assert num_bytes(wise) == wise.memory_bytes(trainee_of(wise, model), 50)
    for task in range(2):
        tune(plain, Sequential(NoSettings()), task)
        tune(model, wise, task)
        now = state(model)
        assert_bit_equal(now, state(plain))
        with wise.evaluation_weights(trainee_of(wise, model)):
            for name, p in model.named_parameters():
                torch.testing.assert_close(p.data, 0.7 * base[name] + 0.3 * now[name])
        assert_bit_equal(state(model), now)


def test_the_front_of_wise_begins_at_the_base_and_ends_at_sgd() -> None:
    model = tiny_model("dense")
    base, wise = state(model), Wise(WiseSettings())
    wise.prepare(trainee_of(wise, model), pretraining(), seed=0)
    tune(model, wise)
    now = state(model)
    points = [(point, state(model)) for point in wise.tradeoff_points(trainee_of(wise, model))]
    assert [point["alpha"] for point, _ in points] == [tenths / 10 for tenths in range(11)]
    assert_bit_equal(points[0][1], base)
    assert_bit_equal(points[-1][1], now)
    assert_bit_equal(state(model), now)
    with wise.evaluation_weights(trainee_of(wise, model)):
        assert_bit_equal(state(model), points[5][1])
