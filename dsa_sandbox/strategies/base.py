"""What a strategy may do to fine-tuning: choose what moves, add a penalty, remember.

The loop never asks which strategy it was given. A strategy of one's own is a subclass with a name:

    @strategies.register("anchor")
    class Anchor(Strategy): ...
"""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor

from dsa_sandbox.core.transformer import Transformer, group_of
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.settings import Frozen


class NoSettings(Frozen):
    """A strategy without settings."""


class Strategy:
    """Train everything but the indexer, one task after another; subclasses change that."""

    Settings: ClassVar[type[Frozen]] = NoSettings

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.memory: dict[str, Tensor] = {}  # what a checkpoint keeps

    def moves(self, model: Transformer) -> dict[str, float]:
        """Names of the parameters that may move, with a multiplier of the learning rate each.

        Raises ValueError where the network lacks what the strategy moves. The indexer stays: no
        language gradient reaches it.
        """
        return {n: 1.0 for n, _ in model.named_parameters() if group_of(n) != "indexer"}

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        """Before the first task, once; `pretraining` yields held-in sequences, one a batch."""

    def cache_key(self) -> dict[str, Any] | None:
        """What `prepare` depends on beside model and data, where its memory is worth keeping."""
        return None

    def start_task(self, model: Transformer) -> None:
        """Before the first step of a task."""

    def penalty(self, model: Transformer) -> Tensor | None:
        """Added to the loss of each step (a 0-d tensor), or nothing."""
        return None

    def after_step(self, model: Transformer) -> None:
        """After the optimiser has moved the weights."""

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        """After the last step of a task; `batches` yields its training stories, one a batch."""
