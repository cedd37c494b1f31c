"""Relearning of forgotten tasks: a few steps on a copy of the network."""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from dsa_sandbox.core.transformer import Transformer

STEPS = (0, 1, 5, 10)


class Done(Protocol):
    """A training step that was taken."""

    @property
    def number(self) -> int:
        """Number of this step, counted from 1."""


def recovery(
    model: Transformer,
    tasks: Iterable[int],
    training: Callable[[Transformer, int], Iterator[Done]],
    right: Callable[[Transformer, int], float],
) -> list[dict[str, Any]]:
    """For each task the share of its items exact after STEPS optimiser steps on its own stories.

    `training(network, task)` trains a fresh copy of `model` and yields after each step;
    `right(network, task)` measures the share.
    """
    rows = []
    for task in tasks:
        learner = copy.deepcopy(model)
        rows.append({"task": task, "steps": 0, "right": right(learner, task)})
        for step in training(learner, task):
            if step.number in STEPS:
                rows.append({"task": task, "steps": step.number, "right": right(learner, task)})
    return rows
