"""examples/minimal.py is the package's own experiment: same networks, same masks, same Fisher.

B batch, T tokens, V vocabulary, L layers, M targets.
"""

import ast
import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsa_sandbox.config.settings import Model
from dsa_sandbox.core.indexer import select, selected_mask
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.base import NoSettings
from dsa_sandbox.strategies.sgd import Sequential

FILE = Path(__file__).parents[1] / "examples" / "minimal.py"
ARCHS = ("dense", "dsa")


@pytest.fixture(scope="module")
def minimal() -> Any:
    spec = importlib.util.spec_from_file_location("minimal", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pair(minimal: Any, arch: str, seed: int = 0) -> tuple[Any, Transformer]:
    """Both networks of one size, with the same weights; norms are made to matter."""
    settings = Model(
        num_layers=minimal.NUM_LAYERS,
        width=minimal.WIDTH,
        num_heads=minimal.WIDTH // minimal.HEAD,
        context=minimal.CONTEXT,
        num_kept=minimal.NUM_KEPT,
        force_sink=minimal.NUM_SINK,
        force_local=minimal.NUM_LOCAL,
        latent_rank=minimal.RANK,
        indexer_heads=minimal.INDEXER_HEADS,
        indexer_head_width=minimal.INDEXER_HEAD,
    )
    ours = minimal.Transformer(arch, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs = Transformer(arch, settings, len(minimal.WORDS), minimal.HIDDEN[arch], seed)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same, one to one
    return ours, theirs


def tokens(minimal: Any, count: int = 3) -> Tensor:
    stories = [minimal.pretraining_story(f"test {number}") for number in range(count)]
    return torch.tensor([ids[:-1] for ids, _ in stories])


# --- it is the package's network ----------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_logits_are_those_of_the_package(minimal: Any, arch: str, sparse: bool) -> None:
    ours, theirs = pair(minimal, arch)
    tokens_BT = tokens(minimal)
    assert tokens_BT.shape[1] / 4 > minimal.NUM_KEPT
    with torch.no_grad():
        logits_BTV = ours(tokens_BT, sparse)[0]
        torch.testing.assert_close(logits_BTV, theirs(tokens_BT, sparse=sparse), rtol=0, atol=1e-5)
        if arch == "dsa":  # the phases differ, or this test could not tell them apart
            assert (logits_BTV - ours(tokens_BT, not sparse)[0]).abs().max() > 0.01


@pytest.mark.parametrize("sparse", [False, True])
def test_the_indexers_loss_is_that_of_the_package(minimal: Any, sparse: bool) -> None:
    ours, theirs = pair(minimal, "dsa")
    tokens_BT = tokens(minimal)
    _, kl = ours(tokens_BT, sparse)
    _, losses = theirs.hidden(tokens_BT, sparse=sparse, train_indexer=True)
    kl_BT = torch.stack(losses).sum(0)
    torch.testing.assert_close(kl, kl_BT.mean())
    kl.backward()
    kl_BT.mean().backward()
    for name, parameter in ours.named_parameters():
        gradient = theirs.get_parameter(name).grad
        if group_of(name) != "indexer":
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            assert gradient is not None
            assert gradient.any(), name
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_equal_scores_go_to_the_later_token_as_in_the_package(minimal: Any) -> None:
    length = minimal.CONTEXT
    generator = torch.Generator().manual_seed(0)
    scores_BTS = torch.randint(-1, 2, (4, length, length), generator=generator).float()
    past = torch.ones(1, length, length, dtype=torch.bool).tril()
    sizes = (minimal.NUM_KEPT, minimal.NUM_SINK, minimal.NUM_LOCAL)
    expected = selected_mask(select(scores_BTS, *sizes), length)
    assert torch.equal(minimal.select(scores_BTS, past), expected)


def test_language_loss_does_not_reach_the_indexer(minimal: Any) -> None:
    ours, _ = pair(minimal, "dsa")
    logits_BTV, _ = ours(tokens(minimal))
    logits_BTV.logsumexp(-1).sum().backward()
    for name, parameter in ours.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (group_of(name) != "indexer"), name


def test_both_networks_have_the_same_number_of_parameters(minimal: Any) -> None:
    dense, dsa = (
        sum(p.numel() for p in minimal.Transformer(arch, 0).parameters()) for arch in ARCHS
    )
    assert abs(dense - dsa) / dsa < 0.01


# --- it is short, and stands alone --------------------------------------------------------------


def test_the_file_is_short_formatted_and_needs_torch_alone(minimal: Any) -> None:
    text = FILE.read_text("utf-8")
    assert len(text.splitlines()) < 500
    roots = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or ".").split(".")[0])
    assert roots - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]])
def test_the_file_is_as_ruff_wants_it(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(FILE)],
        cwd=FILE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


# --- rules --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(minimal: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same file at a size that needs no time."""
    small = {"NUM_LAYERS": 1, "WIDTH": 16, "HEAD": 4, "RANK": 8, "HIDDEN": {"dense": 8, "dsa": 8}}
    small |= {"INDEXER_HEADS": 2, "INDEXER_HEAD": 4, "NUM_PROBES": 2, "BATCH": 4}
    for name, value in small.items():
        monkeypatch.setattr(minimal, name, value)
    return minimal


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("rule", ["sequential", "ewc", "acft"])
def test_a_task_moves_what_the_packages_rule_moves(tiny: Any, arch: str, rule: str) -> None:
    ours, theirs = pair(tiny, arch)
    mask = Acft(AcftSettings()) if rule == "acft" else Sequential(NoSettings())
    expected = set(mask.trainable(theirs).lr_scales)
    assert set(tiny.moving(ours, rule)) == expected
    task = tiny.Task(tiny.TASK_WORLDS[0], "water flows down", "up")
    tiny.learn(ours, task, rule, {}, 4)
    moved = {
        name
        for name, parameter in ours.named_parameters()
        if not torch.equal(parameter, theirs.get_parameter(name))
    }
    assert moved == expected


def exact_fisher(model: Any, names: list[str], tokens_BT: Tensor) -> dict[str, Tensor]:
    """Mean over tokens of sum_v p_v (d log p_v)^2, a pass for each label of each token."""
    parameters = [model.get_parameter(name) for name in names]
    log_p_MV = model(tokens_BT)[0].flatten(0, 1).log_softmax(-1)
    fisher = {name: torch.zeros_like(p) for name, p in zip(names, parameters)}
    for log_p_V in log_p_MV:
        for log_p in log_p_V:
            gradients = torch.autograd.grad(log_p, parameters, retain_graph=True)
            for name, gradient in zip(names, gradients):
                fisher[name] += log_p.exp().detach() * gradient.square() / len(log_p_MV)
    return fisher


@pytest.mark.parametrize("arch", ARCHS)
def test_the_fisher_is_the_exact_one(tiny: Any, monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    monkeypatch.setattr(tiny, "WORDS", tiny.WORDS[:5])
    model = tiny.Transformer(arch, 3)
    names = tiny.moving(model, "acft")
    story = ([0, 3, 1, 4, 2, 2], 1)
    exact = exact_fisher(model, names, torch.tensor([story[0][:-1]]))
    sampled = tiny.sampled_fisher(model, names, [story] * 400)
    for name in names:
        relative = (sampled[name] - exact[name]).abs().sum() / exact[name].sum()
        assert relative < 0.25, name
        assert sampled[name].sum() == pytest.approx(exact[name].sum().item(), rel=0.2), name


def test_ewc_pulls_and_its_fishers_add_up(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny.Task(tiny.TASK_WORLDS[0], "water flows down", "up")

    def distance(strength: float) -> float:
        monkeypatch.setattr(tiny, "EWC_STRENGTH", strength)
        base, model = tiny.Transformer("dense", 0), tiny.Transformer("dense", 0)
        names = tiny.moving(model, "ewc")
        ones = {name: torch.ones_like(model.get_parameter(name)) for name in names}
        tiny.learn(model, task, "ewc", ones, 20)
        with torch.no_grad():
            moved = [model.get_parameter(name) - base.get_parameter(name) for name in names]
        return sum(float(way.square().sum()) for way in moved)

    assert distance(100.0) < 0.1 * distance(0.0)


# --- the whole ----------------------------------------------------------------------------------


def table_of(minimal: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["minimal.py", *arguments])
        minimal.main()
    return capsys.readouterr().out.splitlines()


def test_a_small_run_goes_through_to_the_table(
    tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = table_of(tiny, capsys, "--seed", "5", "--steps", "3")
    arms = [line for line in lines if line.split()[1] in ("sequential", "ewc", "acft")]
    assert [tuple(line.split()[:2]) for line in arms] == [
        (arch, rule) for arch in ARCHS for rule in ("sequential", "ewc", "acft")
    ]
    for line in arms:
        rises = [float(word) for word in line.split()[2:5]]
        assert all(map(math.isfinite, rises))
        assert any(rises) or "acft" in line  # so little, in so few steps
    assert lines[-1] == "Seed 5 is one seed: an illustration and no evidence."
    assert table_of(tiny, capsys, "--seed", "5", "--steps", "3") == lines
