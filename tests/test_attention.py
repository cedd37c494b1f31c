"""Attention layers equal slow references, are causal, and have the counted parameters.

B batch, T query tokens, S key tokens, D width, N heads, H head width, K kept keys, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import (
    CONTEXT,
    VOCABULARY,
    attentions,
    noise,
    some_tokens,
    tiny_model,
    tiny_settings,
    turned,
)
from torch import Tensor, nn

from dsa_sandbox import sizes
from dsa_sandbox.config.resolve import preset_names, resolve
from dsa_sandbox.core.attention import CompressedFlow, DenseAttention, DsaAttention, SelectedFlow
from dsa_sandbox.core.indexer import causal_mask, select, selected_mask
from dsa_sandbox.core.rope import rope_table, rotate
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.sizes import group_of

WIDTH, NUM_HEADS, HEAD, LENGTH = 32, 4, 8, 20
ARCHS = ("dense", "dsa", "dsa-full", "dsa-v32")
# a RoPE table of angle 0: cosines 1, sines 0
NO_ROTATION = torch.stack([torch.ones(CONTEXT, HEAD // 2), torch.zeros(CONTEXT, HEAD // 2)])


def close(actual: Tensor, expected: Tensor, limit: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=limit, atol=limit)


def filled(module: nn.Module) -> nn.Module:
    """The module with random parameters, also in norms, so that a missing factor is noticed."""
    for number, parameter in enumerate(module.parameters()):
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
        parameter.data = noise(*parameter.shape, seed=100 + number) * scale
    return module


def dsa(num_kept: int) -> DsaAttention:
    attention = DsaAttention(
        tiny_settings(
            latent_rank=12, num_kept=num_kept, force_sink=1, force_local=1, context=CONTEXT
        )
    )
    filled(attention)
    return attention


def weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").double()


def all_past(query: int) -> list[int]:
    return list(range(query + 1))


def slow_head(q_TH: Tensor, k_SH: Tensor, v_SH: Tensor, seen: Callable[[int], list[int]]) -> Tensor:
    """The output of one head, query by query, over the ids that `seen` returns."""
    rows = []
    for query, q_H in enumerate(q_TH):
        ids = seen(query)
        weights_K = (k_SH[ids] @ q_H / len(q_H) ** 0.5).softmax(-1)
        rows.append(weights_K @ v_SH[ids])
    return torch.stack(rows)


def slow_dense(attention: DenseAttention, x_TD: Tensor) -> Tensor:
    """Dense attention head by head: group A, then group B, whose first key and value head is B1."""
    q_F = torch.cat([weight(attention.a["q"]), weight(attention.b["q"])])
    k_F, v_F = (
        torch.cat([weight(group[name]) for group in (attention.a, attention.b1, attention.b2)])
        for name in "kv"
    )
    out = torch.cat([weight(attention.a["o"]), weight(attention.b["o"])], dim=1)
    q, k, v = ((x_TD @ w.T).split(HEAD, dim=1) for w in (q_F, k_F, v_F))
    heads = [slow_head(turned(a), turned(b), c, all_past) for a, b, c in zip(q, k, v)]
    return torch.cat(heads, dim=1) @ out.T


def slow_compressed(flow: CompressedFlow, x_TD: Tensor) -> Tensor:
    """Multi-head latent attention, head by head."""
    c_TR = x_TD @ weight(flow.down).T
    c_TR = c_TR / (c_TR.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight(flow.norm)
    k_position = turned(x_TD @ weight(flow.k_rope).T)
    heads = []
    q_F, k_F, v_F = (weight(layer) for layer in (flow.q, flow.k_up, flow.v_up))
    for w_q, w_k, w_v in zip(q_F.split(HEAD), k_F.split(HEAD // 2), v_F.split(HEAD)):
        content, position = (x_TD @ w_q.T).split(HEAD // 2, dim=1)
        q_TH = torch.cat([content, turned(position)], dim=1)
        k_SH = torch.cat([c_TR @ w_k.T, k_position], dim=1)
        heads.append(slow_head(q_TH, k_SH, c_TR @ w_v.T, all_past))
    return torch.cat(heads, dim=1) @ weight(flow.o).T


def slow_selected(flow: SelectedFlow, x_TD: Tensor, seen: Callable[[int], list[int]]) -> Tensor:
    """The selected flow head by head, over the ids that `seen` returns."""
    k_SH, v_SH = turned(x_TD @ weight(flow.k).T), x_TD @ weight(flow.v).T
    queries = (x_TD @ weight(flow.q).T).split(HEAD, dim=1)
    heads = [slow_head(turned(q_TH), k_SH, v_SH, seen) for q_TH in queries]
    return torch.cat(heads, dim=1) @ weight(flow.o).T


def same_with_gradient(fast: Callable[[Tensor], Tensor], slow: Callable[[Tensor], Tensor]) -> None:
    """Output, and gradient with respect to the input, of one sequence, to 1e-5."""
    x_TD = noise(LENGTH, WIDTH).requires_grad_()
    exact_TD = x_TD.detach().double().requires_grad_()
    y_TD, expected_TD = fast(x_TD.unsqueeze(0))[0], slow(exact_TD)
    close(y_TD, expected_TD)
    direction_TD = noise(LENGTH, WIDTH, seed=1)
    (got,) = torch.autograd.grad((y_TD * direction_TD).sum(), x_TD)
    (expected,) = torch.autograd.grad((expected_TD * direction_TD.double()).sum(), exact_TD)
    close(got, expected)


def test_dense_is_multihead_attention() -> None:
    attention = DenseAttention(tiny_settings())
    filled(attention)
    reference = nn.MultiheadAttention(WIDTH, NUM_HEADS, bias=False, batch_first=True)
    groups = [("a", "b"), ("a", "b1", "b2"), ("a", "b1", "b2")]
    names = [f"{group}.{name}" for part, name in zip(groups, "qkv") for group in part]
    projections: list[Tensor] = [attention.get_parameter(f"{name}.weight") for name in names]
    reference.in_proj_weight.data = torch.cat(projections).detach()
    out = torch.cat([attention.get_parameter(f"{group}.o.weight") for group in "ab"], dim=1)
    reference.out_proj.weight.data = out.detach()
    future_TS = ~causal_mask(LENGTH)
    a, b = (noise(2, LENGTH, WIDTH).requires_grad_() for _ in range(2))
    y_BTD, _ = attention(a, NO_ROTATION)
    expected_BTD, _ = reference(b, b, b, attn_mask=future_TS, need_weights=False)
    close(y_BTD, expected_BTD)
    direction_BTD = noise(2, LENGTH, WIDTH, seed=1)
    (y_BTD * direction_BTD).sum().backward()
    (expected_BTD * direction_BTD).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    close(a.grad, b.grad)


def test_dense_equals_a_slow_reference_with_rope() -> None:
    attention = DenseAttention(tiny_settings())
    filled(attention)
    table = rope_table(CONTEXT, HEAD)
    same_with_gradient(lambda x: attention(x, table)[0], lambda x: slow_dense(attention, x))


def test_compressed_flow_equals_a_slow_latent_attention() -> None:
    flow = CompressedFlow(tiny_settings(latent_rank=12))
    filled(flow)
    table = rope_table(CONTEXT, HEAD)
    same_with_gradient(lambda x: flow(x, table), lambda x: slow_compressed(flow, x))


def test_selected_flow_equals_a_slow_reference_that_gathers_the_selected_ids() -> None:
    flow = SelectedFlow(WIDTH, 2, HEAD)
    filled(flow)
    table = rope_table(CONTEXT, HEAD)
    ids_BTK = select(noise(1, LENGTH, LENGTH, seed=2), 4, 1, 1)
    selected_BTS = selected_mask(ids_BTK, LENGTH)
    rows = [[i for i in row if i >= 0] for row in ids_BTK[0].tolist()]
    assert max(len(row) for row in rows) == 4
    same_with_gradient(
        lambda x: flow(x, table, selected_BTS), lambda x: slow_selected(flow, x, rows.__getitem__)
    )


@pytest.mark.parametrize("num_kept", [LENGTH, LENGTH + 5])
def test_k_not_below_t_equals_dense_attention_of_the_same_weights(num_kept: int) -> None:
    attention, table = dsa(num_kept), rope_table(CONTEXT, HEAD)

    def slow(x_TD: Tensor) -> Tensor:
        selected_TD = slow_selected(attention.selected, x_TD, all_past)
        return slow_compressed(attention.compressed, x_TD) + selected_TD

    for sparse in (True, False):
        for train_indexer in (True, False):

            def fast(
                x_BTD: Tensor, sparse: bool = sparse, train_indexer: bool = train_indexer
            ) -> Tensor:
                y_BTD, _ = attention(x_BTD, table, sparse=sparse, train_indexer=train_indexer)
                return y_BTD

            same_with_gradient(fast, slow)
    x_BTD = noise(2, LENGTH, WIDTH)
    selected_BTS = selected_mask(select(attention.selection_scores(x_BTD), num_kept), LENGTH)
    close(attention.selected(x_BTD, table, selected_BTS), attention.selected(x_BTD, table, None))


def test_output_is_the_sum_of_both_flows_over_the_keys_of_the_indexer() -> None:
    attention, table = dsa(4), rope_table(CONTEXT, HEAD)
    x_BTD = noise(1, LENGTH, WIDTH)
    ids_TK = select(attention.selection_scores(x_BTD), 4, 1, 1)[0].tolist()
    rows = [[i for i in row if i >= 0] for row in ids_TK]
    x_TD = x_BTD[0].double()
    expected_TD = slow_compressed(attention.compressed, x_TD)
    expected_TD = expected_TD + slow_selected(attention.selected, x_TD, rows.__getitem__)
    close(attention(x_BTD, table)[0][0], expected_TD)


@pytest.mark.parametrize("train_indexer", [True, False])
def test_with_all_scores_tied_a_query_sees_the_sink_and_the_last_keys_only(
    train_indexer: bool,
) -> None:
    attention, table = dsa(4), rope_table(CONTEXT, HEAD)
    attention.indexer.w.weight.data.zero_()
    x_BTD = noise(1, LENGTH, WIDTH)
    rows = [sorted({0, *range(max(0, query - 2), query + 1)}) for query in range(LENGTH)]
    x_TD = x_BTD[0].double()
    expected_TD = slow_compressed(attention.compressed, x_TD)
    expected_TD = expected_TD + slow_selected(attention.selected, x_TD, rows.__getitem__)
    close(attention(x_BTD, table, train_indexer=train_indexer)[0][0], expected_TD)


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
@pytest.mark.parametrize("sparse", [True, False])
def test_training_the_indexer_changes_no_logits(sparse: bool, arch: str) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens()
    taught_BTD, reports = model.hidden(tokens_BT, sparse=sparse, train_indexer=True)
    assert len(reports) == 2
    close(model.logits(taught_BTD), model(tokens_BT, sparse=sparse))


def test_the_teacher_is_the_head_mean_over_the_support() -> None:
    flow = SelectedFlow(WIDTH, 2, HEAD)
    filled(flow)
    x_BTD = noise(1, LENGTH, WIDTH)
    support_BTS = selected_mask(select(noise(1, LENGTH, LENGTH, seed=3), 5), LENGTH)
    _, teacher_BTS = flow.forward_with_teacher(x_BTD, NO_ROTATION, support_BTS)
    x_TD = x_BTD[0].double()
    k_SH = x_TD @ weight(flow.k).T
    logits = [q @ k_SH.T / HEAD**0.5 for q in (x_TD @ weight(flow.q).T).split(HEAD, dim=1)]
    for query in range(LENGTH):
        ids = support_BTS[0, query].nonzero().flatten()
        expected = sum(head[query, ids].softmax(-1) for head in logits) / 2
        close(teacher_BTS[0, query, ids], expected)
        close(teacher_BTS[0, query].sum(), torch.ones(()))
    assert not teacher_BTS.requires_grad


def embedded_leaf(model: Transformer) -> list[Tensor]:
    """A list that collects the outputs of the embedding, each a leaf that gets gradients."""
    leaves: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    model.embedding.register_forward_hook(hook)
    return leaves


@pytest.mark.parametrize("train_indexer", [False, True])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_no_gradient_flows_from_a_logit_to_a_later_token(
    arch: str, sparse: bool, train_indexer: bool
) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens(1)
    assert model.context > 4 * 6
    leaves = embedded_leaf(model)
    logits_BTV = model.logits(
        model.hidden(tokens_BT, sparse=sparse, train_indexer=train_indexer)[0]
    )
    direction_V = noise(VOCABULARY, seed=4)
    for query in range(CONTEXT):
        loss = (logits_BTV[0, query] * direction_V).sum()
        (gradient_BTD,) = torch.autograd.grad(loss, leaves[0], retain_graph=True)
        assert torch.count_nonzero(gradient_BTD[0, query + 1 :]) == 0
        assert torch.count_nonzero(gradient_BTD[0, query]) > 0


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("arch", ARCHS)
def test_later_tokens_never_change_earlier_logits(arch: str, sparse: bool) -> None:
    model, a_BT = tiny_model(arch), some_tokens()
    for first in (1, 7, 25, CONTEXT - 1):
        b_BT = torch.cat([a_BT[:, :first], (a_BT[:, first:] + 1) % VOCABULARY], dim=1)
        a_BTV, b_BTV = (model(tokens_BT, sparse=sparse) for tokens_BT in (a_BT, b_BT))
        close(a_BTV[:, :first], b_BTV[:, :first])
        assert (a_BTV[:, first] - b_BTV[:, first]).abs().max() > 1e-3


@pytest.mark.parametrize("arch", ARCHS)
def test_a_shorter_sequence_has_the_first_logits_of_a_longer_one(arch: str) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens()
    close(model(tokens_BT[:, :11]), model(tokens_BT)[:, :11])


def test_a_key_that_was_not_selected_does_not_matter() -> None:
    flow, table = SelectedFlow(WIDTH, 2, HEAD), rope_table(CONTEXT, HEAD)
    filled(flow)
    x_BTD = noise(1, CONTEXT, WIDTH)
    selected_BTS = selected_mask(select(noise(1, CONTEXT, CONTEXT, seed=5), 6, 1, 1), CONTEXT)
    before_TD = flow(x_BTD, table, selected_BTS)[0]
    for key in (3, 10, 20):
        other_BTD = x_BTD.clone()
        other_BTD[0, key] += 1.0
        changed_T = (flow(other_BTD, table, selected_BTS)[0] - before_TD).abs().amax(-1)
        looked_T = selected_BTS[0, :, key].clone()
        assert 0 < looked_T[key + 1 :].sum() < CONTEXT - key - 1
        looked_T[key] = True  # its own query has changed
        assert (changed_T[looked_T] > 1e-4).all()
        assert (changed_T[~looked_T] == 0).all()


def test_dsa_differs_from_dsa_full_from_the_first_query_with_more_than_k_keys() -> None:
    tokens_BT = some_tokens()
    sparse_BTV, full_BTV = (tiny_model(arch)(tokens_BT) for arch in ("dsa", "dsa-full"))
    close(sparse_BTV[:, :6], full_BTV[:, :6])
    assert ((sparse_BTV - full_BTV)[:, 6:].abs().amax((0, 2)) > 1e-4).all()
    close(tiny_model("dsa")(tokens_BT, sparse=False), full_BTV)


def test_rotated_scores_depend_on_the_distance_only() -> None:
    q_TH, k_SH = noise(10, HEAD, seed=6), noise(10, HEAD, seed=7)
    table = rope_table(40, HEAD)
    scores = rotate(q_TH, table) @ rotate(k_SH, table).T
    shifted = table[:, 13:]
    close(rotate(q_TH, shifted) @ rotate(k_SH, shifted).T, scores)
    close(rotate(k_SH, table), turned(k_SH.double()))
    assert (rotate(q_TH, shifted) @ rotate(k_SH, table).T - scores).abs().max() > 0.1
    assert torch.equal(rotate(q_TH, NO_ROTATION), q_TH)


def test_attention_and_indexer_scores_do_not_change_when_content_is_shifted() -> None:
    attention, table = dsa(4), rope_table(CONTEXT, HEAD)
    x_BTD, before_BTD = noise(1, 12, WIDTH), noise(1, 9, WIDTH, seed=8)
    moved_BTD = torch.cat([before_BTD, x_BTD], dim=1)

    def attention_scores(x: Tensor) -> Tensor:
        q_BNTH, k_B1SH, _ = attention.selected.project(x, table)
        return q_BNTH @ k_B1SH.transpose(-1, -2)

    for scores in (attention_scores, attention.selection_scores):
        close(scores(moved_BTD)[..., 9:, 9:], scores(x_BTD))
        assert (scores(x_BTD.flip(1)).flip(-1, -2) - scores(x_BTD)).abs().max() > 1e-2


SETTINGS = [
    {},
    {"activation": "gelu"},
    {"num_selected_heads": 3},
    {"num_heads": 8, "width": 64, "num_selected_heads": 2, "latent_rank": 20},
    {"num_layers": 3, "indexer_heads": 3, "indexer_head_width": 12, "activation": "gelu"},
    {"compression": "block", "block_size": 5},
    {"compression": "block", "num_heads": 8, "width": 64, "num_selected_heads": 3},
    {"ffn": "moe", "ffn_width": 80},
    {"ffn": "moe", "ffn_width": 200, "num_experts": 5, "num_shared_experts": 3, "num_layers": 1},
    {"ffn": "moe", "ffn_width": 100, "num_experts": 4, "matched": False},
]


@pytest.mark.parametrize("overrides", SETTINGS, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_the_parameter_arithmetic_counts_real_parameters(
    arch: str, overrides: dict[str, Any]
) -> None:
    model = tiny_model(arch, **overrides)
    counted: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counted[group_of(name)] += parameter.numel()
    expected = sizes.table(arch, tiny_settings(**overrides), VOCABULARY)
    assert counted.total() == expected.pop("total")
    assert counted == expected


@pytest.mark.parametrize("feedforward", ["activation=swiglu", "activation=gelu", "ffn=moe"])
@pytest.mark.parametrize("preset", preset_names())
def test_dense_and_dsa_have_equal_parameters_within_one_percent(
    preset: str, feedforward: str
) -> None:
    model = resolve(preset=preset, sets=[f"model.{feedforward}"]).settings.model
    dense, dsa_total, full, v32 = (sizes.table(a, model, 1000)["total"] for a in ARCHS)
    assert abs(dense - dsa_total) <= 0.01 * dsa_total
    assert abs(v32 - dsa_total) <= 0.01 * dsa_total
    assert sizes.mismatch(model, 1000) == abs(dense - dsa_total) / dsa_total
    assert full == dsa_total


@pytest.mark.parametrize("overrides", [{}, {"num_heads": 8, "width": 64}, {"num_layers": 1}])
def test_acft_trains_equally_many_parameters_in_every_layer_of_dense_and_dsa(
    overrides: dict[str, int],
) -> None:
    settings = tiny_settings(**overrides)
    head = settings.width // settings.num_heads
    expected = settings.width**2 + 2 * settings.width * head
    for arch in ("dense", "dsa", "dsa-full"):
        for attention in attentions(tiny_model(arch, **overrides)):
            groups = attention.focus["matched"]
            assert groups == (("b", "b1") if arch == "dense" else ("selected",))
            parts = [attention.get_submodule(group).parameters() for group in groups]
            assert sum(p.numel() for part in parts for p in part) == expected


def test_networks_of_one_seed_share_every_tensor_they_can() -> None:
    settings = tiny_settings()
    dense, sparse, full, other = (
        dict(Transformer(arch, settings, VOCABULARY, 48, seed).named_parameters())
        for arch, seed in (("dense", 0), ("dsa", 0), ("dsa-full", 0), ("dsa", 1))
    )
    shared = dense.keys() & sparse.keys()
    assert {"embedding.weight", "blocks.1.feedforward.down.weight", "final_norm.weight"} <= shared
    assert all(torch.equal(dense[name], sparse[name]) for name in shared)
    assert sparse.keys() == full.keys()
    assert all(torch.equal(sparse[name], full[name]) for name in sparse)
    matrices = [name for name, p in sparse.items() if p.dim() > 1]
    assert not any(torch.equal(sparse[name], other[name]) for name in matrices)
    first_numbers = [sparse[name].flatten()[0].item() for name in matrices]
    assert len(set(first_numbers)) == len(matrices)
