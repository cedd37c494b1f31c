"""The interface of a strategy: what it trains, and its hooks in each step and task.

The training loop never asks which strategy it was given. To add one, subclass `Strategy` and
register it under the name of its file:

    @strategies.register("anchor")
    class Anchor(Strategy): ...

`trainable` decides once, before the first task, which parameters change. Every later hook gets that
decision as a `Trainee`. The hooks of one step, in order: `start_step`, `extra_batches`, the
language loss plus `auxiliary_loss` and their gradients, `penalty` and its gradient,
`transform_gradients`, clipping, the optimiser, `after_step`.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dsa_sandbox.config.settings import Frozen
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import nearest
from dsa_sandbox.sizes import group_of


class NoSettings(Frozen):
    """A strategy without settings."""


class Position(NamedTuple):
    """A step of a stream. Random draws depend on it and on `memory` alone, so that runs resume."""

    seed: int
    task: int  # from 0
    step: int  # of this task, from 0

    def generator(self) -> torch.Generator:
        """A random generator for this step, on the CPU."""
        (state,) = np.random.SeedSequence(self).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state) >> 1)


@dataclass(frozen=True)
class Trainable:
    """Which parameters a strategy changes."""

    lr_scales: dict[str, float]  # parameter name -> factor on the learning rate
    # for parameters that change in part: True at the entries that change, of the parameter's shape
    masks: dict[str, Tensor] = field(default_factory=dict)


class Trainee:
    """A network and which of its parameters may change; every hook of a strategy gets it.

    `parameters` are the trainable ones by name, never the indexer's: no language gradient reaches
    them. `masks` is True at the entries that may change, for parameters that change in part.
    """

    def __init__(self, model: Transformer, trainable: Trainable) -> None:
        """Raises ValueError where a name is no parameter of the network."""
        if not isinstance(trainable, Trainable):
            got = type(trainable).__name__
            raise ValueError(f"trainable has to return a Trainable, not a {got}")
        known = [name for name, _ in model.named_parameters()]
        for name in [*trainable.lr_scales, *trainable.masks]:
            if name not in known:
                raise ValueError(
                    f"trainable names {name}, which is no parameter of this network"
                    f"{nearest(name, known)}"
                )
        self.model = model
        self.lr_scales, self.masks = trainable.lr_scales, trainable.masks
        self.parameters: dict[str, nn.Parameter] = {
            name: model.get_parameter(name) for name in self.lr_scales
        }

    def on(self, model: Transformer) -> "Trainee":
        """The same decision on another network of the same shapes."""
        return Trainee(model, Trainable(self.lr_scales, self.masks))

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    @property
    def num_trainable(self) -> int:
        """Entries of all trainable parameters, masked ones included."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all trainable parameters."""
        return sum(p.numel() * p.element_size() for p in self.parameters.values())

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of a parameter's shape, 0 at the entries that may not change."""
        return tensor * self.masks[name] if name in self.masks else tensor

    def copies(self, prefix: str = "") -> dict[str, Tensor]:
        """Copies of the trainable parameters, by `prefix` and name."""
        return {f"{prefix}{n}": p.detach().clone() for n, p in self.parameters.items()}


class Strategy:
    """Train everything but the indexer, one task after another; subclasses change that."""

    Settings: ClassVar[type[Frozen]] = NoSettings
    # a mask chooses what trains, a bound the training protocol; one of each, or a mask and rules,
    # may be combined (`acft+ewc`)
    role: ClassVar[Literal["rule", "mask", "bound"]] = "rule"
    # tasks one after another, all at once, each alone from the base, or not at all
    protocol: Literal["sequential", "joint", "independent", "none"] = "sequential"
    # what Combined has to know to refuse parts that undo each other
    supports_masks: ClassVar[bool] = True  # parameters may change in part
    rebuilds_weights: ClassVar[bool] = False  # each step, from adapters that the optimiser trains
    corrects_weights: ClassVar[bool] = False  # changes weights after the optimiser's step

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.memory: dict[str, Tensor] = {}  # saved in every checkpoint

    # --- what is trained ----------------------------------------------------------------------

    def trainable(self, model: Transformer) -> Trainable:
        """The parameters that change; decided once, before the first task.

        Raises ValueError where the network lacks what the strategy trains.
        """
        names = [name for name, _ in model.named_parameters() if group_of(name) != "indexer"]
        return Trainable(dict.fromkeys(names, 1.0))

    def adapters(self, trainee: Trainee) -> dict[str, nn.Parameter]:
        """Parameters that the optimiser trains instead, by `<name of the parameter>.<part>`.

        Empty where it trains the network's own parameters.
        """
        return {}

    # --- before the stream --------------------------------------------------------------------

    def memory_bytes(self, trainee: Trainee, num_tasks: int) -> int:
        """Estimate of the most memory that the strategy will hold, made before the run."""
        return 0

    def prepare(self, trainee: Trainee, pretraining: Iterable[Batch], seed: int) -> None:
        """Once before the first task; `pretraining` yields training sequences, one a batch."""

    def cache_key(self) -> dict[str, Any] | None:
        """What the result of `prepare` depends on, beside network, text, seed and mask.

        None where it is cheap enough to be computed for every arm.
        """
        return None

    # --- a task -------------------------------------------------------------------------------

    def start_task(self, trainee: Trainee) -> None:
        """Before the first step of a task."""

    def start_step(self, trainee: Trainee, position: Position) -> None:
        """Before a step; what is drawn at random for it is drawn here or in `extra_batches`."""

    def extra_batches(self, trainee: Trainee, position: Position) -> list[Batch]:
        """Batches that are learned in this step together with the task's own."""
        return []

    def auxiliary_loss(self, trainee: Trainee, batch: Batch, x_BTD: Tensor) -> Tensor | None:
        """Added to the language loss of one batch, a mean over it (0-d), given its hidden states.

        Where a step has several batches, each one counts by its number of targets.
        """
        return None

    def penalty(self, trainee: Trainee) -> Tensor | None:
        """Added to the loss of each step (0-d), or None.

        When it is called, `.grad` holds the gradients of language loss and `auxiliary_loss` alone.
        """
        return None

    def transform_gradients(self, trainee: Trainee) -> None:
        """Change the gradients of a step in place, before they are clipped.

        A parameter's `.grad` may be None. Entries that `masks` excludes are set to 0 afterwards.
        """

    def after_step(self, trainee: Trainee, learning_rate: float) -> None:
        """After the optimiser's step; `learning_rate` is the step's, without `lr_scales`."""

    def finish_task(self, trainee: Trainee, batches: Iterable[Batch], seed: int) -> None:
        """After the last step of a task; `batches` yields each of its stories once, one a batch."""

    # --- what is measured ---------------------------------------------------------------------

    def evaluation_weights(self, trainee: Trainee) -> AbstractContextManager[None]:
        """Within it, the network holds the weights that are measured and saved."""
        return nullcontext()

    def row_notes(self) -> dict[str, Any]:
        """Fields that the strategy adds to a task's line in metrics.jsonl."""
        return {}

    def tradeoff_points(self, trainee: Trainee) -> Iterator[dict[str, float]]:
        """Networks between which a user may choose after the run.

        Yields each one's coordinates while the network holds its weights.
        """
        return iter(())


def check_hooks(strategy: type[Strategy]) -> None:
    """ValueError where a method would never be called, or not with the arguments that it takes.

    A public method that no other method uses is taken for a misspelt hook where its name is close
    to that of a hook.
    """
    hooks = {
        name: hook
        for name, hook in vars(Strategy).items()
        if isinstance(hook, FunctionType) and not name.startswith("_")
    }
    classes = [cls for cls in strategy.__mro__ if issubclass(cls, Strategy) and cls is not Strategy]
    methods: dict[str, FunctionType] = {}
    used: set[str] = set()
    for cls in reversed(classes):
        for name, entry in vars(cls).items():
            function: Any = entry.fget if isinstance(entry, property) else entry
            function = inspect.unwrap(function)  # a decorator hides what its method uses
            if isinstance(function, FunctionType):
                used |= names_in(function.__code__)
            if isinstance(entry, FunctionType):
                methods[name] = entry
    for name, method in methods.items():
        if name in hooks:
            wanted = inspect.signature(hooks[name])
            try:
                inspect.signature(method).bind(*wanted.parameters)
            except TypeError:
                arguments = ", ".join(wanted.parameters)
                raise ValueError(
                    f"its hook {name} has to take the arguments ({arguments})"
                ) from None
        elif not name.startswith("_") and name not in used and (near := nearest(name, [*hooks])):
            raise ValueError(
                f"{name} is no hook, and no method of the class uses it{near}  "
                f"(hooks: {', '.join(hooks)}; a helper's name may begin with _)"
            )


def names_in(code: CodeType) -> set[str]:
    """Names of the globals and attributes that a function uses, with the functions inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*map(names_in, inner))
