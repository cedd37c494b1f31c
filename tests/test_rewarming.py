"""Re-warming: the indexer learns from attention over all past keys, the output stays as it is.

B batch, T tokens, S keys, D width, H head width, Q queries that are taught.
"""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from home import cli
from tiny import CONTEXT, attentions, documents, noise, some_tokens, tiny_model, tiny_settings
from torch import Tensor

from dsa_sandbox.commands import arm_checks
from dsa_sandbox.config.resolve import CALL, Resolved
from dsa_sandbox.config.settings import Finetune, Settings
from dsa_sandbox.core.attention import DsaAttention, TopKAttention
from dsa_sandbox.core.indexer import causal_mask, select, selected_mask
from dsa_sandbox.core.transformer import Transformer, nll_sum
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.errors import UserError
from dsa_sandbox.kernels import chunked
from dsa_sandbox.registry import strategies
from dsa_sandbox.selection import backends, rewarming
from dsa_sandbox.sizes import group_of
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.trainer import Trainer

ARCHS = ["dsa", "dsa block", "dsa moe", "dsa-full", "dsa-v32"]
BACKENDS = ["masked", "reference", "gather"]
QUERIES = torch.tensor([3, 5, 17, 30])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of eight queries, the smallest size."""
    monkeypatch.setitem(chunked.BLOCK, "cpu", 1)


def network(arch: str, backend: str = "masked", on: bool = True, **overrides: Any) -> Transformer:
    """A tiny network computed by `backend`, whose indexer re-warms if `on`."""
    arch, _, kind = arch.partition(" ")
    more: dict[str, Any] = {
        "block": {"compression": "block", "block_size": 5},
        "moe": {"ffn": "moe", "num_experts": 4, "num_active": 2},
    }.get(kind, {})
    if arch == "dsa-v32":
        more = {"force_sink": 0, "force_local": 0}
    model = tiny_model(arch, **(more | overrides))
    backends.use(model, backend)
    rewarming.use(model, on)
    return model


def losses_of(model: Transformer, queries: bool | Tensor = True, **options: Any) -> Tensor:
    """The indexer's loss of every layer, [L, B, T] or [L, B, Q]."""
    return torch.stack(model.hidden(some_tokens(), train_indexer=queries, **options)[1])


def gradients(model: Transformer, kl: Tensor) -> dict[str, Tensor]:
    """Gradients of a weighted sum of the losses by name; queries do not count alike."""
    (torch.linspace(0.1, 2.0, kl.numel()).view_as(kl) * kl).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# the loss


def by_hand(attention: Any, x_BTD: Tensor, rope_2TH: Tensor) -> Tensor:
    """KL [B, T] of eq. 3, one query and one head at a time."""
    if isinstance(attention, DsaAttention):
        q_BNTH, k_BNSH, _ = attention.selected.project(x_BTD, rope_2TH)
    else:
        q_BNTH, *latents = attention.project(x_BTD, rope_2TH)
        k_BNSH, _ = attention.expand(*latents)
    k_BNSH = k_BNSH.expand(-1, q_BNTH.shape[1], -1, -1)
    iq_BITH, w_BTI, ik_BSH = attention.indexer.project(x_BTD, attention.indexer_query(x_BTD))
    kl_BT = x_BTD.new_zeros(x_BTD.shape[:2])
    for b in range(x_BTD.shape[0]):
        for t in range(x_BTD.shape[1]):
            past = slice(t + 1)
            heads = []
            for q_TH, k_SH in zip(q_BNTH[b], k_BNSH[b]):
                heads.append((k_SH[past] @ q_TH[t] / q_TH.shape[-1] ** 0.5).softmax(0))
            teacher_S = torch.stack(heads).mean(0)
            score_S = x_BTD.new_zeros(t + 1)
            for iq_TH, w in zip(iq_BITH[b], w_BTI[b, t]):
                score_S += w * (ik_BSH[b, past] @ iq_TH[t]).clamp(min=0)
            kl_BT[b, t] = (teacher_S * (teacher_S.log() - score_S.log_softmax(0))).sum()
    return kl_BT


@pytest.mark.parametrize("arch", ARCHS)
def test_the_loss_is_the_kl_from_attention_over_all_past_keys_in_fp64(arch: str) -> None:
    model = network(arch).double()
    with torch.no_grad():
        for attention in attentions(model):
            x_BTD = noise(2, 20, 32, dtype=torch.float64)
            rope_2TH = model.rope_2TH[:, :20]
            kl_BT = attention(x_BTD, rope_2TH, True, True)[1]
            expected_BT = by_hand(attention, x_BTD, rope_2TH)
            assert expected_BT[:, 1:].min() > 1e-4
            torch.testing.assert_close(kl_BT, expected_BT, rtol=1e-9, atol=1e-12)
            some_BQ = attention(x_BTD, rope_2TH, True, QUERIES[:3])[1]
            torch.testing.assert_close(some_BQ, expected_BT[:, QUERIES[:3]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("queries", [True, QUERIES], ids=["all", "some"])
def test_losses_and_gradients_are_those_of_the_masked_path(
    arch: str, backend: str, queries: bool | Tensor
) -> None:
    ours, masked = network(arch, backend), network(arch)
    kl, expected = losses_of(ours, queries), losses_of(masked, queries)
    torch.testing.assert_close(kl, expected, rtol=1e-4, atol=1e-5)
    found, wanted = gradients(ours, kl), gradients(masked, expected)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name] / scale, gradient / scale, rtol=0, atol=1e-5)


def test_triton_has_the_loss_of_the_masked_path() -> None:
    pytest.importorskip("triton")
    tokens_BT = some_tokens(2, 12)
    ours, masked = (
        network("dsa", name, num_layers=1, context=16).hidden(tokens_BT, train_indexer=True)
        for name in ("triton", "masked")
    )
    torch.testing.assert_close(ours[0], masked[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1][0], masked[1][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_has_gradients_for_the_indexer_only(arch: str, backend: str) -> None:
    model = network(arch, backend)
    found = gradients(model, losses_of(model))
    assert {group_of(name) for name in found} == {"indexer"}
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert name.endswith("k_norm.bias") or torch.count_nonzero(gradient) > 0, name


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("num_kept", [16, CONTEXT])
def test_with_k_not_below_t_it_is_the_loss_over_the_selected_keys(arch: str, num_kept: int) -> None:
    rewarmed, sparse = (
        network(arch, on=on, num_kept=num_kept).hidden(some_tokens(2, 16), train_indexer=True)[1]
        for on in (True, False)
    )
    torch.testing.assert_close(rewarmed, sparse, rtol=1e-5, atol=1e-6)


def test_with_k_below_t_it_is_another_loss() -> None:
    rewarmed, sparse = losses_of(network("dsa")), losses_of(network("dsa", on=False))
    assert (rewarmed - sparse).abs().mean() > 1e-2


def test_the_loss_of_a_users_own_attention_is_computed_from_its_teacher() -> None:
    class OwnAttention(DsaAttention):
        """As a user's file may register it."""

    model = network("dsa")
    expected, some = losses_of(model), losses_of(model, QUERIES)
    for attention in attentions(model):
        attention.__class__ = OwnAttention
    torch.testing.assert_close(losses_of(model), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses_of(model, QUERIES), some, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_mixed_precision_the_loss_is_close(backend: str) -> None:
    """With one layer, since the selection of a second may depend on the last bits of the first."""
    with torch.autocast("cpu", torch.bfloat16):
        rough = losses_of(network("dsa", backend, num_layers=1))
    exact = losses_of(network("dsa", num_layers=1))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0, atol=2e-2)


# what it does to the output, and to keys that are not selected


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("queries", [True, QUERIES], ids=["all", "some"])
def test_output_and_gradients_of_the_trunk_are_bit_equal_to_those_of_a_frozen_indexer(
    arch: str, backend: str, queries: bool | Tensor
) -> None:
    found = []
    for taught in (False, queries):
        model, tokens_BT = network(arch, backend), some_tokens()
        x_BTD, losses = model.hidden(tokens_BT, train_indexer=taught)
        logits_BTV = model.logits(x_BTD)
        objective = nll_sum(logits_BTV.flatten(0, 1), tokens_BT.roll(-1, 1).flatten())
        (objective + sum(kl.sum() for kl in losses)).backward()
        trunk = {}
        for name, p in model.named_parameters():
            if group_of(name) != "indexer":
                assert p.grad is not None, name
                trunk[name] = p.grad
        found.append((logits_BTV, trunk))
    (frozen, still), (rewarmed, moved) = found
    assert torch.equal(rewarmed, frozen)
    for name, gradient in still.items():
        assert torch.equal(moved[name], gradient), name


def chosen_by(attention: Any, x_BTD: Tensor) -> Tensor:
    """The ids [B, T, K] that the attention selects."""
    sizes = attention.num_kept, attention.num_sink, attention.num_local
    return select(attention.selection_scores(x_BTD), *sizes)


def key_gradients(on: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of the loss of query 30 alone: |gradient| [S] at each key of an indexer; selected [S].

    And [S] whether any head of the indexer scores the key: elsewhere the relu passes no gradient.
    """
    model = network("dsa", on=on, num_layers=1)
    attention = attentions(model)[0]
    keys: list[Tensor] = []

    def keep(_module: Any, _inputs: Any, k_BSH: Tensor) -> None:
        if k_BSH.requires_grad:
            k_BSH.retain_grad()
            keys.append(k_BSH)

    attention.indexer.k_norm.register_forward_hook(keep)
    _, losses = model.hidden(some_tokens(1), train_indexer=torch.tensor([30]))
    losses[0].sum().backward()
    (k_BSH,) = keys
    assert k_BSH.grad is not None
    with torch.no_grad():
        x_BTD = model.blocks[0].attention_norm(model.embed(some_tokens(1)))  # type: ignore[operator]
        q_BITH, _, turned_BSH = attention.indexer.project(x_BTD, x_BTD)
        scored_S = (q_BITH[0, :, 30] @ turned_BSH[0].T > 0).any(0)
        selected_S = selected_mask(chosen_by(attention, x_BTD), CONTEXT)[0, 30]
    return k_BSH.grad[0].abs().sum(-1), selected_S, scored_S


def test_a_key_that_is_not_selected_gets_a_gradient_which_the_sparse_loss_does_not_give() -> None:
    rewarmed_S, selected_S, scored_S = key_gradients(on=True)
    sparse_S, again_S, _ = key_gradients(on=False)
    assert torch.equal(selected_S, again_S)
    assert selected_S.sum() == 6
    left_out_S = ~selected_S & (torch.arange(CONTEXT) <= 30)
    assert torch.count_nonzero(sparse_S[left_out_S]) == 0
    assert torch.count_nonzero(sparse_S[selected_S]) > 0
    assert (left_out_S & scored_S).sum() > 8
    assert torch.equal(rewarmed_S[left_out_S] > 0, scored_S[left_out_S])
    assert rewarmed_S[31] == 0  # later than the query


def attention_captured(on: bool, num_steps: int) -> float:
    """Share of the dense attention on the selected keys, after so many steps of the indexer."""
    model = network("dsa", on=on, num_layers=1)
    attention = attentions(model)[0]
    model.requires_grad_(False)
    attention.indexer.requires_grad_(True)
    attention.selected.q.weight.mul_(4.0)  # a teacher that looks at few keys
    x_BTD = noise(4, CONTEXT, 32)
    optimizer = torch.optim.Adam(attention.indexer.parameters(), lr=1e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        attention(x_BTD, model.rope_2TH, True, True)[1].mean().backward()
        optimizer.step()
    with torch.no_grad():
        past_BTS = causal_mask(CONTEXT).expand(4, -1, -1)
        teacher_BTS = attention.attend_with_teacher(x_BTD, model.rope_2TH, past_BTS)[1]
        kept_BTS = selected_mask(chosen_by(attention, x_BTD), CONTEXT)
        return float((teacher_BTS * kept_BTS).sum(-1)[:, 8:].mean())


def test_an_indexer_finds_what_it_did_not_select_which_the_sparse_loss_does_not_teach() -> None:
    before = attention_captured(True, 0)
    rewarmed, sparse = attention_captured(True, 150), attention_captured(False, 150)
    assert rewarmed > before + 0.2
    assert rewarmed > sparse + 0.1


# in a task


def padded(*first_targets: int) -> Batch:
    """Stories of several lengths, without targets before the given places."""
    batch = batch_of(documents(9, 14, 11))
    for targets_T, first in zip(batch.targets_BT, first_targets, strict=True):
        targets_T[:first] = IGNORED
    return batch


def one_step(**phase: Any) -> tuple[float, dict[str, Tensor], list[Any]]:
    """The KL that a step reports, the indexer's gradients, and the queries that were asked for."""
    model = network("dsa")
    asked: list[Any] = []

    def lesson(attention: TopKAttention, x: Tensor, rope: Tensor, queries: Any) -> Tensor:
        asked.append(queries)
        return rewarming.all_keys_kl(attention, x, rope, queries)

    for attention in attentions(model):
        attention.lesson = lesson
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = train(
        model,
        optimizer,
        lambda step: [padded(4, 8, 7)],
        lambda step: Phase(1.0, train_indexer=True, **phase),
        start=0,
        stop=1,
        clip=1e9,
    )
    (step,) = list(steps)
    found = {}
    for name, p in model.named_parameters():
        if group_of(name) == "indexer":
            assert p.grad is not None, name
            found[name] = p.grad
    return step.indexer_kl, found, asked


def test_the_loss_is_computed_where_there_are_targets_and_equals_that_of_all_queries_there() -> (
    None
):
    kl, found, asked = one_step(at_targets=True)
    kl_of_all, wanted, asked_of_all = one_step()
    assert asked_of_all == [True, True]
    batch = padded(4, 8, 7)
    positions = [t for t in range(13) if (batch.targets_BT[:, t] != IGNORED).any()]
    assert positions == list(range(4, 13))
    assert all(queries.tolist() == positions for queries in asked)
    assert kl == pytest.approx(kl_of_all, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_the_kl_that_a_step_reports_is_the_mean_over_targets_and_layers() -> None:
    kl, _, _ = one_step(at_targets=True)
    batch = padded(4, 8, 7)
    _, losses = network("dsa").hidden(batch.tokens_BT, train_indexer=True)
    real_BT = batch.targets_BT != IGNORED
    assert kl == pytest.approx(float(torch.stack(losses)[:, real_BT].detach().mean()), rel=1e-5)


def trainer_of(strategy: str, indexer: str, **plan: Any) -> Trainer:
    model = tiny_model("dsa")
    cls = strategies[strategy]
    finetune_plan = Finetune(indexer=indexer, learning_rate=1e-3, **plan)
    return Trainer(cls(cls.Settings()), model, copy.deepcopy(model), finetune_plan)


@pytest.mark.parametrize("strategy", ["sgd", "acft", "lora"])
@pytest.mark.parametrize("ratio", [5.0, 0.5])
def test_the_indexers_rate_follows_the_arms_and_not_the_strategys(
    strategy: str, ratio: float
) -> None:
    trainer = trainer_of(strategy, "rewarm", indexer_ratio=ratio)
    rates = {g["indexer"]: g["lr"] for g in trainer.optimizer().param_groups}
    assert rates[True] == pytest.approx(1e-3 * ratio)
    rows = [row for row in trainer.mask().values() if row["group"] == "indexer"]
    assert {row["rate"] for row in rows} == {ratio}
    indexers = [attention.indexer for attention in attentions(trainer.model)]
    assert sum(row["count"] for row in rows) == sum(
        p.numel() for i in indexers for p in i.parameters()
    )


def test_a_task_teaches_its_indexer_about_all_past_keys_at_its_targets() -> None:
    batch = padded(4, 8, 7)
    trainer = trainer_of("sgd", "rewarm")
    model = copy.deepcopy(trainer.model)
    assert all(attention.lesson is not None for attention in attentions(trainer.model))
    asked: list[Any] = []

    def forward(tokens_BT: Tensor, **options: Any) -> Any:
        asked.append(options["train_indexer"])
        return trainer.model.hidden(tokens_BT, **options)

    optimizer = trainer.optimizer()
    (step,) = list(
        trainer.steps(optimizer, lambda _: [batch], seed=0, task=0, stop=1, forward=forward)
    )
    assert asked[0].tolist() == list(range(4, 13))
    rewarming.use(model, True)
    _, losses = model.hidden(batch.tokens_BT, train_indexer=True)
    kl_LM = torch.stack(losses)[:, batch.targets_BT != IGNORED].detach()
    assert step.indexer_kl == pytest.approx(float(kl_LM.mean()), rel=1e-5)
    still = trainer_of("sgd", "frozen")
    assert all(attention.lesson is None for attention in attentions(still.model))


# the setting


def arm(arch: str, **plan: Any) -> Settings:
    """Settings of an arm on a tiny base."""
    own = {"arch": arch, "model": tiny_settings()}
    return Settings().model_copy(update=own | {"finetune": Finetune(indexer="rewarm", **plan)})


def test_rewarming_is_refused_where_no_indexer_selects_if_it_was_asked_for_there() -> None:
    dense, random, dsa = arm("dense"), arm("dsa", selection="random"), arm("dsa")
    for source in ("--set", CALL):
        asked = Resolved(dsa, {"finetune.indexer": source})
        assert all(arm_checks.rewarming_is_asked(asked, [one]) for one in (dense, random, dsa))
    in_a_file = partial(
        arm_checks.rewarming_is_asked, Resolved(dsa, {"finetune.indexer": "a.toml"})
    )
    assert not in_a_file([dense])
    assert in_a_file([dense, dsa])
    assert in_a_file([random])
    assert not arm_checks.rewarming_is_asked(Resolved(dsa, {}), [dense, random, dsa])


def test_rewarming_that_nobody_asked_for_is_left_out_where_no_indexer_selects() -> None:
    for one in (arm("dense"), arm("dsa", selection="window"), arm("dsa-full")):
        assert arm_checks.without_vain_rewarming(one).finetune.indexer == "frozen"
    for arch in ("dsa", "dsa-v32"):
        assert arm_checks.without_vain_rewarming(arm(arch)).finetune.indexer == "rewarm"


def test_a_network_that_attends_to_every_key_has_nothing_to_rewarm(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the base \(dsa-full\) attends to every key"):
        arm_checks.check_indexer(arm("dsa-full"))
    full = tiny_settings().model_copy(update={"num_kept": tiny_settings().context})
    assert arm_checks.nothing_to_rewarm(arm("dsa").model_copy(update={"model": full}))
    # a study gives the setting to the networks that can use it
    both = ("run", "--archs", "dsa-full,dsa", "--set", "finetune.indexer=rewarm", "--dry-run")
    assert cli(*both, "--home", tmp_path / "home").code == 0
    alone = ("run", "--archs", "dsa-full", "--set", "finetune.indexer=rewarm", "--dry-run")
    assert "attends to every key" in cli(*alone, "--home", tmp_path / "home").problem
