"""Muon: equal to torch's on the same steps, batched, and resumed from a checkpoint as it was.

N matrices, O rows, I columns.
"""

import pytest
import torch
from tiny import documents, tiny_model
from torch import Tensor, nn

from dsa_sandbox.config.settings import Train
from dsa_sandbox.data.tokens import batch_of
from dsa_sandbox.runs.checkpoints import optimizer_tensors, restore_optimizer
from dsa_sandbox.sizes import group_of
from dsa_sandbox.training import muon
from dsa_sandbox.training.loop import Phase, train
from dsa_sandbox.training.muon import Muon, orthogonal
from dsa_sandbox.training.pretrain import kind_of, make_optimizer

SHAPES = [(6, 10), (10, 6), (8, 8), (6, 10), (8, 8)]


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


def with_gradients(several: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in several:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take torch's five steps, in fp32 instead of its bf16."""
    monkeypatch.setattr(muon, "POLAR", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)


Stepped = tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]


def assert_equal_steps(first: Stepped, second: Stepped, *, rtol: float, atol: float) -> None:
    """Both optimisers move their parameters alike, over four steps of equal gradients."""
    for step in range(4):
        for optimizer, moved in (first, second):
            with_gradients(moved, step)
            optimizer.step()
    for mine, other in zip(first[1], second[1]):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


@pytest.mark.usefixtures("torchs")
def test_with_torchs_coefficients_every_step_is_torchs() -> None:
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    vector = parameters((5,))
    first = Muon(
        [
            {"params": ours, "lr": 0.01, "weight_decay": 0.1, "matrices": True},
            {"params": vector, "lr": 0.01, "weight_decay": 0.0},
        ]
    )
    second = torch.optim.Muon(
        theirs, lr=0.01, weight_decay=0.1, momentum=muon.MOMENTUM, adjust_lr_fn="match_rms_adamw"
    )
    assert_equal_steps((first, ours), (second, theirs), rtol=1e-5, atol=1e-6)


def test_what_is_no_matrix_moves_as_with_adamw() -> None:
    ours, theirs = parameters((5,), (7, 4)), parameters((5,), (7, 4))
    first = Muon(
        [
            {"params": parameters((4, 4)), "lr": 0.1, "weight_decay": 0.1, "matrices": True},
            {"params": ours, "lr": 0.01, "weight_decay": 0.1},
        ]
    )
    second = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.6, 0.95))
    assert_equal_steps((first, ours), (second, theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_three_steps_turn_a_matrix_into_its_polar_factor_to_a_quarter(
    shape: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(1)
    stack_NOI = torch.randn(3, *shape, generator=generator)
    for whole_OI, found_OI in zip(stack_NOI, orthogonal(stack_NOI)):
        u, sizes, vh = torch.linalg.svd(whole_OI, full_matrices=False)
        on_axes = u.mT @ found_OI @ vh.mT
        kept = sizes / sizes.norm() >= 0.01
        assert kept.float().mean() > 0.9
        torch.testing.assert_close(on_axes, on_axes.diag().diag(), rtol=0, atol=1e-4)
        torch.testing.assert_close(
            on_axes.diag()[kept], torch.ones(int(kept.sum())), rtol=0, atol=0.27
        )


def test_a_stack_of_matrices_moves_as_each_of_them_alone() -> None:
    stack_NOI = parameters((4, 6, 10))
    alone = [nn.Parameter(matrix.detach().clone()) for matrix in stack_NOI[0]]
    several = [stack_NOI, alone]
    with_gradients(stack_NOI, 0)
    assert stack_NOI[0].grad is not None
    for parameter, gradient in zip(alone, stack_NOI[0].grad):
        parameter.grad = gradient.clone()
    for one in several:
        group = {"params": one, "lr": 0.1, "weight_decay": 0.0, "matrices": True}
        rest = {"params": parameters((2,)), "lr": 0.1, "weight_decay": 0.0}
        Muon([group, rest]).step()
    torch.testing.assert_close(stack_NOI[0].detach(), torch.stack([*alone]).detach())


def test_muon_moves_the_trunks_matrices_and_adamw_the_rest() -> None:
    model = tiny_model("dsa")
    kinds = {name: kind_of(name, parameter) for name, parameter in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if group_of(name) == "indexer"} == {"indexer"}
    assert kinds["embedding.weight"] == "embedding"
    assert {kinds[name] for name in kinds if "norm" in name and "indexer" not in name} == {"vector"}
    optimizer = make_optimizer(model, Train(optimizer="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    batch = batch_of(documents(31, 20))
    phase = Phase(1.0, train_indexer=True)
    list(train(model, optimizer, lambda _: [batch], lambda _: phase, start=0, stop=1, clip=1.0))
    by_muon = {names[id(p)] for p, state in optimizer.state.items() if "momentum_buffer" in state}
    by_adamw = {names[id(p)] for p, state in optimizer.state.items() if "exp_avg" in state}
    assert by_muon == {name for name, kind in kinds.items() if kind == "matrix"}
    assert by_adamw == kinds.keys() - by_muon


def test_a_restored_optimiser_goes_on_as_the_one_that_was_saved() -> None:
    plan = Train(optimizer="muon")
    batch = batch_of(documents(31, 20))
    phase = Phase(1.0, train_indexer=True)

    def go(model: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
        steps = train(
            model,  # type: ignore[arg-type]
            optimizer,
            lambda _: [batch],
            lambda _: phase,
            start=start,
            stop=stop,
            clip=1.0,
        )
        list(steps)

    whole = tiny_model("dsa")
    optimizer = make_optimizer(whole, plan)
    go(whole, optimizer, 0, 2)
    half = tiny_model("dsa")
    half.load_state_dict({name: value.clone() for name, value in whole.state_dict().items()})
    saved = optimizer_tensors(dict(whole.named_parameters()), optimizer)
    saved = {name: value.clone() for name, value in saved.items()}
    assert any(name.startswith("optimizer.momentum_buffer.") for name in saved)
    go(whole, optimizer, 2, 5)
    other = make_optimizer(half, plan)
    restore_optimizer(dict(half.named_parameters()), other, saved)
    go(half, other, 2, 5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, half.state_dict()[name]), name
