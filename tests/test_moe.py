"""Mixtures of experts: a slow reference, routing, load balance, training, sizes.

B batch, T tokens, M tokens of a batch, D width, E experts, F hidden width of one, K experts of a
token.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from home import BRIEF, QUICK, STREAM, TinyHome, cli
from tiny import CONTEXT, VOCABULARY, documents, noise, some_tokens, tiny_model, tiny_settings
from torch import Tensor

from dsa_sandbox import sizes
from dsa_sandbox.commands import finetune
from dsa_sandbox.config import resolve as resolving
from dsa_sandbox.config.resolve import preset_names, resolve
from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, batch_of
from dsa_sandbox.errors import UserError
from dsa_sandbox.evaluation.diagnostics import expert_health
from dsa_sandbox.runs import checkpoints, load, saved
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.session import Session
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.ewc import sampled_fisher
from dsa_sandbox.tasks import schema
from dsa_sandbox.variants.moe import Balance, Mixture, load_of, mixtures

ARCHS = ("dense", "dsa", "dsa-full", "dsa-v32")
NUM_EXPERTS, WIDTH, HIDDEN = 4, 32, 96  # experts of 16, shared ones of 32
MOE: dict[str, Any] = {"ffn": "moe", "num_experts": NUM_EXPERTS, "ffn_width": HIDDEN}


def mixture(seed: int = 0, **overrides: Any) -> Mixture:
    """A mixture with random parameters and a random bias."""
    layer = Mixture(tiny_settings(**(MOE | overrides)), HIDDEN)
    for number, parameter in enumerate(layer.parameters()):
        scale = parameter.shape[-1] ** -0.5
        parameter.data = noise(*parameter.shape, seed=100 * seed + number) * scale
    layer.bias.copy_(0.2 * noise(NUM_EXPERTS, seed=100 * seed + 50))
    return layer


def slow_swiglu(x_D: Tensor, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor) -> Tensor:
    gate_F = gate_FD @ x_D
    return down_DF @ (gate_F * torch.sigmoid(gate_F) * (up_FD @ x_D))


def slow_mixture(state: dict[str, Tensor], x_TD: Tensor, num_active: int, scale: float) -> Tensor:
    """DeepSeek-V3 report, eq. 12-16, one token and one expert after another."""
    rows = []
    for x_D in x_TD:
        affinities = [torch.sigmoid(row_D @ x_D) for row_D in state["router.weight"]]
        biased = [s.item() + b.item() for s, b in zip(affinities, state["bias"])]
        best = sorted(range(len(biased)), key=lambda expert: -biased[expert])[:num_active]
        total = sum(affinities[expert] for expert in best)
        y_D = slow_swiglu(x_D, *(state[f"shared.{name}.weight"] for name in ("gate", "up", "down")))
        for expert in best:
            matrices = (state[f"experts.{name}"][expert] for name in ("gate", "up", "down"))
            y_D = y_D + scale * affinities[expert] / total * slow_swiglu(x_D, *matrices)
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize(("num_active", "scale"), [(1, 1.0), (2, 2.5), (NUM_EXPERTS, 1.0)])
def test_a_mixture_equals_a_slow_reference_token_by_token(num_active: int, scale: float) -> None:
    layer = mixture(num_active=num_active, routed_scale=scale)
    x_BTD = noise(2, 20, WIDTH, seed=7).requires_grad_()
    exact_TD = x_BTD.detach().double().flatten(0, 1).requires_grad_()
    state = {name: tensor.detach().double() for name, tensor in layer.state_dict().items()}
    names = [name for name, _ in layer.named_parameters()]
    for name in names:
        state[name].requires_grad_()
    y_TD = layer(x_BTD).flatten(0, 1)
    expected_TD = slow_mixture(state, exact_TD, num_active, scale)
    torch.testing.assert_close(y_TD.double(), expected_TD, rtol=1e-5, atol=1e-5)
    direction_TD = noise(*y_TD.shape, seed=8)
    inputs = [x_BTD, *(layer.get_parameter(name) for name in names)]
    exact = [exact_TD, *(state[name] for name in names)]
    found = torch.autograd.grad((y_TD * direction_TD).sum(), inputs)
    wanted = torch.autograd.grad(
        (expected_TD * direction_TD.double()).sum(), exact, allow_unused=True
    )
    for name, ours, theirs in zip(["x", *names], found, wanted):
        if num_active == 1 and name == "router.weight":  # one weight is always the whole
            assert ours.abs().max() < 1e-5
        else:
            torch.testing.assert_close(
                ours.double(), theirs.view_as(ours), rtol=1e-4, atol=1e-5, msg=name
            )


def test_experts_are_the_topk_of_affinity_and_bias_with_ties() -> None:
    layer, x_MD = mixture(), noise(50, WIDTH, seed=3)
    affinity_ME = F.linear(x_MD, layer.router.weight).sigmoid()
    ids_MK, _ = layer.route(x_MD)
    assert torch.equal(ids_MK, (affinity_ME + layer.bias).topk(2).indices)
    unbiased_MK = affinity_ME.topk(2).indices
    assert not torch.equal(ids_MK.sort().values, unbiased_MK.sort().values)
    layer.router.weight.data.zero_()
    layer.bias.zero_()
    tied_MK, weights_MK = layer.route(x_MD)
    assert torch.equal(tied_MK, torch.full((50, NUM_EXPERTS), 0.5).topk(2).indices)
    assert (weights_MK == 0.5).all()


def test_the_bias_changes_the_chosen_experts_and_no_weight() -> None:
    layer, x_MD = mixture(routed_scale=3.0), noise(50, WIDTH, seed=3)
    layer.bias.copy_(torch.tensor([5.0, 0.0, 2.0, 0.0]))
    ids_MK, weights_MK = layer.route(x_MD)
    assert set(ids_MK.flatten().tolist()) == {0, 2}
    affinity_MK = F.linear(x_MD, layer.router.weight).sigmoid()[:, [0, 2]]
    expected_MK = 3.0 * affinity_MK / affinity_MK.sum(-1, keepdim=True)
    torch.testing.assert_close(weights_MK, expected_MK.gather(1, ids_MK // 2))
    before_MD = layer(x_MD)
    layer.bias.copy_(torch.tensor([7.0, 1.0, 3.0, -4.0]))  # the same two
    assert torch.equal(layer(x_MD), before_MD)


def test_routing_is_in_fp32_under_autocast() -> None:
    layer, x_MD = mixture(), noise(50, WIDTH, seed=3)
    expected = layer.route(x_MD)
    with torch.autocast("cpu", torch.bfloat16):
        ids_MK, weights_MK = layer.route(x_MD)
        y_MD = layer(x_MD)
    assert torch.equal(ids_MK, expected[0])
    assert torch.equal(weights_MK, expected[1])
    torch.testing.assert_close(y_MD.float(), layer(x_MD), rtol=0.05, atol=0.05)


def test_the_output_of_a_token_does_not_depend_on_the_batch() -> None:
    layer, x_BTD = mixture(), noise(3, 9, WIDTH, seed=4)
    together_BTD = layer(x_BTD)
    for row in range(3):
        for token in range(9):
            alone_D = layer(x_BTD[row : row + 1, token : token + 1])[0, 0]
            torch.testing.assert_close(alone_D, together_BTD[row, token], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_later_tokens_and_other_sequences_never_change_a_logit(arch: str) -> None:
    model, a_BT = tiny_model(arch, **MOE), some_tokens(3)
    before_BTV = model(a_BT)
    for first in (1, 13, CONTEXT - 1):
        b_BT = torch.cat([a_BT[:, :first], (a_BT[:, first:] + 1) % VOCABULARY], dim=1)
        close = torch.testing.assert_close
        close(model(b_BT)[:, :first], before_BTV[:, :first], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(a_BT[1:2])[0], before_BTV[1], rtol=1e-5, atol=1e-5)


def test_an_expert_without_tokens_has_a_gradient_of_zeros() -> None:
    model = tiny_model("dsa", **MOE)
    for layer in mixtures(model):
        layer.bias.copy_(torch.tensor([0.0, -9.0, 0.0, 0.0]))
    names = [n for n, _ in model.named_parameters() if group_of(n) != "indexer"]
    fisher = sampled_fisher(
        model, [batch_of(documents(3))], names, torch.Generator().manual_seed(0)
    )
    for name in (name for name in names if group_of(name) == "experts"):
        assert not fisher[name][1].any()
        assert fisher[name].any()


# --- balance ------------------------------------------------------------------------------------


def load_max(layer: Mixture, x_MD: Tensor) -> float:
    load_E = load_of(layer.route(x_MD)[0], NUM_EXPERTS).float()
    return float(load_E.max() / load_E.mean())


def test_the_bias_alone_balances_a_skewed_router() -> None:
    layer = mixture()
    layer.bias.zero_()
    x_BTD = noise(4, 50, WIDTH, seed=5) + 0.5 * layer.router.weight[0].detach() * WIDTH**0.5
    before = {name: p.clone() for name, p in layer.named_parameters()}
    real_BT, balance = torch.ones(4, 50, dtype=torch.bool), Balance(layer, 0.01)
    assert load_max(layer, x_BTD.flatten(0, 1)) > 1.8
    for _ in range(60):
        balance.watch([real_BT])
        layer(x_BTD)
        balance.move()
    assert load_max(layer, x_BTD.flatten(0, 1)) < 1.15
    assert layer.bias[0] == layer.bias.min() < 0
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())


def test_a_bias_moves_by_the_sign_of_mean_load_minus_load_of_the_whole_step() -> None:
    layer, x_BTD = mixture(), noise(4, 10, WIDTH, seed=5)
    real_BT = torch.arange(10) < torch.tensor([10, 3, 7, 1])[:, None]
    x_BTD[~real_BT] = 9 * layer.router.weight[1].detach()  # padding likes experts of its own
    load_E = load_of(layer.route(x_BTD[real_BT])[0], NUM_EXPERTS).float()
    padded_E = load_of(layer.route(x_BTD.flatten(0, 1))[0], NUM_EXPERTS).float()
    sign_E = (load_E.mean() - load_E).sign()
    assert not torch.equal(sign_E, (padded_E.mean() - padded_E).sign())  # padding would matter
    before_E, balance = layer.bias.clone(), Balance(layer, 0.25)
    balance.watch([real_BT[:1], real_BT[1:]])
    for part_BTD in (x_BTD[:1], x_BTD[1:]):
        layer(part_BTD)
    assert torch.equal(layer.bias, before_E)
    balance.move()
    assert torch.equal(layer.bias, before_E + 0.25 * sign_E)
    layer(x_BTD)  # nobody watches any more
    balance.move()
    assert torch.equal(layer.bias, before_E + 0.25 * sign_E)


def test_expert_health_excludes_padding() -> None:
    model, rows = tiny_model("dsa", **MOE), documents(30, 12, 20)
    found = expert_health(model, rows, sparse=True)
    assert len(found) == 2
    assert expert_health(tiny_model("dsa"), rows, sparse=True) == []
    seen = []
    hook = mixtures(model)[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens_BT, targets_BT = batch_of(rows)
    model(tokens_BT)
    hook.remove()
    ids_MK = mixtures(model)[1].route(seen[0][targets_BT != IGNORED])[0]
    shares = [(ids_MK == expert).sum().item() / ids_MK.numel() for expert in range(NUM_EXPERTS)]
    assert found[1]["load_max"] == pytest.approx(max(shares) * NUM_EXPERTS)
    entropy = -sum(share * math.log(share) for share in shares if share)
    assert found[1]["load_entropy"] == pytest.approx(entropy / math.log(NUM_EXPERTS))
    mixtures(model)[1].bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    two = expert_health(model, rows, sparse=True)[1]
    assert two["load_max"] == 2
    assert two["load_entropy"] == pytest.approx(0.5)


QUICK_MOE = [*QUICK, "--set", "model.ffn=moe", "--set", "model.num_experts=4"]


def weights(run: Path) -> dict[str, Tensor]:
    return checkpoints.load_tensors(run / "model.safetensors")


def test_biases_move_in_all_phases_of_pre_training(quick_home: Path) -> None:
    phases = ("train.steps=10", "train.dense_fraction=0.1", "train.indexer_fraction=0.85")
    sets = [part for text in (*phases, "train.balance_rate=1e-6") for part in ("--set", text)]
    run = cli("pretrain", "--arch", "dsa", *QUICK_MOE, *sets, "--home", quick_home).run
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["phase"] for row in rows] == ["dense", *["indexer"] * 9]
    (figures,) = rows[-1]["experts"]
    assert 1 <= figures["load_max"] <= 4
    assert 0 < figures["load_entropy"] <= 1
    bias_E = weights(run)["blocks.0.feedforward.bias"]
    steps_E = bias_E / 1e-6  # each of ten is one up, down or none
    torch.testing.assert_close(steps_E, steps_E.round(), rtol=0, atol=1e-3)
    assert 2 <= float(steps_E.abs().max().round()) <= 10


def test_fine_tuning_leaves_biases_and_frozen_parameters_bit_equal(quick_home: Path) -> None:
    base = cli("pretrain", "--arch", "dsa", *QUICK_MOE, "--home", quick_home).run
    for strategy, sets in (("acft", ["acft.moves=experts"]), ("sgd", [])):
        resolved = resolving.resolve(
            sets=["finetune.max_steps=2", "finetune.stop=fixed", *BRIEF[1::2], *sets],
            options={"strategy": (strategy, "--strategy")},
            with_strategy=True,
        )
        saved_base = load.SavedNetwork(Run(base))
        stream = schema.TaskStream(schema.read(STREAM)[:1], "one", "1" * 64)
        settings = load.settings_for(resolved, saved_base)
        run = finetune.finetune(settings, Session(quick_home), saved_base, stream).run
        before, after = weights(base), weights(run.path)
        moved = {group_of(name) for name in before if not torch.equal(before[name], after[name])}
        assert before["blocks.0.feedforward.bias"].any()
        assert torch.equal(before["blocks.0.feedforward.bias"], after["blocks.0.feedforward.bias"])
        if strategy == "acft":
            assert moved == {"experts", "indexer"}
            assert set(run.manifest["mask"]["groups"]) == {"experts", "indexer"}
        else:
            assert moved >= {"experts", "router", "feedforward", "selected"}


def test_acft_moves_decides_whether_experts_are_trained() -> None:
    model = tiny_model("dsa", **MOE)
    flow = {"flow": {"selected"}, "experts": {"experts"}, "both": {"selected", "experts"}}
    for what, groups in flow.items():
        trained = Acft(AcftSettings(moves=what)).trainable(model).lr_scales
        expected = {n for n, _ in model.named_parameters() if group_of(n) in groups}
        assert set(trained) == expected
    for what in ("experts", "both"):
        with pytest.raises(ValueError, match=f"acft.moves={what}: this network has no experts"):
            Acft(AcftSettings(moves=what)).trainable(tiny_model("dsa"))


# --- sizes and settings -------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("num_experts", [4, 8, 16])
def test_networks_with_experts_have_as_many_parameters_as_dsa_without(
    preset: str, num_experts: int
) -> None:
    sets = ["model.ffn=moe", f"model.num_experts={num_experts}"]
    model, plain = (resolve(preset=preset, sets=s).settings.model for s in (sets, []))
    expected = sizes.table("dsa", plain, 1000)["total"]
    tables = {arch: sizes.table(arch, model, 1000) for arch in ARCHS}
    for arch, table in tables.items():
        assert abs(table["total"] - expected) <= 0.01 * expected, arch
        assert table["experts"] == tables["dsa"]["experts"]
        assert table["feedforward"] > 0
    # smoke's widths are rounded to eights, of which one is 1.7 % of the network
    assert sizes.mismatch(model, 1000) <= (0.01 if num_experts < 16 or preset != "smoke" else 0.013)
    assert sizes.expert_width(model) % 8 == 0


def test_networks_of_one_seed_have_the_same_experts() -> None:
    dense, dsa = (dict(tiny_model(arch, **MOE).named_parameters()) for arch in ("dense", "dsa"))
    for name in (n for n in dsa if group_of(n) in ("experts", "router")):
        assert torch.equal(dense[name], dsa[name]), name
    std = dsa["blocks.0.feedforward.experts.up"].std().item()
    assert std == pytest.approx(WIDTH**-0.5, rel=0.1)
    down_std = dsa["blocks.0.feedforward.experts.down"].std().item()
    assert down_std == pytest.approx(16**-0.5 / 2, rel=0.1)  # 1 / sqrt(2L) of it, L = 2
    first = dsa["blocks.0.feedforward.experts.up"]
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        (["num_active=9"], "num_active=9 is more than num_experts=8"),
        (["activation=gelu"], "activation=gelu: experts"),
        (["ffn_width=64"], "ffn_width=64 leaves less than 8"),
        (["num_experts=1"], "model.num_experts=1: input should be greater than or equal to 2"),
    ],
)
def test_experts_that_do_not_fit_are_refused(sets: list[str], problem: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(sets=["model.ffn=moe", *(f"model.{text}" for text in sets)])
    assert problem in str(refused.value)


@pytest.mark.parametrize("key", ["model.num_experts=16", "train.balance_rate=0.1"])
def test_settings_of_experts_are_refused_without_moe(key: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(sets=[key])
    assert str(refused.value) == (f"{key}: belongs to model.ffn=moe, but it is mlp  [from --set]")
    assert resolve(sets=[key, "model.ffn=moe"]).sources[key.partition("=")[0]] == "--set"


def test_acft_on_experts_is_refused_for_a_network_without_experts(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    answer = cli(
        *("finetune", tiny_home.run("pretrain dsa"), "--strategy", "acft"),
        *("--set", "acft.moves=experts", "--tasks", STREAM, "--home", tmp_path / "home"),
    )
    assert "acft.moves=experts: this network has no experts" in answer.problem


def test_the_tables_of_build_show_shared_experts_experts_and_router(quick_home: Path) -> None:
    answer = cli("build", *QUICK_MOE, "--home", quick_home)
    assert answer.code == 0
    groups = {line.split()[0] for line in answer.err.splitlines() if line.strip()}
    assert {"feedforward", "experts", "router"} <= groups
    model: Model = saved.run_settings(Run(answer.run)).model
    assert mixtures(Transformer("dsa", model, 31, 64, 0))[0].num_active == 2
