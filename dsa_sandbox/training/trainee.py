"""One task under a strategy: what moves, its optimiser, and its part in each step of the loop."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Place, Strategy
from dsa_sandbox.training.loop import Phase, Step, train


class Rule:
    """A strategy at work on a network that began as `base`; sets what requires a gradient.

    Raises ValueError where the network lacks what the strategy moves.
    """

    def __init__(
        self, strategy: Strategy, model: Transformer, base: Transformer, plan: Finetune
    ) -> None:
        self.strategy, self.model, self.base, self.plan = strategy, model, base, plan
        self.moves = dict(strategy.moves(model))
        self.entries = strategy.entries(model)
        self.teaches = plan.indexer == "kl"
        if self.teaches:  # the rule is about the trunk; the indexer learns beside it, in every arm
            rate = plan.indexer_learning_rate / plan.learning_rate
            indexer = [n for n, _ in model.named_parameters() if group_of(n) == "indexer"]
            self.moves |= dict.fromkeys(indexer, rate)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.moves)
        self.added = self.rate = 0.0
        self.num_tokens = 0  # targets of a step

    def trained(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves: parameters by name, or what stands for them by `name.part`."""
        own = self.strategy.trained(self.model)
        indexer = {n: p for n, p in self.model.named_parameters() if group_of(n) == "indexer"}
        if own:
            return own | (indexer if self.teaches else {})
        return {name: self.model.get_parameter(name) for name in self.moves}

    def optimizer(self) -> torch.optim.Optimizer:
        """One optimiser for every strategy, over what may move and nothing else."""
        trained, plan = self.trained(), self.plan
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            rate = self.moves.get(name) or self.moves[name.rpartition(".")[0]]
            groups.setdefault((rate, group_of(name) == "indexer"), []).append(parameter)
        rates = [
            {"params": parameters, "lr": plan.learning_rate * rate, "indexer": indexer}
            for (rate, indexer), parameters in groups.items()
        ]
        if plan.optimizer == "sgd":
            return torch.optim.SGD(rates, lr=plan.learning_rate)
        fused = next(self.model.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.AdamW(rates, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)

    def steps(
        self,
        optimizer: torch.optim.Optimizer,
        batches_at: Callable[[int], list[Batch]],
        *,
        seed: int,
        task: int,
        start: int = 0,
        stop: int | None = None,
        forward: Callable[..., Any] | None = None,
        autocast: torch.dtype | None = None,
    ) -> Iterator[Step]:
        """The steps of a task; `batches_at` gives its own stories."""
        device = next(self.model.parameters()).device

        def batches(step: int) -> list[Batch]:
            self.added = 0.0
            more = self.strategy.before_step(self.model, Place(seed, task, step))
            found = [*batches_at(step), *(batch.to(device) for batch in more)]
            self.num_tokens = sum(batch.num_targets for batch in found)
            return found

        own = list(self.strategy.trained(self.model).values())
        return train(
            self.model,
            optimizer,
            batches,
            self.phase,
            start=start,
            stop=self.plan.max_steps if stop is None else stop,
            clip=self.plan.clip,
            trunk=own or None,
            beside=self.beside,
            before_update=self.before_update,
            after_step=self.after_step,
            forward=forward,
            autocast=autocast,
        )

    def phase(self, step: int) -> Phase:
        """Linear warm-up within each task."""
        share = min(1.0, (step + 1) / max(1, self.plan.warmup_steps))
        self.rate = self.plan.learning_rate * share
        return Phase(share, teach=self.teaches)

    def beside(self, batch: Batch, x_BTD: Tensor) -> Tensor | float:
        """The strategy's loss beside that of a batch; of several, each by its share of tokens."""
        extra = self.strategy.beside(self.model, batch, x_BTD)
        if extra is None:
            return 0.0
        extra = extra * (batch.num_targets / self.num_tokens)
        self.added += float(extra.detach())
        return extra

    def before_update(self) -> float:
        """The penalty's gradient, then what the strategy and its mask make of all of it."""
        extra = self.strategy.penalty(self.model)
        if extra is not None:
            extra.backward()
            self.added += float(extra.detach())
        self.strategy.project(self.model)
        for name, moves in self.entries.items():
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient.mul_(moves)
        return self.added

    @torch.no_grad()
    def after_step(self) -> None:
        """Entries that may not move are put back, whatever optimiser and strategy did to them."""
        self.strategy.after_step(self.model, self.rate)
        for name, moves in self.entries.items():
            parameter, then = self.model.get_parameter(name), self.base.get_parameter(name)
            parameter.copy_(torch.where(moves, parameter, then))

    def assert_frozen(self) -> None:
        """Every tensor that may not move, and every such entry of one, is bit-equal to the base's.

        Raises AssertionError.
        """
        for name, parameter in self.model.named_parameters():
            pair: list[Tensor] = [parameter, self.base.get_parameter(name)]
            if name in self.entries:
                pair = [p[~self.entries[name]] for p in pair]
            elif name in self.moves:
                continue
            if not torch.equal(*pair):
                raise AssertionError(f"{name} is frozen but has moved")

    def mask(self) -> dict[str, dict[str, Any]]:
        """Every tensor that moves with its group, the number of its entries that move, and rate."""
        trained = self.strategy.trained(self.model)
        rows = {}
        for name, rate in self.moves.items():
            parameter = self.model.get_parameter(name)
            count = int(self.entries[name].sum()) if name in self.entries else parameter.numel()
            rows[name] = {"group": group_of(name), "count": count, "rate": rate}
            if name in self.entries:
                rows[name]["entries"] = digest(self.entries[name])
        if trained:  # few numbers that move many: their count is what is compared
            for name in self.strategy.moves(self.model):
                own = [p.numel() for key, p in trained.items() if key.startswith(f"{name}.")]
                rows[name]["count"] = sum(own)
        return rows


def digest(moves: Tensor) -> str:
    """sha256 of which entries move."""
    return hashlib.sha256(moves.cpu().numpy().tobytes()).hexdigest()
