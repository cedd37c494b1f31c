"""Several strategies at once: a mask, a bound, and rules (`--strategy acft+ewc`)."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.strategies.base import Place, Strategy


class Combined(Strategy):
    """The mask chooses the parameters, the bound the course of tasks; losses add up."""

    def __init__(self, parts: dict[str, Strategy]) -> None:
        """Raises ValueError for two masks, two bounds, and for parts that undo each other."""
        first = ("mask", "bound", "rule")
        self.parts = dict(sorted(parts.items(), key=lambda part: first.index(part[1].role)))
        for role, what in (("mask", "what moves"), ("bound", "how tasks follow each other")):
            names = [name for name, part in parts.items() if part.role == role]
            if len(names) > 1:
                raise ValueError(f"{' and '.join(names)} both say {what}: choose one of them")
        rules = [name for name, part in parts.items() if part.role == "rule"]
        bounds = [name for name, part in parts.items() if part.role == "bound"]
        if rules and bounds:
            raise ValueError(f"{bounds[0]} is a bound: it goes with a mask, not with {rules[0]}")
        makers = [name for name, part in parts.items() if part.makes_weights]
        correctors = [name for name, part in parts.items() if part.corrects_weights]
        if makers and correctors:
            raise ValueError(
                f"{correctors[0]} corrects the weights after a step, and {makers[0]} makes them "
                "anew in the next: choose one of them"
            )
        courses = [part.course for part in parts.values() if part.role == "bound"]
        self.course = courses[0] if courses else "sequence"
        mask = [part for part in parts.values() if part.role == "mask"]
        self.mover = mask[0] if mask else next(iter(parts.values()))

    @property
    def memory(self) -> dict[str, Tensor]:
        """What all parts remember, each under its own name."""
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

    def moves(self, model: Transformer) -> dict[str, float]:
        found = self.mover.moves(model)
        for part in self.parts.values():  # a rule may know what to do with fewer
            own = part.moves(model)
            found = {name: rate for name, rate in found.items() if name in own}
        entries = {name: free for name, free in self.entries(model).items() if name in found}
        for name, part in self.parts.items():
            part.moving, part.free = found, entries
            if entries and not part.moves_entries:
                mask = next(n for n, one in self.parts.items() if one is self.mover)
                raise ValueError(f"{name} holds whole matrices, and {mask} moves parts of them")
        return found

    def entries(self, model: Transformer) -> dict[str, Tensor]:
        return self.mover.entries(model)

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        return self.mover.trained(model)

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        return sum(part.memory_bytes(model, num_tasks) for part in self.parts.values())

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        for part in self.parts.values():
            part.prepare(model, pretraining, seed)

    def cache_key(self) -> dict[str, Any] | None:
        keys = {name: part.cache_key() for name, part in self.parts.items()}
        if not any(keys.values()):
            return None
        settings = {name: part.settings.model_dump() for name, part in self.parts.items()}
        return {"parts": keys, "others": {n: settings[n] for n, key in keys.items() if key is None}}

    def start_task(self, model: Transformer) -> None:
        for part in self.parts.values():
            part.start_task(model)

    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        return [batch for part in self.parts.values() for batch in part.before_step(model, place)]

    def beside(self, model: Transformer, batch: Batch, x_BTD: Tensor) -> Tensor | None:
        return total([part.beside(model, batch, x_BTD) for part in self.parts.values()])

    def penalty(self, model: Transformer) -> Tensor | None:
        return total([part.penalty(model) for part in self.parts.values()])

    def project(self, model: Transformer) -> None:
        for part in reversed(self.parts.values()):  # a mask sees the gradients that come of it all
            part.project(model)

    def after_step(self, model: Transformer, rate: float) -> None:
        for part in self.parts.values():
            part.after_step(model, rate)

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        for part in self.parts.values():
            part.finish_task(model, batches, seed)

    @contextmanager
    def measured(self, model: Transformer) -> Iterator[None]:
        with ExitStack() as stack:
            for part in self.parts.values():
                stack.enter_context(part.measured(model))
            yield

    def remarks(self) -> dict[str, Any]:
        return {key: text for part in self.parts.values() for key, text in part.remarks().items()}

    def front(self, model: Transformer) -> Iterator[dict[str, float]]:
        for part in self.parts.values():
            yield from part.front(model)


def total(losses: list[Tensor | None]) -> Tensor | None:
    """The sum of those that there are."""
    found = [loss for loss in losses if loss is not None]
    return torch.stack(found).sum() if found else None
