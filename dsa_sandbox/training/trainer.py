"""Trains a network on one task under a strategy: optimiser, hooks of a step, frozen weights."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.selection import rewarming
from dsa_sandbox.sizes import group_of
from dsa_sandbox.strategies.base import Position, Strategy, Trainee
from dsa_sandbox.training.loop import Phase, Step, train


class Trainer:
    """Applies a strategy to a network that started from `base`; sets `requires_grad`.

    Raises ValueError where the network lacks what the strategy trains.
    """

    def __init__(
        self, strategy: Strategy, model: Transformer, base: Transformer, plan: Finetune
    ) -> None:
        self.strategy, self.model, self.base, self.plan = strategy, model, base, plan
        self.trainee = Trainee(model, strategy.trainable(model))
        self.trains_indexer = plan.indexer == "rewarm"
        rewarming.use(model, self.trains_indexer)
        # the strategy decides about the trunk; the indexer has its own loss, the same in every arm
        self.lr_scales = dict(self.trainee.lr_scales)
        self.indexer: dict[str, nn.Parameter] = {}
        if self.trains_indexer:
            parameters = model.named_parameters()
            self.indexer = {name: p for name, p in parameters if group_of(name) == "indexer"}
            self.lr_scales |= dict.fromkeys(self.indexer, plan.indexer_ratio)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.lr_scales)
        self.added_loss = 0.0  # by the strategy, in this step
        self.num_targets = 0  # of this step
        self.learning_rate = 0.0  # of this step, without lr_scales

    def optimized(self) -> dict[str, nn.Parameter]:
        """The parameters in the optimiser, by name; a strategy's adapters as `<name>.<part>`."""
        adapters = self.strategy.adapters(self.trainee)
        if adapters:
            return adapters | self.indexer
        return {name: self.model.get_parameter(name) for name in self.lr_scales}

    def optimizer(self) -> torch.optim.Optimizer:
        """The same optimiser for every strategy, over the parameters that may change."""
        plan = self.plan
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.optimized().items():
            matrix = name.rpartition(".")[0]  # of an adapter
            scale = self.lr_scales.get(name) or self.lr_scales[matrix]
            groups.setdefault((scale, group_of(name) == "indexer"), []).append(parameter)
        options = [
            {"params": parameters, "lr": plan.learning_rate * scale, "indexer": indexer}
            for (scale, indexer), parameters in groups.items()
        ]
        if plan.optimizer == "sgd":
            return torch.optim.SGD(options, lr=plan.learning_rate)
        fused = self.trainee.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(options, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)

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
        """The steps of a task; `batches_at` gives the batches of its own stories."""

        def batches(step: int) -> list[Batch]:
            self.added_loss = 0.0
            position = Position(seed, task, step)
            self.strategy.start_step(self.trainee, position)
            extra = self.strategy.extra_batches(self.trainee, position)
            found = [*batches_at(step), *(batch.to(self.trainee.device) for batch in extra)]
            self.num_targets = sum(batch.num_targets for batch in found)
            return found

        adapters = list(self.strategy.adapters(self.trainee).values())
        return train(
            self.model,
            optimizer,
            batches,
            self.phase,
            start=start,
            stop=self.plan.max_steps if stop is None else stop,
            clip=self.plan.clip,
            trunk=adapters or None,
            auxiliary_loss=self.auxiliary_loss,
            before_update=self.before_update,
            after_step=self.after_step,
            forward=forward,
            autocast=autocast,
        )

    def phase(self, step: int) -> Phase:
        """Linear warm-up within each task."""
        share = min(1.0, (step + 1) / max(1, self.plan.warmup_steps))
        self.learning_rate = self.plan.learning_rate * share
        return Phase(share, train_indexer=self.trains_indexer, at_targets=True)

    def auxiliary_loss(self, batch: Batch, x_BTD: Tensor) -> Tensor | float:
        """The strategy's loss of one batch, weighted by the batch's share of the step's targets."""
        loss = self.strategy.auxiliary_loss(self.trainee, batch, x_BTD)
        if loss is None:
            return 0.0
        loss = loss * (batch.num_targets / self.num_targets)
        self.added_loss += float(loss.detach())
        return loss

    def before_update(self) -> float:
        """Adds the penalty's gradient, lets the strategy change gradients, applies the masks.

        Returns all that the strategy added to the loss of this step.
        """
        penalty = self.strategy.penalty(self.trainee)
        if penalty is not None:
            penalty.backward()
            self.added_loss += float(penalty.detach())
        self.strategy.transform_gradients(self.trainee)
        for name, mask in self.trainee.masks.items():
            gradient = self.model.get_parameter(name).grad
            if gradient is not None:
                gradient.mul_(mask)
        return self.added_loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Restores masked entries: AdamW's moments or the strategy may have changed them."""
        self.strategy.after_step(self.trainee, self.learning_rate)
        for name, mask in self.trainee.masks.items():
            parameter, at_base = self.model.get_parameter(name), self.base.get_parameter(name)
            parameter.copy_(torch.where(mask, parameter, at_base))

    def snapshot(self) -> dict[str, Tensor]:
        """Copies of all parameters that move, the indexer's where it is trained."""
        return {name: self.model.get_parameter(name).detach().clone() for name in self.lr_scales}

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Set the parameters that move."""
        for name, tensor in weights.items():
            self.model.get_parameter(name).copy_(tensor)

    @torch.no_grad()
    def put_between(
        self, low: Mapping[str, Tensor], high: Mapping[str, Tensor], share: float
    ) -> None:
        """Set low + share (high - low); entries that are equal in both stay bit-equal."""
        for name, tensor in low.items():
            self.model.get_parameter(name).copy_(torch.lerp(tensor, high[name], share))

    def assert_frozen(self) -> None:
        """Every frozen tensor, and every frozen entry of a masked one, is bit-equal to the base's.

        Raises AssertionError.
        """
        for name, parameter in self.model.named_parameters():
            now: Tensor = parameter
            at_base: Tensor = self.base.get_parameter(name)
            if name in self.trainee.masks:
                frozen = ~self.trainee.masks[name]
                now, at_base = now[frozen], at_base[frozen]
            elif name in self.lr_scales:
                continue
            if not torch.equal(now, at_base):
                raise AssertionError(f"{name} is frozen but has changed")

    def mask(self) -> dict[str, dict[str, Any]]:
        """Every trained tensor with its group, number of trained entries, and factor on the rate.

        Of a partly trained tensor also the sha256 of its mask; with adapters, `count` is theirs.
        """
        rows = {}
        for name, scale in self.lr_scales.items():
            count = self.model.get_parameter(name).numel()
            rows[name] = {"group": group_of(name), "count": count, "rate": scale}
            if name in self.trainee.masks:
                mask = self.trainee.masks[name]
                rows[name]["count"] = int(mask.sum())
                rows[name]["entries"] = hashlib.sha256(mask.cpu().numpy().tobytes()).hexdigest()
        adapters = self.strategy.adapters(self.trainee)
        if adapters:
            for name in self.trainee.parameters:
                own = [p.numel() for key, p in adapters.items() if key.startswith(f"{name}.")]
                rows[name]["count"] = sum(own)
        return rows
