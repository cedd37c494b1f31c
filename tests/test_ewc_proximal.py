"""EWC as a proximal step, against its closed form."""

import pytest
import torch
from test_ewc import (
    assert_bit_equal,
    part,
    pretraining,
    state,
    tune,
)
from test_penalties import made
from tiny import noise, tiny_model, trainee_of

from dsa_sandbox.strategies.base import NoSettings, Trainable, Trainee
from dsa_sandbox.strategies.ewc import EwcSettings
from dsa_sandbox.strategies.ewc_proximal import EwcProximal
from dsa_sandbox.strategies.sgd import Sequential


def test_the_proximal_step_is_its_closed_form() -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    strategy = made("ewc-proximal", model, strength=40.0)
    for anchor in part(strategy.memory, "anchor.").values():
        anchor.add_(0.05 * noise(*anchor.shape))
    tune(plain, Sequential(NoSettings()), steps=1, rate=3e-3)
    tune(model, strategy, steps=1, rate=3e-3)
    stepped, now, scale = state(plain), state(model), strategy.memory["scale"]
    anchors = part(strategy.memory, "anchor.")
    for name, fisher in part(strategy.memory, "fisher.").items():
        pull = 3e-3 * 40.0 * scale * fisher
        expected = (stepped[name] + pull * anchors[name]) / (1 + pull)
        torch.testing.assert_close(now[name], expected, rtol=1e-5, atol=1e-7)


def test_a_proximal_step_goes_by_the_rate_at_which_its_weight_moves() -> None:
    model = tiny_model("dsa")
    strategy = made("ewc-proximal", model, strength=40.0)
    names = strategy.trainable(model).lr_scales
    trainee = Trainee(model, Trainable({n: 1.0 + 3.0 * (i % 2) for i, n in enumerate(names)}))
    for anchor in part(strategy.memory, "anchor.").values():
        anchor.add_(0.05 * noise(*anchor.shape))
    before = state(model)
    strategy.after_step(trainee, 3e-3)
    for name, rate in trainee.lr_scales.items():
        fisher, anchor = (strategy.memory[f"{kind}.{name}"] for kind in ("fisher", "anchor"))
        pull = 3e-3 * rate * 40.0 * strategy.memory["scale"] * fisher
        expected = (before[name] + pull * anchor) / (1 + pull)
        torch.testing.assert_close(state(model)[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strength", [1e30, 1e300])
def test_a_boundless_proximal_step_ends_at_the_anchor_where_the_fisher_is_not_zero(
    strength: float,
) -> None:
    free, model = tiny_model("dsa"), tiny_model("dsa")
    base = state(model)
    strategy = made("ewc-proximal", model, strength=strength)
    for fisher in part(strategy.memory, "fisher.").values():
        fisher.flatten()[::3] = 0.0
    tune(free, Sequential(NoSettings()), steps=1)
    tune(model, strategy, steps=1)
    stepped, now = state(free), state(model)
    for name, fisher in part(strategy.memory, "fisher.").items():
        held = fisher > 0
        assert now[name].isfinite().all()
        torch.testing.assert_close(now[name][held], base[name][held], rtol=1e-6, atol=1e-8)
        assert torch.equal(now[name][~held], stepped[name][~held])


def test_a_proximal_step_of_strength_zero_is_sgd_bit_for_bit() -> None:
    plain, model = tiny_model("dsa"), tiny_model("dsa")
    strategy = EwcProximal(EwcSettings(strength=0.0, passes=2))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=0)
    tune(plain, Sequential(NoSettings()))
    tune(model, strategy)
    assert_bit_equal(state(plain), state(model))
