"""Strategies that turn steps away from what was learned before, against brute force.

B batch, T tokens, M targets, D inputs of a matrix, K directions, N numbers that move.
"""

import copy
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_ewc import assert_bit_equal, pretraining, state, story, tune
from test_penalties import stories
from tiny import documents, noise, some_tokens, tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.registry import strategies
from dsa_sandbox.selection import backends
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.agem import Agem, AgemSettings
from dsa_sandbox.strategies.base import Position, Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.strategies.ewc import Ewc, EwcSettings
from dsa_sandbox.strategies.gpm import Gpm, GpmSettings, grown, input_grams
from dsa_sandbox.strategies.ogd import Ogd, OgdSettings, leading
from dsa_sandbox.training.trainer import Trainer

PROJECTING = ("agem", "ogd", "gpm")
SMALL: dict[str, dict[str, Any]] = {
    "agem": {"size": 8, "batch": 4},
    "ogd": {"directions": 10, "pretraining": 5, "per_task": 2},
    "gpm": {"passes": 6, "threshold": 0.9},
}


def fresh(name: str) -> Strategy:
    cls = strategies[name]
    strategy: Strategy = cls(cls.Settings(**SMALL[name]))
    return strategy


def steps_of(model: Transformer, strategy: Strategy, steps: int = 4) -> Iterator[dict[str, Tensor]]:
    """What each step of a task under AdamW changes."""
    plan = Finetune(learning_rate=3e-3, warmup_steps=0, max_steps=steps)
    trainer = Trainer(strategy, model, copy.deepcopy(model), plan)
    strategy.start_task(trainee_of(strategy, model))
    before = state(model)
    for _ in trainer.steps(trainer.optimizer(), story, seed=0, task=0):
        after = state(model)
        yield {name: after[name] - before[name] for name in trainee_of(strategy, model).parameters}
        before = after


@pytest.mark.parametrize("name", PROJECTING)
def test_memory_is_of_what_moves_bounded_and_not_more_than_promised(name: str) -> None:
    model = tiny_model("dsa")
    strategy = Combined({"acft": Acft(AcftSettings()), name: fresh(name)})
    moving = strategy.trainable(model).lr_scales
    assert 0 < len(moving) < len(state(model))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    promised = strategy.memory_bytes(trainee_of(strategy, model), 3)
    before, generator_state = state(model), torch.get_rng_state()
    for task in range(4):
        tune(model, strategy, steps=3)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        size = sum(v.numel() * v.element_size() for v in strategy.memory.values())
        assert size <= promised + 64  # bytes of counts and singular values
        assert not any(value.requires_grad for value in strategy.memory.values())
    for key, now in state(model).items():
        assert torch.equal(now, before[key]) == (key not in moving), key
    assert torch.equal(torch.get_rng_state(), generator_state)


# --- agem -------------------------------------------------------------------------------------


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


# --- ogd --------------------------------------------------------------------------------------


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


# --- gpm --------------------------------------------------------------------------------------


def gpm(model: Transformer, **settings: Any) -> Gpm:
    strategy = Gpm(GpmSettings(**(SMALL["gpm"] | settings)))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    return strategy


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("dense", {"activation": "gelu"}),
    ("dsa", {}),
    ("dsa", {"compression": "block", "block_size": 4}),
    ("dsa-v32", {}),
]


@pytest.mark.parametrize(("arch", "settings"), VARIANTS, ids=str)
def test_a_matrix_changed_outside_its_subspace_reads_the_same_of_earlier_data(
    arch: str, settings: dict[str, Any]
) -> None:
    """Whatever the matrix reads: a step across what it reads, W + dW (I - M M'), is not seen."""
    model = tiny_model(arch, **settings)
    tokens_BT = some_tokens(1, 10)
    grams = input_grams(model, [tokens_BT])
    said = model(tokens_BT).detach()
    names = list(Gpm(GpmSettings()).trainable(model).lr_scales)
    assert names
    for name in names:
        matrix = model.get_parameter(name)
        before, change = matrix.detach().clone(), 0.3 * noise(*matrix.shape, seed=2)
        values_D, vectors_DD = torch.linalg.eigh(grams[name].double())
        basis_DK = vectors_DD[:, values_D > 1e-8 * values_D.max()].float()
        differences = []
        for step in (change, change - change @ basis_DK @ basis_DK.T):
            with torch.no_grad():
                matrix.copy_(before + step)
                differences.append(float((model(tokens_BT) - said).abs().max()))
        with torch.no_grad():
            matrix.copy_(before)
        assert basis_DK.shape[1] < len(basis_DK), name  # something is free
        assert differences[0] > 1e-3, name
        assert differences[1] < 1e-2 * differences[0], name


def test_what_matrices_read_is_what_their_modules_are_given() -> None:
    model, tokens_BT = tiny_model("dsa"), some_tokens(2, 20)
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs: given.__setitem__(name, inputs[0].detach())

    places = ("attention", "feedforward", "feedforward.down", "attention.selected.o")
    hooks = [
        model.get_submodule(f"blocks.1.{place}").register_forward_pre_hook(keep(place))
        for place in places
    ]
    grams = input_grams(model, [tokens_BT])
    for hook in hooks:
        hook.remove()
    for place, matrices in {
        "attention": (
            "attention.compressed.q",
            "attention.compressed.down",
            "attention.selected.v",
        ),
        "feedforward": ("feedforward.up", "feedforward.gate"),
        "feedforward.down": ("feedforward.down",),
        "attention.selected.o": ("attention.selected.o",),
    }.items():
        x_MD = given[place].flatten(0, 1)
        for name in matrices:
            torch.testing.assert_close(grams[f"blocks.1.{name}.weight"], x_MD.T @ x_MD)


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
def test_inputs_are_found_whatever_computes_the_selection(arch: str) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens()
    expected = input_grams(model, [tokens_BT])
    backends.use(model, "gather")
    chosen = [model.get_submodule(f"blocks.{n}.attention").backend for n in range(2)]
    found = input_grams(model, [tokens_BT])
    for name in Gpm(GpmSettings()).trainable(model).lr_scales:
        torch.testing.assert_close(found[name], expected[name])
    assert [model.get_submodule(f"blocks.{n}.attention").backend for n in range(2)] == chosen
    assert None not in chosen


def test_a_subspace_holds_the_fewest_leading_directions_of_enough_energy() -> None:
    gram_DD = torch.diag(torch.tensor([2.0, 4.0, 1.0, 3.0]))
    none = torch.zeros(4, 0)
    for threshold, held in ((0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.89, [0, 1, 3])):
        basis_DK = grown(none, gram_DD, threshold)
        projection_DD = basis_DK @ basis_DK.T
        expected = torch.tensor([float(i in held) for i in range(4)])
        torch.testing.assert_close(projection_DD, torch.diag(expected))


def test_a_subspace_grows_by_what_new_inputs_lack_and_never_shrinks() -> None:
    first_DK = grown(torch.zeros(4, 0), torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0])), 0.7)
    new_DD = torch.diag(torch.tensor([5.0, 0.0, 3.0, 2.0]))
    for threshold, held in ((0.49, [0]), (0.6, [0, 2]), (0.79, [0, 2]), (0.9, [0, 2, 3])):
        basis_DK = grown(first_DK, new_DD, threshold)
        expected = torch.tensor([float(i in held) for i in range(4)])
        torch.testing.assert_close(basis_DK @ basis_DK.T, torch.diag(expected))
    model = tiny_model("dsa")
    strategy = gpm(model)
    for task in range(3):
        before = dict(strategy.memory)
        tune(model, strategy, steps=3, rate=3e-2)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        for key, then_DK in before.items():
            now_DK = strategy.memory[key]
            assert then_DK.shape[1] <= now_DK.shape[1] <= len(now_DK)
            torch.testing.assert_close(
                now_DK.T @ now_DK, torch.eye(now_DK.shape[1]), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(now_DK @ (now_DK.T @ then_DK), then_DK, rtol=0, atol=1e-5)
    assert sum(v.shape[1] for v in before.values()) > 0


def test_every_step_of_adamw_keeps_off_the_subspaces() -> None:
    model = tiny_model("dsa")
    strategy = gpm(model)
    for change in steps_of(model, strategy):
        assert change.keys() == strategy.trainable(model).lr_scales.keys()
        for name, step in change.items():
            basis_DK = strategy.memory[f"subspace.{name}"]
            assert 0 < basis_DK.shape[1] < len(basis_DK)
            assert step.norm() > 0
            assert (step @ basis_DK).norm() < 1e-4 * step.norm()


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_matrices_move_and_all_else_stands_still(arch: str) -> None:
    model = tiny_model(arch)
    before = state(model)
    strategy = gpm(model)
    tune(model, strategy)
    for name, now in state(model).items():
        still = group_of(name) in ("indexer", "embedding", "norm") or now.dim() < 2
        assert torch.equal(now, before[name]) == still, name


def test_beside_a_rule_that_moves_all_gpm_still_leaves_the_embedding_out() -> None:
    model = tiny_model("dsa")
    both = Combined({"ewc": Ewc(EwcSettings(passes=2)), "gpm": Gpm(GpmSettings())})
    whole = Gpm(GpmSettings()).trainable(model)
    assert list(both.trainable(model).lr_scales) == list(whole.lr_scales)


def test_a_network_of_experts_is_refused_in_one_line() -> None:
    model = tiny_model("dsa", ffn="moe", num_experts=4, ffn_width=96)
    with pytest.raises(ValueError, match="gpm: each expert"):
        Gpm(GpmSettings()).trainable(model)


def masked(name: str, **settings: Any) -> tuple[Any, Trainer]:
    """A rule beside a mask that moves tensors in part."""
    model = tiny_model("dsa")
    rule_cls, mask_cls = strategies[name], strategies["random-mask"]
    parts: dict[str, Strategy] = {
        "random-mask": mask_cls(mask_cls.Settings()),
        name: rule_cls(rule_cls.Settings(**settings)),
    }
    both = Combined(parts)
    plan = Finetune(learning_rate=3e-3, warmup_steps=0, max_steps=3)
    trainer = Trainer(both, model, copy.deepcopy(model), plan)
    base = copy.deepcopy(model).requires_grad_(True)
    both.prepare(trainer.trainee.on(base), pretraining(), seed=7)
    both.start_task(trainer.trainee)
    return both.parts[name], trainer


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


def test_beside_a_mask_of_entries_ogd_is_about_the_entries_that_move() -> None:
    ogd_part, trainer = masked("ogd", directions=10, pretraining=5, per_task=2)
    model, before = trainer.model, state(trainer.model)
    for _ in trainer.steps(trainer.optimizer(), story, seed=0, task=0):
        now = state(model)
        steps = [(now[n] - before[n]).flatten() for n in trainer.trainee.parameters]
        step_N = torch.cat(steps)
        assert (ogd_part.memory["directions"] @ step_N).norm() < 1e-4 * step_N.norm()
        before = now


def test_gpm_refuses_a_mask_that_moves_parts_of_matrices() -> None:
    with pytest.raises(ValueError, match="gpm needs whole matrices"):
        masked("gpm", passes=6)
