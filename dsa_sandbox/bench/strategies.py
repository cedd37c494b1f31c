"""Time of a step and kept memory of each strategy, relative to `sgd` on the same network.

Each strategy has seen pre-training text and has one task behind it, so that what it remembers, it
has. `avalanche-lib`'s EWC penalty is timed in the same step, where it is installed.
"""

import importlib.util
import statistics
from collections.abc import Iterable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dsa_sandbox.bench.networks import num_parameters, own_network, random_batch
from dsa_sandbox.bench.turns import Row, Setup, take_turns
from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies as registered
from dsa_sandbox.strategies.base import NoSettings, Strategy, Trainee
from dsa_sandbox.training.trainer import Trainer

ARCHS = ("dense", "dsa")
NUM_SEQUENCES = 32  # of pre-training text and of the earlier task: enough for every kind of memory
PEER = "avalanche ewc (online)"


def has_avalanche() -> bool:
    """Whether avalanche-lib is installed, whose EWC is timed too."""
    return importlib.util.find_spec("avalanche") is not None


class AvalancheEwc(Strategy):
    """The penalty of avalanche-lib's EWCPlugin, computed by its own code."""

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        from avalanche.training.plugins import EWCPlugin
        from avalanche.training.utils import copy_params_dict

        self.plugin = EWCPlugin(0.1, mode="online", decay_factor=1.0)
        self.plugin.saved_params[0] = copy_params_dict(trainee.model)
        self.plugin.importances[0] = copy_params_dict(trainee.model)
        self.memory = {
            f"{kind}.{name}": parameter
            for kind in ("f", "a")
            for name, parameter in trainee.model.named_parameters()
        }

    def penalty(self, trainee: Trainee) -> Tensor | None:
        loss = torch.zeros((), device=trainee.device)
        clock = SimpleNamespace(train_exp_counter=1)
        state = SimpleNamespace(model=trainee.model, device=trainee.device, loss=loss, clock=clock)
        self.plugin.before_backward(state)
        return state.loss


def strategies(setup: Setup) -> list[dict[str, Any]]:
    """A table per length: ms per step, ratio to `sgd`, and kept memory, by strategy."""
    return [of_length(setup, length) for length in setup.shape.lengths]


def of_length(setup: Setup, length: int) -> dict[str, Any]:
    """The table of one length."""
    batch = random_batch(setup, max(1, setup.shape.tokens // length), length)
    entries = []
    for arch in ARCHS:
        made = dict(in_second_task(setup, arch, length, batch))
        steps = {name: Row(name, step, 0) for name, (_, step) in made.items()}
        times = take_turns(list(steps.values()), setup, f"strategies, {arch}")
        for name, (trainer, _) in made.items():
            kept = sum(t.numel() * t.element_size() for t in trainer.strategy.memory.values())
            ratios = [here / there for here, there in zip(times[name], times["sgd"])]
            entries.append(
                {
                    "name": f"{arch} {name}",
                    "moves": sum(row["count"] for row in trainer.mask().values()),
                    "ms": 1000 * statistics.median(times[name]),
                    "time_over_sgd": statistics.median(ratios),
                    "megabytes": kept / 1e6,
                    "over_weights": kept / 4 / num_parameters(trainer.model),
                }
            )
    return {"length": length, "batch": len(batch.tokens_BT), "rows": entries}


def in_second_task(
    setup: Setup, arch: str, length: int, batch: Batch
) -> Iterator[tuple[str, tuple[Trainer, Any]]]:
    """Trainer of every strategy that is no bound, and a function that takes its next step.

    Each strategy has finished a first task and is in its second.
    """
    several = random_batch(setup, NUM_SEQUENCES, length)
    singles = [Batch(tokens_T[None], targets_T[None]) for tokens_T, targets_T in zip(*several)]
    # an indexer that learns beside costs every strategy the same
    plan = Finetune(warmup_steps=0, max_steps=10**9, indexer="frozen")
    chosen = {n: registered[n] for n in registered if registered[n].role != "bound"}
    peer = {PEER: AvalancheEwc} if has_avalanche() else {}
    for name, made in {**chosen, **peer}.items():
        network, base = (own_network(setup, arch, length) for _ in range(2))
        strategy = made(NoSettings() if made is AvalancheEwc else made.Settings())
        trainer = Trainer(strategy, network, base, plan)
        trainee = trainer.trainee
        base.requires_grad_(True)
        strategy.prepare(trainee.on(base), iter(singles), seed=0)
        strategy.start_task(trainee)
        strategy.finish_task(trainee, iter(singles), seed=1)
        strategy.start_task(trainee)
        steps = trainer.steps(
            trainer.optimizer(),
            lambda step: [batch],
            seed=0,
            task=1,
            autocast=setup.engine.autocast,
        )
        yield name, (trainer, partial(next, steps))
