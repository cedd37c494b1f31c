"""What a mask leaves free moves; every other entry stays bit-equal, whatever is done to it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from home import TinyHome, cli
from streams import each_task, stream_of
from test_ewc import assert_bit_equal, state, tune
from tiny import documents, tiny_model
from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch, batch_of
from dsa_sandbox.registry import strategies
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import NoSettings, Strategy
from dsa_sandbox.strategies.masks import random_lines, trained_by_acft
from dsa_sandbox.strategies.random_mask import KIND_OF
from dsa_sandbox.strategies.sgd import Sequential
from dsa_sandbox.training.trainer import Trainer

ARCHS = ("dense", "dsa", "dsa-full", "dsa-v32")
MASKS: dict[str, dict[str, Any]] = {
    "acft": {},
    "random-mask": {},
    "random-mask 1": {"draw": 1},
    "complement": {},
    "complement matched": {"count": "matched"},
    "attention-only": {},
    "bottom-frozen": {"share": 0.5},
}


def made(name: str) -> Strategy:
    cls = strategies[name.split()[0]]
    mask = cls(cls.Settings(**MASKS[name]))
    assert mask.role == "mask"
    return mask


def story(step: int) -> list[Batch]:
    return [batch_of(documents(16, 16, 12, seed=1000 + step))]


def free_entries(mask: Strategy, model: Transformer) -> dict[str, Tensor]:
    """Of every parameter, True where it may move."""
    moves, entries = mask.trainable(model).lr_scales, mask.trainable(model).masks
    assert entries.keys() <= moves.keys()
    return {
        name: entries.get(name, torch.full_like(p, name in moves, dtype=torch.bool))
        for name, p in model.named_parameters()
    }


def count_by_kind(model: Transformer, free: dict[str, Tensor]) -> dict[tuple[str, str], int]:
    """Entries that may move in each layer, by kind of matrix."""
    counts: dict[tuple[str, str], int] = {}
    for name, moves in free.items():
        layer, _, matrix = name.partition(".attention.")
        if moves.any():
            key = layer, KIND_OF[matrix.split(".")[-2]]
            counts[key] = counts.get(key, 0) + int(moves.sum())
    return counts


@pytest.mark.parametrize("arch", ARCHS)
def test_a_random_mask_has_acfts_count_of_each_kind_in_each_layer(arch: str) -> None:
    model = tiny_model(arch)
    expected = count_by_kind(model, free_entries(made("acft"), model))
    assert {kind for _, kind in expected} == {"q", "k", "v", "o"}
    for name in ("random-mask", "random-mask 1"):
        assert count_by_kind(model, free_entries(made(name), model)) == expected


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_a_random_mask_moves_lines_of_both_flows_and_other_ones_in_each_draw(arch: str) -> None:
    model = tiny_model(arch)
    first, again, other = (
        free_entries(made(name), model) for name in ("random-mask", "random-mask", "random-mask 1")
    )
    cut = 0
    for name, moves in first.items():
        assert torch.equal(moves, again[name])
        if not moves.any():
            continue
        lines = moves.T if name.endswith(".o.weight") else moves
        cut += sum(bool(line.any() and not line.all()) for line in lines)
    assert cut <= 2 * 4  # at most one line of a kind in a layer
    groups = {group_of(name) for name, moves in first.items() if moves.any()}
    assert groups >= {"dense": {"a", "b"}, "dsa": {"compressed", "selected"}}[arch]
    assert "indexer" not in groups
    assert any(not torch.equal(moves, other[name]) for name, moves in first.items())


def test_every_line_is_as_likely_as_any_other_and_the_count_is_exact() -> None:
    matrices = {"wide": torch.zeros(6, 8), "thin": torch.zeros(4, 3)}
    hits = torch.zeros(10)
    for seed in range(600):
        generator = torch.Generator().manual_seed(seed)
        moves = random_lines(matrices, 0, 20, generator)
        assert sum(int(m.sum()) for m in moves.values()) == 20
        hits += torch.cat([m[:, 0] for m in moves.values()])
    assert hits.std() / hits.mean() < 0.12


@pytest.mark.parametrize("arch", ARCHS)
def test_complement_moves_what_acft_does_not_and_matched_as_many_entries_of_it(arch: str) -> None:
    model = tiny_model(arch)
    acft, whole, matched = (
        free_entries(made(name), model) for name in ("acft", "complement", "complement matched")
    )
    for name, p in model.named_parameters():
        still = group_of(name) == "indexer"
        assert torch.equal(whole[name], ~acft[name] if not still else torch.zeros_like(p) > 0)
        assert not (matched[name] & ~whole[name]).any()
        assert matched[name].float().mean() < 0.5
    assert sum(int(m.sum()) for m in matched.values()) == sum(trained_by_acft(model).values())


@pytest.mark.parametrize("arch", ARCHS)
def test_attention_only_moves_the_matrices_of_both_flows(arch: str) -> None:
    model = tiny_model(arch)
    groups = {"dense": {"a", "b", "b1", "b2"}}.get(arch, {"compressed", "selected"})
    moves = made("attention-only").trainable(model).lr_scales
    assert set(moves) == {
        n for n, p in model.named_parameters() if group_of(n) in groups and p.dim() == 2
    }


def test_bottom_frozen_keeps_embedding_and_a_share_of_the_layers() -> None:
    model = tiny_model("dsa", num_layers=3)
    cls = strategies["bottom-frozen"]
    for share, num_still in ((0.0, 0), (1 / 3, 1), (0.5, 2), (1.0, 3)):
        moves = cls(cls.Settings(share=share, rate=3.0)).trainable(model).lr_scales
        still = {"embedding", *(f"blocks.{number}" for number in range(num_still))}
        expected = {
            name
            for name, _ in model.named_parameters()
            if group_of(name) != "indexer"
            and not any(name.startswith(f"{prefix}.") for prefix in still)
        }
        assert set(moves) == expected
        assert set(moves.values()) == {3.0}
    third = cls(cls.Settings(share=1 / 3))
    assert cls(cls.Settings()).trainable(model) == third.trainable(model)


@pytest.mark.parametrize("optimizer", ["ours", "decay and momentum"])
@pytest.mark.parametrize("arch", ["dense", "dsa"])
@pytest.mark.parametrize("name", MASKS)
def test_what_may_not_move_is_bit_equal_whatever_the_optimiser(
    name: str, arch: str, optimizer: str
) -> None:
    model, mask = tiny_model(arch), made(name)
    base = copy.deepcopy(model)
    trainer = Trainer(
        mask, model, base, Finetune(indexer="frozen", learning_rate=1e-2, max_steps=4)
    )
    free = free_entries(mask, model)
    own = trainer.optimizer()
    held = {id(p) for group in own.param_groups for p in group["params"]}
    assert held == {id(model.get_parameter(n)) for n, m in free.items() if m.any()}
    if optimizer != "ours":
        own = torch.optim.SGD(trainer.optimized().values(), 0.1, momentum=0.9, weight_decay=0.1)
    list(trainer.steps(own, story, seed=0, task=0))
    trainer.assert_frozen()
    for key, now in model.named_parameters():
        changed = now != base.get_parameter(key)
        assert not (changed & ~free[key]).any(), key
        if optimizer != "ours" or "attention" in key:
            assert changed.sum() >= 0.9 * free[key].sum(), key


def test_only_entries_that_move_count_in_the_gradients_norm() -> None:
    model, mask = tiny_model("dsa"), made("random-mask")
    trainer = Trainer(mask, model, copy.deepcopy(model), Finetune(indexer="frozen", max_steps=1))
    (step,) = trainer.steps(trainer.optimizer(), story, seed=0, task=0)
    whole = copy.deepcopy(trainer.base).requires_grad_(True)
    (batch,) = story(0)
    logits = whole(batch.tokens_BT).flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, batch.targets_BT.flatten()).backward()
    squares = 0.0
    for name, moves in mask.trainable(whole).masks.items():
        gradient = whole.get_parameter(name).grad
        assert gradient is not None
        squares += float(gradient[moves].square().sum())
    assert step.grad_norm == pytest.approx(squares**0.5, rel=1e-4)


@pytest.mark.parametrize(
    ("strategy", "arch", "sets"),
    [
        ("random-mask", "dsa", ()),
        ("complement", "dense", ("complement.count=matched",)),
        ("acft", "dense", ()),
        ("random-mask+ewc", "dsa", ("ewc.passes=2", "ewc.task_passes=1", "ewc.strength=100")),
    ],
)
def test_after_fifty_tasks_the_printed_count_has_moved_and_nothing_else(
    strategy: str, arch: str, sets: tuple[str, ...], tmp_path: Path
) -> None:
    at_work = stream_of(
        tmp_path, strategy, *sets, "finetune.max_steps=1", "finetune.batch=2", arch=arch, tasks=50
    )
    changed = {n: torch.zeros_like(p) > 0 for n, p in at_work.base.named_parameters()}
    for _ in each_task(at_work):  # some entry may have come back by the end
        for name, now in at_work.model.named_parameters():
            changed[name] |= now != at_work.base.get_parameter(name)
    mask = at_work.trainer.mask()
    for name, ever in changed.items():
        printed = mask[name]["count"] if name in mask else 0
        if "attention" in name and "norm" not in name:  # of the embedding, unseen words stay
            assert ever.sum() == printed, name
        assert ever.sum() <= printed, name


MOVES_NOTHING = """
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Strategy, Trainable

@strategies.register("still")
class Still(Strategy):
    role = "mask"

    def trainable(self, model):
        return Trainable({})
"""


@pytest.mark.usefixtures("forget_includes")
def test_a_mask_that_moves_nothing_is_refused_in_one_line(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    (tmp_path / "still.py").write_text(MOVES_NOTHING, "utf-8")
    answer = cli(
        *("finetune", tiny_home.run("pretrain dsa"), "--include", tmp_path / "still.py"),
        *("--strategy", "still", "--tasks", tiny_home.run("make-tasks"), "--home", tmp_path / "h"),
    )
    assert answer.problem == "error: --strategy still: trains no parameter of dsa"


def test_a_weight_without_a_gradient_stays() -> None:
    model = tiny_model("dsa")
    before = state(model)
    trainer = Trainer(
        Sequential(NoSettings()), model, copy.deepcopy(model), Finetune(indexer="frozen")
    )
    optimizer = trainer.optimizer()
    for parameter in trainer.optimized().values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_bit_equal(state(model), before)


@pytest.mark.parametrize("name", ["acft", "random-mask"])
def test_what_has_moved_and_may_not_is_reported(name: str) -> None:
    model = tiny_model("dsa")
    cls = strategies[name]
    trainer = Trainer(cls(cls.Settings()), model, copy.deepcopy(model), Finetune(indexer="frozen"))
    trainer.assert_frozen()
    key = next(n for n, _ in model.named_parameters() if n not in trainer.lr_scales)
    still = torch.ones_like(model.get_parameter(key)).bool()
    if name == "random-mask":
        key, still = next(
            (n, ~moves) for n, moves in trainer.trainee.masks.items() if not moves.all()
        )
    with torch.no_grad():
        model.get_parameter(key)[tuple(still.nonzero()[0])] += 1e-6
    with pytest.raises(AssertionError, match="is frozen but has changed"):
        trainer.assert_frozen()


def test_fine_tuning_leaves_buffers_alone() -> None:
    model = tiny_model("dsa", ffn="moe", ffn_width=64, num_experts=3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("bias" in name for name in before)
    tune(model, Sequential(NoSettings()))
    assert_bit_equal(dict(model.named_buffers()), before)
