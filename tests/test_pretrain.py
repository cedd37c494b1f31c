"""Pre-training's numbers, pinned: they change only on purpose.

A change that alters them bumps NUMERICS in store.py, and the values here.
"""

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from home import QUICK, cli
from tiny import documents, some_tokens, tiny_model, tiny_settings
from torch import Tensor

from dsa_sandbox.config.settings import Train
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.sizes import group_of
from dsa_sandbox.training.loop import Phase, Step, train
from dsa_sandbox.training.pretrain import (
    drawn_queries,
    has_indexer,
    make_optimizer,
    phase_of,
    warmup_then_decay,
)

PINNED = {
    "dense": [4.4453, 3.92615, 3.46483, 3.07479, 2.74586, 2.55087],
    "dsa": [4.42695, 3.90665, 3.82929, 3.42325, 3.20283, 3.01478],
    "dense muon": [4.4453, 4.24264, 4.04699, 3.85939, 3.68011, 3.56505],
    "dsa muon": [4.42695, 4.21894, 4.38459, 4.14387, 3.94548, 3.80395],
}


def losses(which: str) -> list[float]:
    """Six steps on one small batch; for dsa two of each phase."""
    arch, optimizer = [*which.split(), "adamw"][:2]
    model = tiny_model(arch)
    plan = Train(steps=6, optimizer=optimizer, dense_fraction=0.33, indexer_fraction=0.33)
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


@pytest.mark.parametrize("which", PINNED)
def test_the_losses_of_six_steps_are_those_that_numerics_stands_for(which: str) -> None:
    torch.testing.assert_close(losses(which), PINNED[which], rtol=0, atol=1e-4)


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
    assert not at(0).train_indexer
    assert (at(60).sparse, at(60).train_indexer) == (False, True)
    assert (at(99).sparse, at(99).train_indexer) == (True, True)
    assert all(phase_of(Train(steps=100), False, False)(step).name == "dense" for step in (0, 99))


def warming(taught: bool, step: int) -> Phase:
    """Of the indexer's warm-up, or without it."""
    return Phase(1.0, sparse=False, train_indexer=taught)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_in_the_indexers_warm_up_the_trunk_learns_as_without_it(optimizer: str) -> None:
    plan, batch = Train(optimizer=optimizer), batch_of(documents(31, 20))
    found = []
    for taught in (True, False):
        model = tiny_model("dsa")
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        moves = make_optimizer(model, plan)
        list(
            train(
                model,
                moves,
                lambda _: [batch],
                partial(warming, taught),
                start=0,
                stop=2,
                clip=1.0,
            )
        )
        found.append(dict(model.named_parameters()))
        for name, parameter in model.named_parameters():
            still = "indexer" in name and not taught
            assert torch.equal(parameter, before[name]) == still, name
    for name, parameter in found[0].items():
        if "indexer" not in name:
            torch.testing.assert_close(parameter, found[1][name], rtol=1e-3, atol=1e-5)


# the queries that the indexer is taught about


def test_drawn_queries_are_a_share_of_the_positions_each_as_often_as_any_other() -> None:
    for share, length, count in ((0.25, 32, 8), (0.07, 100, 7), (0.1, 33, 4), (1e-6, 32, 1)):
        rows = drawn_queries(share, 0, 5)(length)
        assert isinstance(rows, Tensor)
        assert rows.dtype == torch.int64
        assert len(rows) == count
        assert (rows[1:] > rows[:-1]).all()
        assert rows[0] >= 0
        assert rows[-1] < length
    often = torch.zeros(8)
    for step in range(2000):
        often[drawn_queries(0.375, 0, step)(8)] += 1
    assert (often / 2000 - 0.375).abs().max() < 0.04  # four standard deviations


def test_drawn_queries_depend_on_seed_step_and_length_alone() -> None:
    def drawn(seed: int, step: int, length: int = 64) -> list[int]:
        rows = drawn_queries(0.25, seed, step)(length)
        assert isinstance(rows, Tensor)
        return rows.tolist()

    assert drawn(1, 7) == drawn(1, 7)
    assert len({tuple(drawn(seed, step)) for seed in range(3) for step in range(3)}) == 9
    plan = Train(steps=100, indexer_queries=0.25)
    phases = [phase_of(plan, True, False, seed=1) for _ in range(2)]
    for step in (65, 69, 99):
        rows = [at(step).queries(64) for at in phases]
        assert torch.equal(torch.as_tensor(rows[0]), torch.as_tensor(rows[1]))
        assert torch.as_tensor(rows[0]).tolist() == drawn(1, step)


def test_a_share_of_one_is_every_query_without_a_draw() -> None:
    assert all(
        phase_of(Train(steps=100), True, False)(step).queries(9) is True for step in (66, 99)
    )


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
@pytest.mark.parametrize("sparse", [True, False])
def test_the_loss_of_some_queries_is_theirs_in_the_loss_of_all(sparse: bool, arch: str) -> None:
    model, rows = tiny_model(arch), torch.tensor([0, 3, 4, 17, 31])
    whole, some = (
        model.hidden(some_tokens(), sparse=sparse, train_indexer=t)[1] for t in (True, rows)
    )
    for whole_BT, some_BQ in zip(whole, some, strict=True):
        torch.testing.assert_close(some_BQ, whole_BT[:, rows])


def taught(rows: Tensor | bool, sparse: bool) -> tuple[Step, dict[str, Tensor]]:
    """One step on padded text that teaches about these of seven queries, and its gradients."""
    model = tiny_model("dsa")
    phase = Phase(1.0, sparse, train_indexer=True, queries=lambda length: rows)
    texts = [batch_of(documents(8, 5, seed=4))]
    optimizer = make_optimizer(model, Train())
    (step,) = train(
        model, optimizer, lambda _: texts, lambda _: phase, start=0, stop=1, clip=float("inf")
    )
    named = model.named_parameters()
    return step, {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("sparse", [True, False])
def test_the_mean_over_all_draws_is_the_gradient_and_the_loss_of_all_queries(sparse: bool) -> None:
    step, expected = taught(True, sparse)
    draws = [taught(torch.tensor(two), sparse) for two in itertools.combinations(range(7), 2)]
    assert len(draws) == 21
    losses = [drawn.indexer_kl for drawn, _ in draws]
    assert sum(losses) / 21 == pytest.approx(step.indexer_kl, rel=1e-5)
    assert max(losses) > 1.1 * min(losses)
    for name, gradient in expected.items():
        mean = sum(gradients[name] for _, gradients in draws) / 21
        torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)


# rates and limits of the indexer's own


def moved(phase: Phase) -> dict[str, float]:
    """How far the groups of parameters go in one step of AdamW, which is one rate long."""
    model = tiny_model("dsa")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = batch_of(documents(31, 20))
    optimizer = make_optimizer(model, Train(learning_rate=1e-3, indexer_learning_rate=1e-2))
    for _ in train(model, optimizer, lambda _: [batch], lambda _: phase, start=0, stop=1, clip=1.0):
        pass
    far = dict.fromkeys(("indexer", "selected"), 0.0)
    for name, parameter in model.named_parameters():
        if group_of(name) in far and not name.endswith("k_norm.bias"):  # it moves no softmax
            distance = float((parameter - before[name]).detach().abs().max())
            far[group_of(name)] = max(far[group_of(name)], distance)
    return far


def test_the_sparse_phase_has_a_rate_of_its_own_for_the_indexer_alone() -> None:
    plan = Train(steps=100, decay_fraction=0, indexer_sparse_rate=0.5)
    phases = phase_of(plan, True, False)
    whole, half = moved(phases(99)._replace(indexer_rate=1.0)), moved(phases(99))
    assert half["indexer"] == pytest.approx(whole["indexer"] / 2, rel=1e-3)
    assert half["selected"] == whole["selected"] > 0
    assert whole["indexer"] == pytest.approx(1e-2, rel=0.01)
    alone = moved(phases(65))
    assert alone["indexer"] == pytest.approx(1e-2, rel=0.01)
    assert alone["selected"] == pytest.approx(whole["selected"], rel=0.1)
    assert moved(phases(99)._replace(indexer_rate=0.0))["indexer"] == 0


def test_the_gradient_of_the_indexer_has_a_limit_of_its_own() -> None:
    def norms(**limits: float) -> tuple[float, float]:
        model, phase = tiny_model("dsa"), Phase(1.0, train_indexer=True)
        batch = batch_of(documents(31, 20))
        optimizer = make_optimizer(model, Train())
        list(train(model, optimizer, lambda _: [batch], lambda _: phase, start=0, stop=1, **limits))  # type: ignore[arg-type]
        sums = dict.fromkeys((True, False), 0.0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[group_of(name) == "indexer"] += float(parameter.grad.square().sum())
        return sums[False] ** 0.5, sums[True] ** 0.5

    trunk, indexer = norms(clip=1e9)
    assert norms(clip=1e-3) == pytest.approx((1e-3, 1e-3), rel=1e-2)
    assert norms(clip=1e9, indexer_clip=1e-3) == pytest.approx((trunk, 1e-3), rel=1e-2)
    assert norms(clip=1e-3, indexer_clip=1e9) == pytest.approx((1e-3, indexer), rel=1e-2)


def test_without_a_limit_of_its_own_the_indexer_has_that_of_the_trunk() -> None:
    assert (Train().indexer_clip, Train(clip=0.3).indexer_clip) == (1.0, 0.3)
    assert Train(clip=0.3, indexer_clip=2.0).indexer_clip == 2.0


# what is logged


def test_the_indexers_figures_are_logged_at_the_end_of_every_phase_since_the_dense(
    quick_home: Path,
) -> None:
    sets = ("--set", "train.steps=40", "--set", "train.log_every=10")
    run = cli("pretrain", "--arch", "dsa", *QUICK, *sets, "--home", quick_home).run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 26, 28, 30, 40]
    told = {line["step"]: line["phase"] for line in lines if "indexer" in line}
    assert told == {26: "dense", 28: "indexer", 40: "sparse"}
    assert all("valid_nll" in line for line in lines if line["step"] in told)
    assert [line["step"] for line in lines if "indexer_kl" in line] == [28, 30, 40]


def test_an_indexer_thrown_untaught_into_the_sparse_phase_is_warned_about(quick_home: Path) -> None:
    untaught = ("--set", "train.indexer_fraction=0", "--home", quick_home)
    for arch, warned in (("dsa", True), ("dsa-full", False)):
        said = cli("pretrain", "--arch", arch, *QUICK, *untaught)
        assert said.code == 0
        assert ("warning: train.indexer_fraction=0.0: the sparse" in said.err) == warned, arch
