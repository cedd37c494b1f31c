"""Which keys are selected, how they are scored, and how the indexer learns.

B batch, T query tokens, S key tokens, D width, I indexer heads, H indexer head width, K kept keys.
"""

import math

import pytest
import torch
from tiny import (
    CONTEXT,
    attentions,
    documents,
    noise,
    some_tokens,
    tiny_model,
    tiny_settings,
    turned,
)
from torch import Tensor

from dsa_sandbox.core.indexer import (
    Indexer,
    causal_mask,
    forced_mask,
    indexer_kl,
    select,
    selected_mask,
)
from dsa_sandbox.core.transformer import nll_sum
from dsa_sandbox.evaluation.diagnostics import indexer_health, indexer_means, overlap
from dsa_sandbox.selection import policies
from dsa_sandbox.sizes import group_of

LENGTH, NUM_KEPT = 16, 5
INDEXED = ("dsa", "dsa-v32")


def slow_select(scores_S: list[float], num_kept: int, num_sink: int, num_local: int) -> list[int]:
    """Ids for the last of the positions: forced ones first, then by (score, position)."""
    last = len(scores_S) - 1
    forced = {s for s in range(last + 1) if s < num_sink or last - s < num_local}
    rest = sorted(set(range(last + 1)) - forced, key=lambda s: (scores_S[s], s), reverse=True)
    return sorted([*forced, *rest[: num_kept - len(forced)]])


def assert_selects_as_slowly(
    scores_BTS: Tensor, num_kept: int, num_sink: int = 0, num_local: int = 0
) -> None:
    length = scores_BTS.shape[-1]
    ids_BTK = select(scores_BTS, num_kept, num_sink, num_local)
    assert ids_BTK.dtype == torch.int32
    assert ids_BTK.shape == (*scores_BTS.shape[:2], min(num_kept, length))
    for rows_TS, ids_TK in zip(scores_BTS.tolist(), ids_BTK.tolist()):
        for query in range(length):
            expected = slow_select(rows_TS[query][: query + 1], num_kept, num_sink, num_local)
            padding = [-1] * (min(num_kept, length) - len(expected))
            assert ids_TK[query] == expected + padding


def ulps(center: float, num_steps: int) -> Tensor:
    """Adjacent floats, in a random order."""
    value, found = torch.tensor(center), []
    for _ in range(num_steps):
        found.append(value)
        value = torch.nextafter(value, torch.tensor(torch.inf))
    shuffled = torch.randperm(num_steps, generator=torch.Generator().manual_seed(0))
    return torch.stack(found)[shuffled]


def awkward_scores() -> dict[str, Tensor]:
    """Scores [B, T, S] with ties, infinities and adjacent floats, by name."""
    shape = (2, LENGTH, LENGTH)
    normal_BTS, signs_BTS = noise(*shape), noise(*shape, seed=1).sign()
    tiny_BTS = torch.finfo(torch.float32).smallest_normal * normal_BTS
    return {
        "random": normal_BTS,
        "negative": -normal_BTS.abs() - 1,
        "zero": torch.zeros(shape),
        "zeros of both signs": torch.zeros(shape) * signs_BTS,
        "constant": torch.full(shape, -0.7),
        "partly tied": (normal_BTS * 1.5).round(),
        "relu": normal_BTS.relu(),
        "zeros among negatives": torch.where(normal_BTS > 0, 0.0 * signs_BTS, normal_BTS),
        "falling": -torch.arange(LENGTH).float().expand(shape),
        "adjacent floats": ulps(1.0, LENGTH).expand(shape),
        "adjacent negative floats": ulps(-1.0, LENGTH).expand(shape),
        "adjacent large floats": ulps(3e7, LENGTH).expand(shape),
        "denormal": tiny_BTS / 1000,
        "huge": normal_BTS.sign() * 3e38 * normal_BTS.abs().clamp(max=1.0),
        "some minus infinite": torch.where(normal_BTS > 0, normal_BTS, -torch.inf),
    }


@pytest.mark.parametrize("name", awkward_scores())
def test_selection_is_that_of_a_sort_by_score_and_then_position(name: str) -> None:
    scores_BTS = awkward_scores()[name]
    for num_kept in (1, NUM_KEPT, LENGTH - 1, LENGTH, LENGTH + 3):
        assert_selects_as_slowly(scores_BTS, num_kept)
    assert_selects_as_slowly(scores_BTS, NUM_KEPT, 1, 2)
    assert_selects_as_slowly(scores_BTS, NUM_KEPT, 2, 3)
    assert_selects_as_slowly(scores_BTS, NUM_KEPT, 0, NUM_KEPT)


@pytest.mark.parametrize("name", awkward_scores())
def test_every_query_selects_k_keys_or_all_its_past_keys(name: str) -> None:
    scores_BTS = awkward_scores()[name]
    expected_T = torch.arange(1, LENGTH + 1).clamp(max=NUM_KEPT).expand(2, LENGTH)
    for forced in ((0, 0), (1, 1), (2, 3)):
        ids_BTK = select(scores_BTS, NUM_KEPT, *forced)
        assert torch.equal((ids_BTK >= 0).sum(-1), expected_T)
        assert (ids_BTK <= torch.arange(LENGTH)[:, None]).all()
        selected_BTS = selected_mask(ids_BTK, LENGTH)
        assert torch.equal(selected_BTS.sum(-1), expected_T)
        assert not (selected_BTS & ~causal_mask(LENGTH)).any()


def test_of_equal_scores_the_later_position_wins() -> None:
    last_TK = select(torch.zeros(1, LENGTH, LENGTH), 3)[0, -1]
    assert last_TK.tolist() == [LENGTH - 3, LENGTH - 2, LENGTH - 1]
    scores_TS = torch.tensor([2.0, 1.0, -0.0, 0.0, -0.0, -1.0]).expand(1, 6, 6)
    assert select(scores_TS, 4)[0, -1].tolist() == [0, 1, 3, 4]


def test_a_threshold_at_the_kth_score_would_select_too_many_keys() -> None:
    scores_BTS = awkward_scores()["partly tied"]
    past_BTS = scores_BTS.masked_fill(~causal_mask(LENGTH), -torch.inf)
    threshold_BT1 = past_BTS.topk(NUM_KEPT, dim=-1).values[..., -1:]
    careless_BTS = (past_BTS >= threshold_BT1) & causal_mask(LENGTH)
    selected_BTS = selected_mask(select(scores_BTS, NUM_KEPT), LENGTH)
    assert (careless_BTS.sum(-1)[:, NUM_KEPT:] > NUM_KEPT).any()
    assert (selected_BTS.sum(-1)[:, NUM_KEPT:] == NUM_KEPT).all()
    assert (careless_BTS | ~selected_BTS).all()


@pytest.mark.parametrize("name", awkward_scores())
def test_selection_does_not_depend_on_the_batch(name: str) -> None:
    scores_BTS = torch.cat([awkward_scores()[name], awkward_scores()["random"]])
    together_BTK = select(scores_BTS, NUM_KEPT, 1, 1)
    for row in range(len(scores_BTS)):
        alone_BTK = select(scores_BTS[row : row + 1], NUM_KEPT, 1, 1)
        assert torch.equal(alone_BTK[0], together_BTK[row])


def test_sink_and_local_tokens_are_always_selected_and_count_within_k() -> None:
    scores_BTS = noise(2, LENGTH, LENGTH)
    scores_BTS[:, :, :2] = -100.0
    scores_BTS -= 50.0 * torch.eye(LENGTH)
    selected_BTS = selected_mask(select(scores_BTS, NUM_KEPT, 2, 2), LENGTH)
    for query in range(LENGTH):
        for key in {0, min(1, query), max(0, query - 1), query}:
            assert selected_BTS[:, query, key].all()
        assert (selected_BTS[:, query].sum(-1) == min(query + 1, NUM_KEPT)).all()
    free_BTS = selected_mask(select(scores_BTS, NUM_KEPT), LENGTH)
    assert not free_BTS[:, -1, :2].any()


def test_forced_keys_are_the_first_and_the_last_tokens_of_the_last_queries() -> None:
    forced_TS = forced_mask(2, 5, 1, 2, torch.device("cpu")) & causal_mask(5)[-2:]
    assert forced_TS.int().tolist() == [[1, 0, 1, 1, 0], [1, 0, 0, 1, 1]]


def test_an_id_of_a_later_token_is_not_in_the_mask() -> None:
    ids_BTK = torch.tensor([[[0, 2], [1, 2], [0, -1]]], dtype=torch.int32)
    expected_TS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0]]).bool()
    assert torch.equal(selected_mask(ids_BTK, 3)[0], expected_TS)


def small_indexer() -> Indexer:
    settings = tiny_settings(width=12, num_heads=3, num_selected_heads=2, indexer_heads=3)
    indexer = Indexer(settings, query_width=12, rotary_width=4)
    for number, parameter in enumerate(indexer.parameters()):
        parameter.data = noise(*parameter.shape, seed=20 + number)
    return indexer


def test_scores_equal_the_formula_term_by_term() -> None:
    indexer, num_heads, width = small_indexer().requires_grad_(False), 3, 8
    x_TD = noise(10, 12).double()
    q_TF = x_TD @ indexer.q.weight.double().T
    k_SH = x_TD @ indexer.k.weight.double().T
    w_TI = x_TD @ indexer.w.weight.double().T
    mean_S1, variance_S1 = k_SH.mean(1, keepdim=True), k_SH.var(1, correction=0, keepdim=True)
    k_SH = (k_SH - mean_S1) / (variance_S1 + 1e-6).sqrt()
    k_SH = k_SH * indexer.k_norm.weight.double() + indexer.k_norm.bias.double()

    def partly_turned(x_TH: Tensor) -> Tensor:
        return torch.cat([turned(x_TH[:, : width // 2]), x_TH[:, width // 2 :]], dim=1)

    k_SH = partly_turned(k_SH)
    q_heads = [partly_turned(q_TH) for q_TH in q_TF.split(width, dim=1)]
    expected_TS = torch.zeros(10, 10, dtype=torch.float64)
    for query in range(10):
        for key in range(10):
            for head in range(num_heads):
                product = float(q_heads[head][query] @ k_SH[key])
                scale = num_heads**-0.5 * width**-0.5
                expected_TS[query, key] += float(w_TI[query, head]) * scale * max(0.0, product)
    x_BTD = x_TD.float().unsqueeze(0)
    scores_BTS = indexer(x_BTD, x_BTD)
    assert scores_BTS.dtype == torch.float32
    assert (w_TI < 0).any()
    torch.testing.assert_close(scores_BTS[0], expected_TS.float(), rtol=1e-5, atol=1e-5)


def test_scores_are_fp32_under_autocast() -> None:
    indexer, x_BTD = small_indexer(), noise(2, 10, 12)
    with torch.autocast("cpu", torch.bfloat16):
        scores_BTS = indexer(x_BTD, x_BTD)
    assert scores_BTS.dtype == torch.float32
    torch.testing.assert_close(scores_BTS, indexer(x_BTD, x_BTD), rtol=0.1, atol=0.3)


def test_no_gradient_reaches_the_input_of_the_indexer() -> None:
    x_BTD = noise(1, 10, 12).requires_grad_()
    scores_BTS = small_indexer()(x_BTD, x_BTD)
    assert torch.autograd.grad(scores_BTS.sum(), x_BTD, allow_unused=True)[0] is None


@pytest.mark.parametrize("arch", INDEXED)
@pytest.mark.parametrize("train_indexer", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_language_loss_gives_the_indexer_no_gradient(
    sparse: bool, train_indexer: bool, arch: str
) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens()
    x_BTD, _ = model.hidden(tokens_BT, sparse=sparse, train_indexer=train_indexer)
    nll_sum(model.logits(x_BTD).flatten(0, 1), tokens_BT.roll(-1, 1).flatten()).backward()
    for name, parameter in model.named_parameters():
        if group_of(name) == "indexer":
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.count_nonzero(parameter.grad) > 0, name


@pytest.mark.parametrize("arch", INDEXED)
@pytest.mark.parametrize("sparse", [True, False])
def test_the_indexers_loss_gives_the_trunk_no_gradient(sparse: bool, arch: str) -> None:
    model = tiny_model(arch)
    _, reports = model.hidden(some_tokens(), sparse=sparse, train_indexer=True)
    torch.stack(reports).sum().backward()
    for name, parameter in model.named_parameters():
        if group_of(name) == "indexer":
            assert parameter.grad is not None, name
            assert name.endswith("k_norm.bias") or torch.count_nonzero(parameter.grad) > 0, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None or torch.count_nonzero(parameter.grad) == 0, name


def a_teacher(support_BTS: Tensor) -> Tensor:
    """Random attention [B, T, S] over the support, in fp64; rows sum to one."""
    logits_BTS = noise(*support_BTS.shape, seed=30, dtype=torch.float64)
    return logits_BTS.masked_fill(~support_BTS, -torch.inf).softmax(-1)


def supports() -> dict[str, Tensor]:
    full_BTS = causal_mask(LENGTH).expand(2, LENGTH, LENGTH)
    chosen_BTS = selected_mask(select(noise(2, LENGTH, LENGTH, seed=31), NUM_KEPT), LENGTH)
    return {"all past keys": full_BTS, "selected keys": chosen_BTS}


@pytest.mark.parametrize("name", supports())
def test_the_gradient_of_the_kl_is_softmax_minus_teacher(name: str) -> None:
    support_BTS = supports()[name]
    scores_BTS = noise(2, LENGTH, LENGTH, dtype=torch.float64).requires_grad_()
    teacher_BTS = a_teacher(support_BTS).requires_grad_()
    kl_BT = indexer_kl(scores_BTS, teacher_BTS, support_BTS)
    kl_BT.sum().backward()
    q_BTS = scores_BTS.detach().masked_fill(~support_BTS, -torch.inf).softmax(-1)
    expected_BTS = (q_BTS - teacher_BTS.detach()).masked_fill(~support_BTS, 0.0)
    assert scores_BTS.grad is not None
    torch.testing.assert_close(scores_BTS.grad, expected_BTS, rtol=0, atol=1e-6)
    assert torch.count_nonzero(scores_BTS.grad[~support_BTS]) == 0
    assert teacher_BTS.grad is None
    for batch in range(2):
        for query in range(LENGTH):
            ids = support_BTS[batch, query].nonzero().flatten()
            p, q = teacher_BTS[batch, query, ids].tolist(), q_BTS[batch, query, ids].tolist()
            expected = sum(a * math.log(a / b) for a, b in zip(p, q))
            assert kl_BT[batch, query].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", supports())
def test_the_kl_of_a_query_with_one_key_is_exactly_zero(name: str) -> None:
    support_BTS = supports()[name]
    scores_BTS = (10 * noise(2, LENGTH, LENGTH)).requires_grad_()
    kl_BT = indexer_kl(scores_BTS, a_teacher(support_BTS), support_BTS)
    kl_BT.sum().backward()
    assert scores_BTS.grad is not None
    assert (kl_BT[:, 0] == 0).all()
    assert torch.count_nonzero(scores_BTS.grad[:, 0]) == 0
    assert (kl_BT[:, 1:] > 0).all()


@pytest.mark.parametrize("name", supports())
def test_the_kl_is_finite_whatever_the_masked_scores_are(name: str) -> None:
    support_BTS = supports()[name]
    for masked in (0.0, -torch.inf, 1e30):
        scores_BTS = torch.where(support_BTS, 100 * noise(2, LENGTH, LENGTH), masked)
        scores_BTS.requires_grad_()
        kl_BT = indexer_kl(scores_BTS, a_teacher(support_BTS), support_BTS)
        kl_BT.mean().backward()
        assert scores_BTS.grad is not None
        assert kl_BT.isfinite().all()
        assert scores_BTS.grad.isfinite().all()


@pytest.mark.parametrize("arch", INDEXED)
def test_the_sparse_loss_is_over_the_selected_keys_only(arch: str) -> None:
    tokens_BT = some_tokens()
    whole, sparse = (
        tiny_model(arch).hidden(tokens_BT, sparse=s, train_indexer=True)[1] for s in (False, True)
    )
    assert abs(whole[0].mean() - sparse[0].mean()) > 1e-3


@pytest.mark.parametrize("arch", INDEXED)
@pytest.mark.parametrize("num_kept", [16, CONTEXT])
def test_with_k_not_below_t_sparse_and_dense_losses_agree(num_kept: int, arch: str) -> None:
    tokens_BT = some_tokens(2, 16)
    model = tiny_model(arch, num_kept=num_kept)
    whole, sparse = (
        model.hidden(tokens_BT, sparse=s, train_indexer=True)[1] for s in (False, True)
    )
    torch.testing.assert_close(torch.stack(whole), torch.stack(sparse), rtol=1e-5, atol=1e-6)


def test_diagnostics_of_a_layer_equal_values_computed_by_hand() -> None:
    past_BTS = causal_mask(2)[None]
    teacher_BTS = torch.tensor([[[1.0, 0.0], [0.9, 0.1]]])
    scores_BTS = torch.tensor([[[0.3, 0.0], [0.5, 0.2]]])
    selected_BTS = torch.tensor([[[True, False], [False, True]]])
    nobody_TS, all_BT = torch.zeros(2, 2).bool(), torch.ones(1, 2).bool()
    row = indexer_means(
        scores_BTS, teacher_BTS, past_BTS, teacher_BTS, selected_BTS, nobody_TS, all_BT
    )
    by_hand = 0.5 * (0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    assert row["kl_uniform"] == pytest.approx(by_hand, abs=1e-6)
    share = 1 / (1 + math.exp(-0.3))
    loss = 0.5 * (0.9 * math.log(0.9 / share) + 0.1 * math.log(0.1 / (1 - share)))
    assert row["kl"] == pytest.approx(loss, abs=1e-6)
    assert row["kl_captured"] == pytest.approx(1 - loss / by_hand, abs=1e-5)
    assert row["recall"] == pytest.approx((1.0 + 0.1) / 2, abs=1e-6)
    assert row["density"] == pytest.approx((1 / 1 + 1 / 2) / 2)
    second = torch.tensor([[False, True]])
    only = indexer_means(
        scores_BTS, teacher_BTS, past_BTS, teacher_BTS, selected_BTS, nobody_TS, second
    )
    assert only["recall"] == pytest.approx(0.1, abs=1e-6)  # padding is left out


@pytest.mark.parametrize(("sink", "rate"), [(None, 1.0), (-5.0, 1.0), ("noise", 0.0)])
def test_tie_rate_counts_ties_among_the_keys_that_compete(
    sink: float | str | None, rate: float
) -> None:
    past_BTS = causal_mask(LENGTH)[None]
    scores_BTS = noise(1, LENGTH, LENGTH) if sink == "noise" else torch.zeros(1, LENGTH, LENGTH)
    if isinstance(sink, float):
        scores_BTS[:, :, 0] = sink  # kept whatever it scores
    selected_BTS = selected_mask(select(scores_BTS, NUM_KEPT, 1, 1), LENGTH)
    forced_TS = torch.eye(LENGTH).bool()
    forced_TS[:, 0] = True
    teacher_BTS, all_BT = a_teacher(past_BTS), torch.ones(1, LENGTH).bool()
    row = indexer_means(
        scores_BTS, teacher_BTS, past_BTS, teacher_BTS, selected_BTS, forced_TS, all_BT
    )
    beyond = (LENGTH - NUM_KEPT) / LENGTH  # the first K queries keep all they have
    assert row["tie_rate"] == pytest.approx(rate * beyond)


def test_indexer_health_has_a_row_per_layer_and_leaves_no_hook() -> None:
    model = tiny_model("dsa")
    rows = indexer_health(model, documents(31, 20, 9), sparse=True)
    assert len(rows) == 2
    assert all(0 < row["density"] < 1 and 0 < row["recall"] < 1 for row in rows)
    assert not any(attention._forward_pre_hooks for attention in attentions(model))
    full = indexer_health(tiny_model("dsa", num_kept=CONTEXT), documents(31), sparse=True)
    assert full[0]["recall"] == pytest.approx(1.0)
    assert full[0]["density"] == 1.0
    assert math.isnan(full[0]["overlap"])  # nothing was left out


def test_overlap_excludes_forced_keys_and_queries_that_select_all_keys() -> None:
    selected_BTS = torch.tensor(
        [[[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0]]]
    ).bool()
    oracle_BTS = selected_BTS.clone()
    oracle_BTS[0, 3] = torch.tensor([1, 1, 0, 1, 0]).bool()  # one of two besides the sink
    oracle_BTS[0, 4] = torch.tensor([1, 1, 0, 0, 1]).bool()  # none
    sink_TS, all_BT = torch.zeros(5, 5).bool(), torch.ones(1, 5).bool()
    sink_TS[:, 0] = True
    assert overlap(selected_BTS, selected_BTS, sink_TS, all_BT) == 1.0
    assert overlap(selected_BTS, oracle_BTS, sink_TS, all_BT) == pytest.approx((0.5 + 0.0) / 2)
    nobody_TS = torch.zeros(5, 5).bool()
    assert overlap(selected_BTS, oracle_BTS, nobody_TS, all_BT) == pytest.approx(
        (2 / 3 + 1 / 3) / 2
    )
    padded_BT = torch.tensor([[True, True, True, True, False]])
    assert overlap(selected_BTS, oracle_BTS, sink_TS, padded_BT) == 0.5
    assert math.isnan(
        overlap(selected_BTS[:, :3, :3], selected_BTS[:, :3, :3], nobody_TS[:3, :3], all_BT[:, :3])
    )
    assert math.isnan(overlap(selected_BTS, selected_BTS, torch.ones(5, 5).bool(), all_BT))


@pytest.mark.parametrize("arch", INDEXED)
def test_the_oracle_overlaps_with_itself_and_others_less(arch: str) -> None:
    model, texts = tiny_model(arch), documents(31, 20, 9)
    rows = {}
    for policy in ("learned", "random", "oracle"):
        policies.use(model, policy)
        rows[policy] = indexer_health(model, texts, sparse=True)
    for learned, random, oracle in zip(*rows.values(), strict=True):
        assert oracle["overlap"] == 1.0
        assert 0 < random["overlap"] < 0.7
        assert 0 < learned["overlap"] < 0.7
