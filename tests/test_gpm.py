"""GPM: subspaces of the inputs of matrices, and steps that leave them unchanged.

D inputs of a matrix, K columns of a subspace.
"""

from typing import Any

import pytest
import torch
from test_ewc import pretraining, state, tune
from test_penalties import stories
from test_projections import SMALL, masked, steps_of
from tiny import noise, some_tokens, tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.selection import backends
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.strategies.ewc import Ewc, EwcSettings
from dsa_sandbox.strategies.gpm import Gpm, GpmSettings, grown, input_grams


def gpm(model: Transformer, **settings: Any) -> Gpm:
    strategy = Gpm(GpmSettings(**(SMALL["gpm"] | settings)))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    return strategy


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("dense", {"activation": "gelu"}),
    ("dsa", {}),
    ("dsa", {"compression": "block", "block_size": 4}),
    ("dsa-v32", {}),
]


@pytest.mark.parametrize(("arch", "settings"), VARIANTS, ids=str)
def test_a_matrix_changed_outside_its_subspace_reads_the_same_of_earlier_data(
    arch: str, settings: dict[str, Any]
) -> None:
    """Whatever the matrix reads: a step across what it reads, W + dW (I - M M'), is not seen."""
    model = tiny_model(arch, **settings)
    tokens_BT = some_tokens(1, 10)
    grams = input_grams(model, [tokens_BT])
    said = model(tokens_BT).detach()
    names = list(Gpm(GpmSettings()).trainable(model).lr_scales)
    assert names
    for name in names:
        matrix = model.get_parameter(name)
        before, change = matrix.detach().clone(), 0.3 * noise(*matrix.shape, seed=2)
        values_D, vectors_DD = torch.linalg.eigh(grams[name].double())
        basis_DK = vectors_DD[:, values_D > 1e-8 * values_D.max()].float()
        differences = []
        for step in (change, change - change @ basis_DK @ basis_DK.T):
            with torch.no_grad():
                matrix.copy_(before + step)
                differences.append(float((model(tokens_BT) - said).abs().max()))
        with torch.no_grad():
            matrix.copy_(before)
        assert basis_DK.shape[1] < len(basis_DK), name  # something is free
        assert differences[0] > 1e-3, name
        assert differences[1] < 1e-2 * differences[0], name


def test_what_matrices_read_is_what_their_modules_are_given() -> None:
    model, tokens_BT = tiny_model("dsa"), some_tokens(2, 20)
    given: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs: given.__setitem__(name, inputs[0].detach())

    places = ("attention", "feedforward", "feedforward.down", "attention.selected.o")
    hooks = [
        model.get_submodule(f"blocks.1.{place}").register_forward_pre_hook(keep(place))
        for place in places
    ]
    grams = input_grams(model, [tokens_BT])
    for hook in hooks:
        hook.remove()
    for place, matrices in {
        "attention": (
            "attention.compressed.q",
            "attention.compressed.down",
            "attention.selected.v",
        ),
        "feedforward": ("feedforward.up", "feedforward.gate"),
        "feedforward.down": ("feedforward.down",),
        "attention.selected.o": ("attention.selected.o",),
    }.items():
        x_MD = given[place].flatten(0, 1)
        for name in matrices:
            torch.testing.assert_close(grams[f"blocks.1.{name}.weight"], x_MD.T @ x_MD)


@pytest.mark.parametrize("arch", ["dsa", "dsa-v32"])
def test_inputs_are_found_whatever_computes_the_selection(arch: str) -> None:
    model, tokens_BT = tiny_model(arch), some_tokens()
    expected = input_grams(model, [tokens_BT])
    backends.use(model, "gather")
    chosen = [model.get_submodule(f"blocks.{n}.attention").backend for n in range(2)]
    found = input_grams(model, [tokens_BT])
    for name in Gpm(GpmSettings()).trainable(model).lr_scales:
        torch.testing.assert_close(found[name], expected[name])
    assert [model.get_submodule(f"blocks.{n}.attention").backend for n in range(2)] == chosen
    assert None not in chosen


def test_a_subspace_holds_the_fewest_leading_directions_of_enough_energy() -> None:
    gram_DD = torch.diag(torch.tensor([2.0, 4.0, 1.0, 3.0]))
    none = torch.zeros(4, 0)
    for threshold, held in ((0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.89, [0, 1, 3])):
        basis_DK = grown(none, gram_DD, threshold)
        projection_DD = basis_DK @ basis_DK.T
        expected = torch.tensor([float(i in held) for i in range(4)])
        torch.testing.assert_close(projection_DD, torch.diag(expected))


def test_a_subspace_grows_by_what_new_inputs_lack_and_never_shrinks() -> None:
    first_DK = grown(torch.zeros(4, 0), torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0])), 0.7)
    new_DD = torch.diag(torch.tensor([5.0, 0.0, 3.0, 2.0]))
    for threshold, held in ((0.49, [0]), (0.6, [0, 2]), (0.79, [0, 2]), (0.9, [0, 2, 3])):
        basis_DK = grown(first_DK, new_DD, threshold)
        expected = torch.tensor([float(i in held) for i in range(4)])
        torch.testing.assert_close(basis_DK @ basis_DK.T, torch.diag(expected))
    model = tiny_model("dsa")
    strategy = gpm(model)
    for task in range(3):
        before = dict(strategy.memory)
        tune(model, strategy, steps=3, rate=3e-2)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        for key, then_DK in before.items():
            now_DK = strategy.memory[key]
            assert then_DK.shape[1] <= now_DK.shape[1] <= len(now_DK)
            torch.testing.assert_close(
                now_DK.T @ now_DK, torch.eye(now_DK.shape[1]), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(now_DK @ (now_DK.T @ then_DK), then_DK, rtol=0, atol=1e-5)
    assert sum(v.shape[1] for v in before.values()) > 0


def test_every_step_of_adamw_keeps_off_the_subspaces() -> None:
    model = tiny_model("dsa")
    strategy = gpm(model)
    for change in steps_of(model, strategy):
        assert change.keys() == strategy.trainable(model).lr_scales.keys()
        for name, step in change.items():
            basis_DK = strategy.memory[f"subspace.{name}"]
            assert 0 < basis_DK.shape[1] < len(basis_DK)
            assert step.norm() > 0
            assert (step @ basis_DK).norm() < 1e-4 * step.norm()


@pytest.mark.parametrize("arch", ["dense", "dsa"])
def test_matrices_move_and_all_else_stands_still(arch: str) -> None:
    model = tiny_model(arch)
    before = state(model)
    strategy = gpm(model)
    tune(model, strategy)
    for name, now in state(model).items():
        still = group_of(name) in ("indexer", "embedding", "norm") or now.dim() < 2
        assert torch.equal(now, before[name]) == still, name


def test_beside_a_rule_that_moves_all_gpm_still_leaves_the_embedding_out() -> None:
    model = tiny_model("dsa")
    both = Combined({"ewc": Ewc(EwcSettings(passes=2)), "gpm": Gpm(GpmSettings())})
    whole = Gpm(GpmSettings()).trainable(model)
    assert list(both.trainable(model).lr_scales) == list(whole.lr_scales)


def test_a_network_of_experts_is_refused_in_one_line() -> None:
    model = tiny_model("dsa", ffn="moe", num_experts=4, ffn_width=96)
    with pytest.raises(ValueError, match="gpm: each expert"):
        Gpm(GpmSettings()).trainable(model)


def test_gpm_refuses_a_mask_that_moves_parts_of_matrices() -> None:
    with pytest.raises(ValueError, match="gpm needs whole matrices"):
        masked("gpm", passes=6)
