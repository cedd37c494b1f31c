"""When the training on a task ends, and what is measured until then.

* `UntilLevel`: the stream. A task ends at the first check with a discrimination of at least the
  level; then the last step's weights are bisected, so that arms neither fall short nor overshoot.
* `FixedSteps`: a given number of steps.
* `Trajectory`: single tasks. Discrimination is measured along the way, far beyond the level.
* `AsArm`: the placebo takes the steps of the arm that it belongs to.

All measure at the weights that the strategy evaluates (WiSE-FT: the interpolated ones).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.metrics import damage
from dsa_sandbox.metrics.discrimination import Parts
from dsa_sandbox.training.trainer import Trainer

NEAR = 0.1  # this far below the level, every step is checked
HALVINGS = 5  # of the last step: to 1/32 of what it moved
ENOUGH = 0.95  # discrimination at which a trajectory ends
MAX_BYTES = 2**30  # of weights that a trajectory keeps

Weights = Mapping[str, Tensor]


class Schedule:
    """A task's end. `done` says that no further step is taken."""

    def __init__(self, trainer: Trainer, max_steps: int) -> None:
        self.trainer, self.max_steps = trainer, max_steps
        self.done = False

    def begin(self) -> dict[str, Any]:
        """Before the first step; fields of a line of metrics.jsonl, empty for no line."""
        return {}

    def after(self, step: int) -> dict[str, Any]:
        """After step number `step` (from 1); fields of its line."""
        self.done = step >= self.max_steps
        return {}

    def finish(self) -> dict[str, Any]:
        """Sets the weights that are kept; fields of the line that ends the task."""
        return {}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Further lines of metrics.jsonl, written before the one that ends the task."""
        return iter(())

    def state(self) -> dict[str, Any]:
        """Values that a checkpoint holds, as JSON."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint holds."""
        return {}

    def restore(self, state: Mapping[str, Any], tensors: Weights) -> None:
        """Take over the values and tensors of a checkpoint."""


class FixedSteps(Schedule):
    """Ends after `max_steps`; the stop items are read once, at the end."""

    def __init__(
        self, trainer: Trainer, max_steps: int, read: Callable[[], list[Parts]], level: float
    ) -> None:
        super().__init__(trainer, max_steps)
        self.read, self.level = read, level

    def finish(self) -> dict[str, Any]:
        parts = self.read()
        line: dict[str, Any] = {"capped": False}
        if not any(math.isnan(one.least) for one in parts):  # rows may have no stop items
            reached = [one.least >= self.level for one in parts]
            line |= {"learned": share(reached), "stop": worst(parts).row()}
        return line


class UntilLevel(Schedule):
    """Ends at the level, after `patience` steps without a new best, or after `max_steps`.

    `read` gives the stop items' parts, one for each task of the stage; the least counts. It is read
    every `every` steps, and after each step (of every task) once it is within NEAR of the level.
    A task that ends below the level keeps the weights of its best check.
    """

    def __init__(
        self, trainer: Trainer, plan: Finetune, read: Callable[[], list[Parts]], num_tasks: int = 1
    ) -> None:
        super().__init__(trainer, plan.max_steps * num_tasks)
        self.read, self.level = read, plan.level
        self.each = num_tasks  # steps that give every task one
        self.every = plan.check_every * num_tasks
        self.patience = plan.patience * num_tasks
        self.checks: list[tuple[int, float]] = []  # step, value of each check
        self.parts: list[Parts] = []  # of the last check
        self.below: Weights = {}  # weights of the last check, which was below the level
        self.best: Weights = {}  # of the best check
        self.best_step = 0

    def begin(self) -> dict[str, Any]:
        """A task whose items are already at the level takes no step."""
        return self.check(0)

    def after(self, step: int) -> dict[str, Any]:
        value = self.checks[-1][1]
        gap = self.each if value >= self.level - NEAR else self.every
        if step % gap and step < self.max_steps:
            return {}
        return self.check(step)

    def check(self, step: int) -> dict[str, Any]:
        """Read the stop items, and keep the weights that may be wanted again."""
        self.parts = self.read()
        value = worst(self.parts).least
        self.checks.append((step, value))
        if value >= self.level:
            self.done = True
        else:
            self.keep(step, value)
            self.done = step - self.best_step >= self.patience or step >= self.max_steps
        return {"stop": worst(self.parts).row()}

    def keep(self, step: int, value: float) -> None:
        """Weights of a check below the level; a best one is the first with its value."""
        self.below = self.trainer.snapshot()
        earlier = [known for at, known in self.checks if at < step]
        if not earlier or value > max(earlier):
            self.best, self.best_step = self.below, step

    def finish(self) -> dict[str, Any]:
        """At the level: bisect the last interval. Below it: the weights of the best check."""
        reached = self.checks[-1][1] >= self.level
        line: dict[str, Any] = {"learned": reached, "capped": not reached}
        if self.each > 1:
            line["learned"] = share([one.least >= self.level for one in self.parts])
        if not reached:
            self.trainer.put(self.best)
            self.parts = self.read()
            line |= {"best_step": self.best_step}
        elif len(self.checks) > 1:
            line |= self.bisect()
        final = worst(self.parts)
        return line | {"stop": final.row(), "overshoot": final.least - self.level}

    def bisect(self) -> dict[str, Any]:
        """The smallest of 32 equal moves from the last check below the level that reaches it.

        Entries that are equal at both ends stay bit-equal: `lerp` adds a share of 0.
        """
        low, high = 0.0, 1.0
        below, above = self.below, self.trainer.snapshot()
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            self.trainer.put_between(below, above, middle)
            parts = self.read()
            if worst(parts).least >= self.level:
                high, self.parts = middle, parts
            else:
                low = middle
        self.trainer.put_between(below, above, high)
        return {"from_step": self.checks[-2][0], "bisected": high}

    def state(self) -> dict[str, Any]:
        return {"checks": self.checks, "best_step": self.best_step}

    def tensors(self) -> dict[str, Tensor]:
        kept = {f"below.{name}": tensor for name, tensor in self.below.items()}
        if self.best is not self.below:  # else one copy will do
            kept |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        return kept

    def restore(self, state: Mapping[str, Any], tensors: Weights) -> None:
        self.checks = [(int(step), float(value)) for step, value in state["checks"]]
        self.best_step = int(state["best_step"])
        self.below = under("below.", tensors)
        self.best = under("best.", tensors) or self.below


class Trajectory(Schedule):
    """A single task: validation items are measured every `check_every` steps.

    It ends at a discrimination of ENOUGH, after `patience` steps without a new best, or after
    `max_steps`. What costs more (held-out text, the other items) is measured only at the steps that
    bracket a level. Which these are is known at the end, so weights are kept until then.
    """

    def __init__(
        self,
        trainer: Trainer,
        plan: Finetune,
        read: Callable[[], Parts],
        details: Callable[[], dict[str, Any]],
        levels: Iterable[float] = damage.LEVELS,
    ) -> None:
        super().__init__(trainer, plan.max_steps)
        self.read, self.details = read, details
        self.levels = sorted({*levels, plan.level})
        self.every, self.patience = plan.check_every, plan.patience
        self.steps: list[int] = []
        self.values: list[float] = []
        self.weights: dict[int, Weights] = {}  # by number of the measurement
        self.measured: dict[int, dict[str, Any]] = {}  # details by number of the measurement

    def begin(self) -> dict[str, Any]:
        return self.measure(0)

    def after(self, step: int) -> dict[str, Any]:
        if step % self.every and step < self.max_steps:
            return {}
        return self.measure(step)

    def measure(self, step: int) -> dict[str, Any]:
        """Read the validation items and keep the weights."""
        parts = self.read()
        self.steps.append(step)
        self.values.append(parts.discrimination)
        self.weights[len(self.values) - 1] = self.trainer.snapshot()
        needed = damage.first_needed(self.values, self.levels[0])
        self.weights = {n: kept for n, kept in self.weights.items() if n >= needed}
        self.measured = {n: kept for n, kept in self.measured.items() if n >= needed}
        if sum(tensor.nbytes for kept in self.weights.values() for tensor in kept.values()) > (
            MAX_BYTES
        ):
            self.measure_kept()
        best = self.steps[self.values.index(max(self.values))]
        self.done = (
            self.values[-1] >= ENOUGH or step - best >= self.patience or step >= self.max_steps
        )
        return {"validation": parts.row()}

    def measure_kept(self) -> None:
        """Measure the details of all weights that are kept, in exchange for these weights."""
        now = self.trainer.snapshot()
        for number, kept in self.weights.items():
            self.trainer.put(kept)
            self.measured[number] = self.details()
        self.trainer.put(now)
        self.weights = {}

    def finish(self) -> dict[str, Any]:
        needed = damage.brackets(self.values, self.levels)
        self.weights = {n: kept for n, kept in self.weights.items() if n in needed}
        self.measure_kept()
        self.measured = {n: self.measured[n] for n in sorted(needed)}
        return {"learned": max(self.values) >= ENOUGH, "capped": self.steps[-1] >= self.max_steps}

    def lines(self) -> Iterator[dict[str, Any]]:
        for number, details in self.measured.items():
            yield {"at": self.steps[number], **details}

    def state(self) -> dict[str, Any]:
        """Weights are measured rather than stored: figures are small."""
        self.measure_kept()
        measured = {str(number): details for number, details in self.measured.items()}
        return {"steps": self.steps, "values": self.values, "measured": measured}

    def restore(self, state: Mapping[str, Any], tensors: Weights) -> None:
        self.steps, self.values = list(state["steps"]), list(state["values"])
        self.measured = {int(number): details for number, details in state["measured"].items()}


class AsArm(Schedule):
    """The placebo: as many steps as the arm took, measured where the arm's damage was.

    `plan` is the arm's task: its last step, the steps at which its details were measured, and the
    interval and share of a bisection.
    """

    def __init__(
        self, trainer: Trainer, plan: Mapping[str, Any], details: Callable[[], dict[str, Any]]
    ) -> None:
        super().__init__(trainer, int(plan["steps"]))
        self.plan, self.details = plan, details
        self.found: list[dict[str, Any]] = []
        self.below: Weights = {}

    def begin(self) -> dict[str, Any]:
        self.visit(0)
        self.done = self.max_steps == 0
        return {}

    def after(self, step: int) -> dict[str, Any]:
        self.visit(step)
        return super().after(step)

    def visit(self, step: int) -> None:
        """Measure at, or keep the weights of, a step that the arm's task names."""
        if step in self.plan["at"]:
            self.found.append({"at": step, **self.details()})
        if step == self.plan.get("from_step"):
            self.below = self.trainer.snapshot()

    def finish(self) -> dict[str, Any]:
        if self.below:
            self.trainer.put_between(
                self.below, self.trainer.snapshot(), float(self.plan["bisected"])
            )
        return {"capped": False}

    def lines(self) -> Iterator[dict[str, Any]]:
        return iter(self.found)

    def state(self) -> dict[str, Any]:
        return {"found": self.found}

    def tensors(self) -> dict[str, Tensor]:
        return {f"below.{name}": tensor for name, tensor in self.below.items()}

    def restore(self, state: Mapping[str, Any], tensors: Weights) -> None:
        self.found = list(state["found"])
        self.below = under("below.", tensors)


def under(prefix: str, tensors: Weights) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def worst(parts: list[Parts]) -> Parts:
    """The parts of the task with the least discrimination; the first of several."""
    return min(parts, key=lambda one: one.least)


def share(reached: list[bool]) -> bool | float:
    """Whether a single task has reached the level, or the share of several."""
    return reached[0] if len(reached) == 1 else sum(reached) / len(reached)
