"""What a strategy may do to fine-tuning: choose what moves, add a loss, change gradients, remember.

The loop never asks which strategy it was given. A strategy of one's own is a subclass with a name:

    @strategies.register("anchor")
    class Anchor(Strategy): ...

Of a step, in this order: `before_step`, then the language loss with `beside`, their gradients,
`penalty` and its gradient, `project`, the clipping, the optimiser, `after_step`.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.sizes import group_of


class NoSettings(Frozen):
    """A strategy without settings."""


class Place(NamedTuple):
    """Where a stream stands: all that a draw may depend on beside what is remembered."""

    seed: int
    task: int  # from 0
    step: int  # of this task, from 0

    def generator(self) -> torch.Generator:
        """Randomness of this place alone, on the CPU."""
        (state,) = np.random.SeedSequence(self).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state) >> 1)


class Strategy:
    """Train everything but the indexer, one task after another; subclasses change that."""

    Settings: ClassVar[type[Frozen]] = NoSettings
    # a mask says what moves, a bound how tasks follow each other; one of each may be combined with
    # rules (`acft+ewc`)
    role: ClassVar[Literal["rule", "mask", "bound"]] = "rule"
    # tasks one after another, all at once, each alone from the base, or not at all
    course: Literal["sequence", "together", "apart", "nothing"] = "sequence"
    # what it has to know of others that are at work beside it
    moves_entries: ClassVar[bool] = True  # whether tensors may move in part
    makes_weights: ClassVar[bool] = False  # in each step, from what the optimiser moves
    corrects_weights: ClassVar[bool] = False  # after each step, from what they have become
    moving: dict[str, float] | None = None  # what moves, where something else decides it

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.memory: dict[str, Tensor] = {}  # what a checkpoint keeps
        self.free: dict[str, Tensor] = {}  # True where tensors move that a mask moves in part

    # --- what moves ---------------------------------------------------------------------------

    def moves(self, model: Transformer) -> dict[str, float]:
        """Names of the parameters that may move, with a multiplier of the learning rate each.

        Raises ValueError where the network lacks what the strategy moves. The indexer stays: no
        language gradient reaches it.
        """
        return {n: 1.0 for n, _ in model.named_parameters() if group_of(n) != "indexer"}

    def moved(self, model: Transformer) -> dict[str, nn.Parameter]:
        """The parameters that move in this run by name: a mask combined with the rule decides."""
        names = self.moves(model) if self.moving is None else self.moving
        return {name: model.get_parameter(name) for name in names}

    def entries(self, model: Transformer) -> dict[str, Tensor]:
        """Of parameters that move in part, True where they move (the parameter's shape)."""
        return {}

    def trained(self, model: Transformer) -> dict[str, nn.Parameter]:
        """What the optimiser moves, where that is not the parameters that `moves` names."""
        return {}

    # --- before the stream --------------------------------------------------------------------

    def memory_bytes(self, model: Transformer, num_tasks: int) -> int:
        """Most that the strategy will remember, an estimate made before the run."""
        return 0

    def prepare(self, model: Transformer, pretraining: Iterable[Batch], seed: int) -> None:
        """Before the first task, once; `pretraining` yields held-in sequences, one a batch."""

    def cache_key(self) -> dict[str, Any] | None:
        """What `prepare` depends on beside model, data and mask, where it is worth keeping."""
        return None

    # --- a task -------------------------------------------------------------------------------

    def start_task(self, model: Transformer) -> None:
        """Before the first step of a task."""

    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        """Batches to be learned in this step beside the task's own; all draws are made here."""
        return []

    def beside(self, model: Transformer, batch: Batch, x_BTD: Tensor) -> Tensor | None:
        """Beside the loss of a batch, given its hidden states (a 0-d tensor): a mean over it.

        Of several batches in a step, the mean is taken by their targets, as for the loss.
        """
        return None

    def penalty(self, model: Transformer) -> Tensor | None:
        """Added to the loss of each step (a 0-d tensor), or nothing.

        It is asked when `.grad` holds the gradients of the language loss alone (with `beside`).
        """
        return None

    def project(self, model: Transformer) -> None:
        """Change the gradients of a step in place, before they are clipped."""

    def after_step(self, model: Transformer, rate: float) -> None:
        """After the optimiser has moved the weights; `rate` is that of the step, unmultiplied."""

    def finish_task(self, model: Transformer, batches: Iterable[Batch], seed: int) -> None:
        """After the last step of a task; `batches` are its stories, one a batch, once."""

    # --- what is measured ---------------------------------------------------------------------

    def measured(self, model: Transformer) -> AbstractContextManager[None]:
        """Within it, `model` is the network that rows are measured on."""
        return nullcontext()

    def remarks(self) -> dict[str, Any]:
        """What the row of a task says beside its figures."""
        return {}

    def front(self, model: Transformer) -> Iterator[dict[str, float]]:
        """Other networks that one run gives: what each is called, while `model` is that network."""
        return iter(())
