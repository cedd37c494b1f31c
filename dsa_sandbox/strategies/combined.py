"""Several strategies at once: a mask, a bound, and rules (`--strategy acft+ewc`)."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.strategies.base import Position, Strategy, Trainable, Trainee


class Combined(Strategy):
    """The mask chooses the parameters, the bound the training protocol; losses add up."""

    def __init__(self, parts: dict[str, Strategy]) -> None:
        """Raises ValueError for two masks, two bounds, and for parts that undo each other."""
        order = ("mask", "bound", "rule")
        self.parts = dict(sorted(parts.items(), key=lambda part: order.index(part[1].role)))
        for role, what in (("mask", "what is trained"), ("bound", "how tasks follow each other")):
            names = [name for name, part in parts.items() if part.role == role]
            if len(names) > 1:
                raise ValueError(f"{' and '.join(names)} both say {what}: choose one of them")
        rules = [name for name, part in parts.items() if part.role == "rule"]
        bounds = [name for name, part in parts.items() if part.role == "bound"]
        if rules and bounds:
            raise ValueError(f"{bounds[0]} is a bound: it goes with a mask, not with {rules[0]}")
        rebuilders = [name for name, part in parts.items() if part.rebuilds_weights]
        correctors = [name for name, part in parts.items() if part.corrects_weights]
        if rebuilders and correctors:
            raise ValueError(
                f"{correctors[0]} corrects the weights after a step, and {rebuilders[0]} makes "
                "them anew in the next: choose one of them"
            )
        if bounds:
            self.protocol = parts[bounds[0]].protocol
        self.masking = next(iter(self.parts))  # the mask where there is one: it was sorted first

    @property
    def memory(self) -> dict[str, Tensor]:
        """The memories of all parts, each key under its part's name."""
        return {
            f"{name}/{key}": value
            for name, part in self.parts.items()
            for key, value in part.memory.items()
        }

    @memory.setter
    def memory(self, values: dict[str, Tensor]) -> None:
        for name, part in self.parts.items():
            own = f"{name}/"
            part.memory = {k.removeprefix(own): v for k, v in values.items() if k.startswith(own)}

    def trainable(self, model: Transformer) -> Trainable:
        """What the mask trains, less what a rule cannot train (gpm: matrices only)."""
        chosen = self.parts[self.masking].trainable(model)
        lr_scales, masks = chosen.lr_scales, chosen.masks
        for part in self.parts.values():
            own = part.trainable(model).lr_scales
            lr_scales = {n: scale for n, scale in lr_scales.items() if n in own}
            masks = {n: mask for n, mask in masks.items() if n in own}
        for name, part in self.parts.items():
            if masks and not part.supports_masks:
                raise ValueError(
                    f"{name} needs whole matrices, but {self.masking} trains parts of them"
                )
        return Trainable(lr_scales, masks)

    def adapters(self, trainee: Trainee) -> dict[str, nn.Parameter]:
        return self.parts[self.masking].adapters(trainee)

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        return sum(part.memory_bytes(trainee, num_tasks) for part in self.parts.values())

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        for part in self.parts.values():
            part.prepare(trainee, pretraining, seed)

    def cache_key(self) -> dict[str, Any] | None:
        keys = {name: part.cache_key() for name, part in self.parts.items()}
        if not any(keys.values()):
            return None
        settings = {name: part.settings.model_dump() for name, part in self.parts.items()}
        return {"parts": keys, "others": {n: settings[n] for n, key in keys.items() if key is None}}

    def start_task(self, trainee: Trainee) -> None:
        for part in self.parts.values():
            part.start_task(trainee)

    def start_step(self, trainee: Trainee, position: Position) -> None:
        for part in self.parts.values():
            part.start_step(trainee, position)

    def extra_batches(self, trainee: Trainee, position: Position) -> list[Batch]:
        batches = []
        for part in self.parts.values():
            batches += part.extra_batches(trainee, position)
        return batches

    def auxiliary_loss(self, trainee: Trainee, batch: Batch, x_BTD: Tensor) -> Tensor | None:
        return total([part.auxiliary_loss(trainee, batch, x_BTD) for part in self.parts.values()])

    def penalty(self, trainee: Trainee) -> Tensor | None:
        return total([part.penalty(trainee) for part in self.parts.values()])

    def transform_gradients(self, trainee: Trainee) -> None:
        # the mask comes last: lora turns the gradients that the rules leave into its adapters'
        for part in reversed(self.parts.values()):
            part.transform_gradients(trainee)

    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        for part in self.parts.values():
            part.after_step(trainee, learning_rate)

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        for part in self.parts.values():
            part.finish_task(trainee, batches, seed)

    @contextmanager
    def evaluation_weights(self, trainee: Trainee) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.evaluation_weights(trainee))
            yield

    def row_notes(self) -> dict[str, Any]:
        return {key: note for part in self.parts.values() for key, note in part.row_notes().items()}

    def tradeoff_points(self, trainee: Trainee) -> Iterator[dict[str, float]]:
        for part in self.parts.values():
            yield from part.tradeoff_points(trainee)


def total(losses: list[Tensor | None]) -> Tensor | None:
    """The sum of the losses that are not None; None where there is none."""
    found = [loss for loss in losses if loss is not None]
    return torch.stack(found).sum() if found else None
