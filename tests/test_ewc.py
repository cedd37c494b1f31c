"""The Fisher against its exact value, EWC against its formula, and what each strategy may move.

B batch, T tokens, M targets, D width, V vocabulary.
"""

import copy
import json
from collections.abc import Iterator
from itertools import cycle, islice, repeat
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from home import TinyHome
from safetensors import safe_open
from tiny import documents, noise, some_tokens, tiny_model, trainee_of
from torch import Tensor, nn

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import IGNORED, Batch, batch_of
from dsa_sandbox.registry import archs
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.base import NoSettings, Strategy, Trainee
from dsa_sandbox.strategies.ewc import Ewc, EwcSettings, sampled_fisher
from dsa_sandbox.strategies.sgd import Sequential
from dsa_sandbox.training.trainer import Trainer

Memory = dict[str, Tensor]


class SoftmaxRegression(nn.Module):
    """Logits linear in the features of the token: its Fisher is known exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 4)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = 0.7 * noise(*parameter.shape, seed=40 + number)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.out(self.features(tokens_BT))


def regression() -> Any:
    """One in the place of a network: `sampled_fisher` asks for no more than it has."""
    return SoftmaxRegression()


def sequences(num_sequences: int) -> Batch:
    """Tokens with some targets missing, as behind the end of a document."""
    generator = torch.Generator().manual_seed(3)
    tokens_BT = torch.randint(5, (num_sequences, 12), generator=generator)
    targets_BT = torch.randint(4, (num_sequences, 12), generator=generator)
    targets_BT[:, -3:] = IGNORED
    return Batch(tokens_BT, targets_BT)


def exact_fisher(model: SoftmaxRegression, batch: Batch) -> Memory:
    """Diagonal of J' (diag(p) - p p') J, J the Jacobian of the logits, averaged over tokens."""
    with torch.no_grad():
        tokens_M = batch.tokens_BT[batch.targets_BT != IGNORED]
        x_MD, weight_VD = model.features(tokens_M), model.out.weight
        p_MV = model.out(x_MD).softmax(-1)
        variance_MV = p_MV * (1 - p_MV)
        scatter_MDD = torch.diag_embed(p_MV) - p_MV[:, :, None] * p_MV[:, None, :]
        per_token_MD = torch.einsum("vd,mvw,wd->md", weight_VD, scatter_MDD, weight_VD)
        features = torch.zeros_like(model.features.weight)
        features.index_add_(0, tokens_M, per_token_MD)
        return {
            "features.weight": features / len(tokens_M),
            "out.weight": variance_MV.T @ x_MD.square() / len(tokens_M),
            "out.bias": variance_MV.mean(0),
        }


def flat(memory: Memory) -> Tensor:
    return torch.cat([memory[name].flatten() for name in sorted(memory)])


@pytest.mark.parametrize("num_sequences", [1, 8])
def test_sampled_fisher_is_the_exact_one_whatever_the_batch_size(num_sequences: int) -> None:
    model, batch = regression(), sequences(num_sequences)
    names = [name for name, _ in model.named_parameters()]
    generator = torch.Generator().manual_seed(0)
    exact = flat(exact_fisher(model, batch))
    sampled = flat(sampled_fisher(model, repeat(batch, 8000), names, generator))
    seen = exact > 0
    assert (sampled[~seen] == 0).all()
    assert ((sampled - exact).abs()[seen] / exact[seen]).mean() < 0.02


def test_squares_of_batch_mean_gradients_with_data_labels_depend_on_the_batch_size() -> None:
    model, batch = regression(), sequences(8)
    singles = [Batch(t[None], y[None]) for t, y in zip(batch.tokens_BT, batch.targets_BT)]
    names = [name for name, _ in model.named_parameters()]

    def careless(batches: list[Batch]) -> float:
        total = 0.0
        for one in batches:
            logits_MV = model(one.tokens_BT).flatten(0, 1)
            loss = F.cross_entropy(logits_MV, one.targets_BT.flatten(), ignore_index=IGNORED)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            total += sum(float(g.square().sum()) for g in gradients) / len(batches)
        return total

    def ours(batches: list[Batch]) -> float:
        passes, generator = islice(cycle(batches), 1600), torch.Generator().manual_seed(1)
        return float(flat(sampled_fisher(model, passes, names, generator)).sum())

    assert careless([batch]) < 0.6 * careless(singles)
    assert ours([batch]) == pytest.approx(ours(singles), rel=0.05)
    assert ours([batch]) == pytest.approx(float(flat(exact_fisher(model, batch)).sum()), rel=0.05)


# --- EWC on a small network -------------------------------------------------------------------


def pretraining(seed: int = 0) -> Iterator[Batch]:
    """Single sequences without end, as `prepare` gets them."""
    return cycle([batch_of([document]) for document in documents(*[20] * 6, seed=seed)])


def story(step: int) -> list[Batch]:
    return [batch_of(documents(16, 16, 12, seed=1000 + step))]


def ewc(model: Transformer, **settings: Any) -> Ewc:
    """A strategy that has measured F0."""
    strategy = Ewc(EwcSettings(**({"passes": 12, "task_passes": 5} | settings)))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    return strategy


def tune(model: Transformer, strategy: Strategy, steps: int = 6, rate: float = 3e-3) -> list[float]:
    """One task as fine-tuning runs it; the penalties of its steps."""
    plan = Finetune(indexer="frozen", learning_rate=rate, warmup_steps=0, max_steps=steps)
    trainer = Trainer(strategy, model, copy.deepcopy(model), plan)
    strategy.start_task(trainee_of(strategy, model))
    done = trainer.steps(trainer.optimizer(), story, seed=0, task=0)
    return [step.penalty for step in done]


def state(model: Transformer) -> Memory:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_bit_equal(a: Memory, b: Memory) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def part(memory: Memory, kind: str) -> Memory:
    return {k.removeprefix(kind): v for k, v in memory.items() if k.startswith(kind)}


def weighted_distance(fisher: Memory, a: Memory, b: Memory) -> float:
    return sum(float((fisher[name] * (a[name] - b[name]).square()).sum()) for name in fisher)


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_fisher_is_not_negative_and_known_for_what_moves_only(arch: str) -> None:
    model = tiny_model(arch)
    strategy = ewc(model)
    fisher, anchor = part(strategy.memory, "fisher."), part(strategy.memory, "anchor.")
    assert fisher.keys() == anchor.keys() == strategy.trainable(model).lr_scales.keys()
    assert not any(group_of(name) == "indexer" for name in fisher)
    assert all((f >= 0).all() and f.isfinite().all() for f in fisher.values())
    assert all(f.sum() > 0 for f in fisher.values())
    mean = flat(fisher).mean()
    torch.testing.assert_close(strategy.memory["scale"], 1 / mean)


def test_the_tied_embedding_is_counted_once() -> None:
    model = tiny_model("dense")
    strategy = ewc(model, passes=1)
    fisher = part(strategy.memory, "fisher.")
    assert [name for name in fisher if fisher[name].shape == (31, 32)] == ["embedding.weight"]
    assert flat(fisher).numel() == sum(p.numel() for p in model.parameters())
    # the same labels again: the square of one gradient, input and output side together
    batch = next(pretraining())
    logits_MV = model(batch.tokens_BT)[0]
    noise_MV = torch.rand(logits_MV.shape, generator=torch.Generator().manual_seed(7))
    labels_M = (logits_MV - (-noise_MV.log()).log()).argmax(-1)
    F.cross_entropy(logits_MV, labels_M).backward()
    gradient = model.embedding.weight.grad
    assert gradient is not None
    expected = len(labels_M) * gradient.square()
    torch.testing.assert_close(fisher["embedding.weight"], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_ewc_of_strength_zero_is_sgd_bit_for_bit(arch: str) -> None:
    sequential, protected = tiny_model(arch), tiny_model(arch)
    plain, strategy = Sequential(NoSettings()), ewc(protected, strength=0.0)
    for task in range(2):
        tune(sequential, plain)
        tune(protected, strategy)
        strategy.finish_task(trainee_of(strategy, protected), pretraining(), seed=task)
    assert_bit_equal(state(sequential), state(protected))


def test_measuring_the_fisher_changes_neither_weights_nor_gradients_nor_global_randomness() -> None:
    model = tiny_model("dsa")
    before, generator_state = state(model), torch.get_rng_state()
    ewc(model)
    assert_bit_equal(before, state(model))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator_state)


def test_the_penaltys_gradient_is_strength_times_fisher_times_distance() -> None:
    model = tiny_model("dsa")
    strategy = ewc(model, strength=37.0)
    assert strategy.penalty(trainee_of(strategy, model)) == 0
    tune(model, strategy)
    model.zero_grad()
    penalty = strategy.penalty(trainee_of(strategy, model))
    assert penalty is not None
    penalty.backward()
    fisher, anchor = part(strategy.memory, "fisher."), part(strategy.memory, "anchor.")
    scale = float(strategy.memory["scale"])
    for name, parameter in model.named_parameters():
        if name not in fisher:
            assert parameter.grad is None
            continue
        expected = 37.0 * scale * fisher[name] * (parameter.detach() - anchor[name])
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-9)
    distance = weighted_distance(fisher, state(model), anchor)
    assert penalty.item() == pytest.approx(37.0 / 2 * scale * distance, rel=1e-4)


def test_ewc_with_a_fisher_of_one_is_l2_towards_the_start() -> None:
    model, same = tiny_model("dsa"), tiny_model("dsa")
    strategy = ewc(model, strength=5.0)
    for key, value in strategy.memory.items():
        if not key.startswith("anchor."):
            strategy.memory[key] = torch.ones_like(value)

    class L2Start(Sequential):
        def start_task(self, trainee: Trainee) -> None:
            self.memory = state(trainee.model)

        def penalty(self, trainee: Trainee) -> Tensor:
            parameters = trainee.model.named_parameters()
            trunk = [(n, p) for n, p in parameters if group_of(n) != "indexer"]
            return 2.5 * torch.stack([((p - self.memory[n]) ** 2).sum() for n, p in trunk]).sum()

    penalties, expected = tune(model, strategy), tune(same, L2Start(NoSettings()))
    assert penalties == pytest.approx(expected, rel=1e-4)
    assert penalties[-1] > 0
    a, b = state(model), state(same)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def test_after_a_task_the_fisher_is_the_sum_and_the_anchor_the_latest_optimum() -> None:
    model = tiny_model("dsa")
    strategy = ewc(model)
    names = list(strategy.trainable(model).lr_scales)
    expected = part(strategy.memory, "fisher.")
    scale = strategy.memory["scale"].clone()
    first = sampled_fisher(
        model, islice(pretraining(), 12), names, torch.Generator().manual_seed(7)
    )
    assert_bit_equal(expected, first)
    for task in (1, 2):
        tune(model, strategy, steps=3)
        penalty = strategy.penalty(trainee_of(strategy, model))
        assert penalty is not None
        assert penalty > 0
        strategy.finish_task(trainee_of(strategy, model), pretraining(seed=task), seed=task)
        of_task = sampled_fisher(
            model, islice(pretraining(seed=task), 5), names, torch.Generator().manual_seed(task)
        )
        expected = {name: expected[name] + of_task[name] for name in names}
        for name, fisher in part(strategy.memory, "fisher.").items():
            torch.testing.assert_close(fisher, expected[name])
        now = {name: p for name, p in state(model).items() if name in names}
        assert_bit_equal(part(strategy.memory, "anchor."), now)
        assert torch.equal(strategy.memory["scale"], scale)
        assert strategy.penalty(trainee_of(strategy, model)) == 0


def test_ewc_protects_pretraining_from_the_first_task_on_and_harder_with_more_strength() -> None:
    base = state(tiny_model("dsa"))
    fisher = part(ewc(tiny_model("dsa")).memory, "fisher.")
    distances = []
    for strength in (0.0, 1.0, 100.0, 1e6):
        model = tiny_model("dsa")
        penalties = tune(model, ewc(model, strength=strength), steps=12)
        assert penalties[0] == 0
        assert all((penalty > 0) == (strength > 0) for penalty in penalties[1:])
        distances.append(weighted_distance(fisher, state(model), base))
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < 0.5 * distances[0]
    assert distances[3] < 0.1 * distances[0]


# --- what may move ----------------------------------------------------------------------------

FOCUS = {
    ("dense", "matched"): {"b", "b1"},
    ("dense", "all"): {"b", "b1", "b2"},
    ("dsa", "matched"): {"selected"},
    ("dsa", "all"): {"selected"},
    ("dsa-full", "matched"): {"selected"},
    ("dsa-v32", "matched"): {"selected"},
}


@pytest.mark.parametrize(("arch", "group"), FOCUS)
def test_acft_moves_its_groups_and_leaves_the_rest_bit_equal(arch: str, group: str) -> None:
    model = tiny_model(arch)
    before = state(model)
    strategy = Acft(AcftSettings(group=group))
    moves = strategy.trainable(model).lr_scales
    assert set(moves) == {name for name in before if group_of(name) in FOCUS[arch, group]}
    width, head, num_layers = 32, 8, 2
    matched = num_layers * (width**2 + 2 * width * head)
    if arch == "dsa-v32":  # what stands on the latents: 4 query parts of 3/2 a head, k, v, o
        rank = width // 2
        matched = num_layers * (rank * width * 3 // 2 + 2 * rank * width + width**2)
    extra = num_layers * 2 * width * head if (arch, group) == ("dense", "all") else 0
    assert sum(before[name].numel() for name in moves) == matched + extra
    per_layer = {("dense", "matched"): 4, ("dense", "all"): 6}.get((arch, group), 4)
    assert len(moves) == num_layers * per_layer
    tune(model, strategy)
    for name, now in state(model).items():
        assert torch.equal(now, before[name]) == (name not in moves), name


def test_what_acft_moves_has_the_same_shapes_on_dense_and_dsa() -> None:
    shapes = []
    for arch in ("dense", "dsa"):
        model = tiny_model(arch)
        moving = Acft(AcftSettings()).trainable(model).lr_scales
        shapes.append(
            [(n.split(".")[-2], tuple(p.shape)) for n, p in state(model).items() if n in moving]
        )
    assert sorted(shapes[0]) == sorted(shapes[1])


def test_acfts_rate_multiplies_the_learning_rate_of_what_moves() -> None:
    model, plan = tiny_model("dsa"), Finetune(indexer="frozen", learning_rate=0.5)
    strategy = Acft(AcftSettings(rate=3.0))
    assert set(strategy.trainable(model).lr_scales.values()) == {3.0}
    optimizer = Trainer(strategy, model, model, plan).optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [1.5]


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_sgd_and_ewc_move_everything_but_the_indexer(arch: str) -> None:
    for strategy_class, settings in ((Sequential, NoSettings()), (Ewc, EwcSettings(passes=2))):
        model, strategy = tiny_model(arch), strategy_class(settings)
        strategy.prepare(trainee_of(strategy, model), pretraining(), seed=0)
        before = state(model)
        tune(model, strategy)
        for name, now in state(model).items():
            assert torch.equal(now, before[name]) == (group_of(name) == "indexer"), name


def test_acft_refuses_an_architecture_without_a_selected_flow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Plain(nn.Module):
        def forward(self, x_BTD: Tensor, table: Any, *_: bool) -> tuple[Tensor, None]:
            return x_BTD, None

    monkeypatch.setitem(archs.entries, "plain", lambda model: Plain())
    model = tiny_model("plain")
    assert model(some_tokens()).shape == (2, 32, 31)
    with pytest.raises(ValueError, match="no selected flow"):
        Acft(AcftSettings()).trainable(model)


def test_each_sequence_counts_alike_however_long() -> None:
    model, batch = regression(), sequences(2)
    targets_BT = batch.targets_BT.clone()
    targets_BT[0, 2:] = IGNORED
    singles = [Batch(t[None], y[None]) for t, y in zip(batch.tokens_BT, targets_BT)]
    assert singles[0].num_targets != singles[1].num_targets
    names = [name for name, _ in model.named_parameters()]
    found = flat(sampled_fisher(model, singles * 6000, names, torch.Generator().manual_seed(0)))
    exact = torch.stack([flat(exact_fisher(model, one)) for one in singles]).mean(0)
    seen = exact > 0
    assert ((found - exact).abs()[seen] / exact[seen]).mean() < 0.03


def test_the_file_of_a_fisher_says_what_it_was_measured_on(tiny_home: TinyHome) -> None:
    arm, base = Run(tiny_home.run("ewc")), Run(tiny_home.run("pretrain dsa"))
    with safe_open(tiny_home.home / arm.manifest["prepared"], "pt") as file:
        metadata = {key: json.loads(value) for key, value in file.metadata().items()}
    assert metadata["model"] == base.manifest["files"]["model.safetensors"]
    assert metadata["mask"] == arm.manifest["mask"]["sha256"]
    assert (metadata["passes"], metadata["fisher"], metadata["seed"]) == (8, "sampled", 0)
    assert len(metadata["data"]) == 64
