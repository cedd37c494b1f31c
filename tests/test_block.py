"""Pooled windows: a slow reference, causality, memory, sizes, refused settings.

T query tokens, S key tokens, D width, H head width, R latent rank.
"""

from typing import Any

import pytest
import torch
from home import cli
from test_attention import close, embedded_leaf, filled, same_with_gradient, weight
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
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.attention import DenseAttention, DsaAttention
from dsa_sandbox.core.rope import rope_table
from dsa_sandbox.sizes import group_of
from dsa_sandbox.variants.block import BlockFlow

HEAD, LENGTH = 8, 20
BLOCK: dict[str, Any] = {"compression": "block", "block_size": 5}
# windows that do not fit the length, that fit it, of which it is one, that it does not fill
SIZES = [2, 5, 7, LENGTH - 1, LENGTH, LENGTH + 1, CONTEXT]
LOCAL = [0, 1, 3, 8, LENGTH, LENGTH + 4]


def block_flow(size: int, num_local: int) -> BlockFlow:
    flow = BlockFlow(tiny_settings(latent_rank=12, block_size=size, block_local=num_local))
    filled(flow)
    return flow


def slow_block(flow: BlockFlow, x_TD: Tensor, size: int, num_local: int) -> Tensor:
    """Head by head, query by query, window by window; a key is rotated after pooling."""
    c_TR = x_TD @ weight(flow.down).T
    c_TR = c_TR / (c_TR.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight(flow.norm)
    k_position = x_TD @ weight(flow.k_rope).T
    q_F, k_F, v_F = (weight(layer) for layer in (flow.q, flow.k_up, flow.v_up))
    bias_NM = flow.gate_bias.double().view(-1, size)
    length, heads = len(x_TD), []
    unit = torch.eye(HEAD // 2, dtype=x_TD.dtype)
    turns = torch.stack([turned(row.expand(length, -1)) for row in unit], dim=-1)
    for n, (w_q, w_k, w_v) in enumerate(
        zip(q_F.split(HEAD), k_F.split(HEAD // 2), v_F.split(HEAD))
    ):
        content, position = (x_TD @ w_q.T).split(HEAD // 2, dim=1)
        q_TH = torch.cat([content, turned(position)], dim=1)
        gate_T = x_TD @ weight(flow.gate)[n]
        rows = []
        for query in range(length):
            keys, values = [], []
            for first in range(0, query + 1, size):
                ids = range(first, min(first + size, query + 1))
                share = torch.stack([gate_T[i] + bias_NM[n, i - first] for i in ids]).softmax(0)
                pooled_R = sum(p * c_TR[i] for p, i in zip(share, ids))
                turned_H = turns[first] @ sum(p * k_position[i] for p, i in zip(share, ids))
                keys.append(torch.cat([w_k @ pooled_R, turned_H]))
                values.append(w_v @ pooled_R)
            for i in range(max(0, query - num_local + 1), query + 1):
                keys.append(torch.cat([w_k @ c_TR[i], turns[i] @ k_position[i]]))
                values.append(w_v @ c_TR[i])
            weights = (torch.stack(keys) @ q_TH[query] / HEAD**0.5).softmax(0)
            rows.append(weights @ torch.stack(values))
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=1) @ weight(flow.o).T


@pytest.mark.parametrize(
    ("size", "num_local"), [*[(m, 0) for m in SIZES], *[(5, w) for w in LOCAL]]
)
def test_block_flow_equals_a_slow_reference_with_gradient(size: int, num_local: int) -> None:
    flow, table = block_flow(size, num_local), rope_table(CONTEXT, HEAD)
    same_with_gradient(lambda x: flow(x, table), lambda x: slow_block(flow, x, size, num_local))


@pytest.mark.parametrize("length", [1, 4, 5, 6])
@pytest.mark.parametrize("num_local", [0, 2])
def test_sequences_about_as_long_as_one_window_equal_the_reference(
    length: int, num_local: int
) -> None:
    flow, x_BTD = block_flow(5, num_local), noise(3, length, 32)
    y_BTD = flow(x_BTD, rope_table(CONTEXT, HEAD))
    for x_TD, y_TD in zip(x_BTD.double(), y_BTD):
        close(y_TD, slow_block(flow, x_TD, 5, num_local))


def test_every_parameter_has_a_gradient() -> None:
    flow = block_flow(5, 3)
    flow(noise(1, LENGTH, 32), rope_table(CONTEXT, HEAD)).square().sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4, name


def test_a_new_gate_weighs_all_positions_equally() -> None:
    flow = attentions(tiny_model("dsa", **BLOCK))[0].compressed
    assert torch.count_nonzero(flow.gate_bias) == 0
    torch.nn.init.zeros_(flow.gate.weight)
    rows = noise(1, 2, 10, 2 * HEAD)
    pools = flow.pooled(rows, torch.zeros(1, 2, 10, 1))
    close(pools[:, :, 4], rows[:, :, :5].mean(2))
    close(pools[:, :, 6], rows[:, :, 5:7].mean(2))


MODELS = [
    ("dsa", BLOCK),
    ("dsa", BLOCK | {"block_local": 3}),
    ("dsa-full", BLOCK),
    ("dsa", BLOCK | {"block_size": CONTEXT}),
]


@pytest.mark.parametrize("train_indexer", [False, True])
@pytest.mark.parametrize(("arch", "overrides"), MODELS)
def test_no_gradient_flows_from_a_logit_to_a_later_token(
    arch: str, overrides: dict[str, Any], train_indexer: bool
) -> None:
    model, tokens_BT = tiny_model(arch, **overrides), some_tokens(1)
    leaves = embedded_leaf(model)
    logits_BTV = model.logits(model.hidden(tokens_BT, train_indexer=train_indexer)[0])
    direction_V = noise(VOCABULARY, seed=4)
    for query in range(CONTEXT):
        loss = (logits_BTV[0, query] * direction_V).sum()
        (gradient_BTD,) = torch.autograd.grad(loss, leaves[0], retain_graph=True)
        assert torch.count_nonzero(gradient_BTD[0, query + 1 :]) == 0
        assert (gradient_BTD[0, : query + 1].abs().amax(-1) > 0).all()


@pytest.mark.parametrize(("arch", "overrides"), MODELS)
def test_later_tokens_never_change_earlier_logits(arch: str, overrides: dict[str, Any]) -> None:
    model, a_BT = tiny_model(arch, **overrides), some_tokens()
    for first in (1, 4, 5, 6, 25, CONTEXT - 1):
        b_BT = torch.cat([a_BT[:, :first], (a_BT[:, first:] + 1) % VOCABULARY], dim=1)
        a_BTV, b_BTV = model(a_BT), model(b_BT)
        close(a_BTV[:, :first], b_BTV[:, :first])
        assert (a_BTV[:, first] - b_BTV[:, first]).abs().max() > 1e-3
        close(model(a_BT[:, :first]), a_BTV[:, :first])


def test_distant_tokens_are_pooled_and_recent_ones_are_not() -> None:
    """Exchanging two tokens of a closed window (without gate bias) changes no later output."""
    for num_local, same in ((0, True), (3, False)):
        flow = block_flow(5, num_local)
        flow.gate_bias.data.zero_()
        x_BTD = noise(1, 7, 32)
        other_BTD = x_BTD[:, [0, 1, 2, 4, 3, 5, 6]]
        table = rope_table(CONTEXT, HEAD)
        moved = (flow(x_BTD, table) - flow(other_BTD, table)).abs().amax((0, 2))
        assert (moved[:3] == 0).all()
        assert (moved[3] > 1e-4).all()
        assert (moved[6] < 1e-5) == same


def test_bf16_is_close_to_fp32() -> None:
    model, tokens_BT = tiny_model("dsa", **BLOCK, block_local=3), some_tokens()
    with torch.autocast("cpu", torch.bfloat16):
        coarse_BTV = model(tokens_BT, sparse=False)
    exact_BTV = model(tokens_BT, sparse=False)
    assert (coarse_BTV - exact_BTV).abs().max() < 0.05 * exact_BTV.abs().max()


def test_no_matrix_of_t_by_s_is_saved_for_backward() -> None:
    """For 2 heads, autograd saves at most 2 T (S / M + 1 + 2 L) logits, not 2 T S."""
    length, size, num_local = 512, 16, 8
    settings = Model(context=length, width=32, num_heads=4, block_size=size, block_local=num_local)
    flow, kept = BlockFlow(settings), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        flow(noise(1, length, 32), rope_table(length, 8))
    assert max(kept) == 2 * length * (length // size + 1 + 2 * num_local)


def test_the_gate_belongs_to_the_compressed_flow() -> None:
    names = [name for name, _ in tiny_model("dsa", **BLOCK).named_parameters() if "gate" in name]
    gates = [name for name in names if "attention" in name]
    assert len(gates) == 4
    assert {group_of(name) for name in gates} == {"compressed"}
    assert isinstance(attentions(tiny_model("dense", **BLOCK))[0], DenseAttention)
    full = attentions(tiny_model("dsa-full", **BLOCK))[0]
    assert isinstance(full, DsaAttention)
    assert isinstance(full.compressed, BlockFlow)


@pytest.mark.parametrize("overrides", [{"block_size": 2}, {"block_size": CONTEXT}])
def test_dense_is_matched_in_parameters(overrides: dict[str, int]) -> None:
    settings = tiny_settings(width=64, compression="block", **overrides)
    assert sizes.mismatch(settings, 1000) < 0.01
    more = (
        sizes.group_sizes("dsa", s, 0, 0)["compressed"]
        for s in (settings, settings.model_copy(update={"compression": "latent"}))
    )
    assert next(more) - next(more) == 2 * 2 * (64 + settings.block_size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "model.block_size=1"), "model.block_size=1: "),
        (("--set", "model.block_size=200"), "block_size=200 is larger than context=128"),
        (("--set", "model.block_local=128"), "block_local=128 must be less than context=128"),
        (("--set", "model.compression=blocks"), "model.compression=blocks: "),
        (
            ("--arch", "dsa-v32", "--set", "model.compression=block"),
            "model.compression=block applies to dsa and dsa-full",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    arguments: tuple[str, ...], words: str
) -> None:
    problem = cli("settings", *arguments).problem
    assert words in problem
    assert "[from --set" in problem
    assert len(problem.splitlines()) == 1


def test_dense_ignores_compression() -> None:
    chosen = ("settings", "--set", "model.compression=block", "--json")
    for arch in ("dense", "dsa", "dsa-full"):
        assert cli(*chosen, "--arch", arch).code == 0
    assert Model(context=8, num_kept=8).block_size == 8
