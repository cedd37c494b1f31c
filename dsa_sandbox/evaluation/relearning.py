"""How soon something forgotten comes back: a few steps on a copy that is thrown away."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from dsa_sandbox.core.transformer import Transformer

STEPS = (0, 1, 5, 10)


class Done(Protocol):
    """A training step that was done."""

    @property
    def number(self) -> int:
        """Steps done, from 1."""


def recovery(
    model: Transformer,
    tasks: Iterable[int],
    training: Callable[[Transformer, int], Iterator[Done]],
    right: Callable[[Transformer, int], float],
) -> list[dict[str, Any]]:
    """Share of a task's clozes that are exact after each number of STEPS on its own stories.

    `training(network, task)` yields after each step; it is given a copy of `model` each time.
    """
    rows = []
    for task in tasks:
        learner = copy.deepcopy(model)
        rows.append({"task": task, "steps": 0, "right": right(learner, task)})
        for step in training(learner, task):
            if step.number in STEPS:
                rows.append({"task": task, "steps": step.number, "right": right(learner, task)})
    return rows
