"""Strategies that project gradients: facts that hold for all of them.

N trained numbers.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_ewc import pretraining, state, story, tune
from test_penalties import stories
from tiny import tiny_model, trainee_of
from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.acft import Acft, AcftSettings
from dsa_sandbox.strategies.base import Strategy
from dsa_sandbox.strategies.combined import Combined
from dsa_sandbox.training.trainer import Trainer

PROJECTING = ("agem", "ogd", "gpm")
SMALL: dict[str, dict[str, Any]] = {
    "agem": {"size": 8, "batch": 4},
    "ogd": {"directions": 10, "pretraining": 5, "per_task": 2},
    "gpm": {"passes": 6, "threshold": 0.9},
}


def fresh(name: str) -> Strategy:
    cls = strategies[name]
    strategy: Strategy = cls(cls.Settings(**SMALL[name]))
    return strategy


def steps_of(model: Transformer, strategy: Strategy, steps: int = 4) -> Iterator[dict[str, Tensor]]:
    """What each step of a task under AdamW changes."""
    plan = Finetune(indexer="frozen", learning_rate=3e-3, warmup_steps=0, max_steps=steps)
    trainer = Trainer(strategy, model, copy.deepcopy(model), plan)
    strategy.start_task(trainee_of(strategy, model))
    before = state(model)
    for _ in trainer.steps(trainer.optimizer(), story, seed=0, task=0):
        after = state(model)
        yield {name: after[name] - before[name] for name in trainee_of(strategy, model).parameters}
        before = after


@pytest.mark.parametrize("name", PROJECTING)
def test_memory_is_of_what_moves_bounded_and_not_more_than_promised(name: str) -> None:
    model = tiny_model("dsa")
    strategy = Combined({"acft": Acft(AcftSettings()), name: fresh(name)})
    moving = strategy.trainable(model).lr_scales
    assert 0 < len(moving) < len(state(model))
    strategy.prepare(trainee_of(strategy, model), pretraining(), seed=7)
    promised = strategy.memory_bytes(trainee_of(strategy, model), 3)
    before, generator_state = state(model), torch.get_rng_state()
    for task in range(4):
        tune(model, strategy, steps=3)
        strategy.finish_task(trainee_of(strategy, model), stories(seed=task), seed=task)
        size = sum(v.numel() * v.element_size() for v in strategy.memory.values())
        assert size <= promised + 64  # bytes of counts and singular values
        assert not any(value.requires_grad for value in strategy.memory.values())
    for key, now in state(model).items():
        assert torch.equal(now, before[key]) == (key not in moving), key
    assert torch.equal(torch.get_rng_state(), generator_state)


# --- gpm --------------------------------------------------------------------------------------


def masked(name: str, **settings: Any) -> tuple[Any, Trainer]:
    """A rule beside a mask that moves tensors in part."""
    model = tiny_model("dsa")
    rule_cls, mask_cls = strategies[name], strategies["random-mask"]
    parts: dict[str, Strategy] = {
        "random-mask": mask_cls(mask_cls.Settings()),
        name: rule_cls(rule_cls.Settings(**settings)),
    }
    both = Combined(parts)
    plan = Finetune(indexer="frozen", learning_rate=3e-3, warmup_steps=0, max_steps=3)
    trainer = Trainer(both, model, copy.deepcopy(model), plan)
    base = copy.deepcopy(model).requires_grad_(True)
    both.prepare(trainer.trainee.on(base), pretraining(), seed=7)
    both.start_task(trainer.trainee)
    return both.parts[name], trainer
