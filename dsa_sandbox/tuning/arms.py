"""Arms of a tuning: each is a `finetune` cell, found in the home or made by a child process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import children
from dsa_sandbox.errors import RunFailed
from dsa_sandbox.listener import Listener
from dsa_sandbox.metrics import arm
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.study.grid import Plan
from dsa_sandbox.tuning.grids import Config
from dsa_sandbox.workers import Cell, run_cells

# measurements that tuning does not read
BRIEF = (
    "eval.stories=0",
    "eval.recovery_tasks=0",
    "eval.dense_tasks=[]",
    "eval.pairs=1",
    "eval.recall_items=1",
    "eval.full_every=1000",
)
DIVERGED = "lower finetune.learning_rate"  # in the message of an arm whose loss is not finite


class Arm(NamedTuple):
    """One strategy on one architecture with one configuration."""

    arch: str
    strategy: str
    experiment: str
    config: tuple[tuple[str, float], ...]  # hashable; see `values`
    num_tasks: int  # the first of the development stream
    level: float

    @property
    def values(self) -> Config:
        """The configuration."""
        return dict(self.config)

    @property
    def label(self) -> str:
        """The name of the arm in notes: network, strategy, configuration, tasks."""
        values = " ".join(f"{key.partition('.')[2]} {value:g}" for key, value in self.config)
        kind = "single tasks" if self.experiment == "single" else "tasks"
        return f"{self.arch} {self.strategy}, {values}, {self.num_tasks} {kind}"

    def options(self) -> list[str]:
        """Options of `finetune` for this arm, beside those of every arm of a study."""
        sets = [f"finetune.experiment={self.experiment}", f"finetune.level={self.level}", *BRIEF]
        sets += [f"{key}={value!r}" for key, value in self.config]
        options = ["--first", str(self.num_tasks)]
        return options + [part for text in sets for part in ("--set", text)]


class Made(NamedTuple):
    """The bases, by architecture, and the stream that the arms learn."""

    plan: Plan
    bases: Mapping[str, Path]
    stream: Path


def figures_of(arms: list[Arm], made: Made, listener: Listener) -> dict[Arm, dict[str, Any] | None]:
    """Figures of each arm; None for one that has diverged."""
    plan = made.plan
    arms = list(dict.fromkeys(arms))
    cells = [
        Cell(
            one.label,
            plan.arm(one.arch, one.strategy, made.bases[one.arch], made.stream, one.options()),
        )
        for one in arms
    ]
    paths = run_cells(
        cells,
        plan.jobs,
        lambda cell: children.start(cell.arguments, plan.threads),
        listener,
        tolerated=lambda cell, error: has_diverged(error),
    )
    found = {one: paths.get(one.label) for one in arms}
    return {one: arm.figures_of(Run(path)) if path else None for one, path in found.items()}


def has_diverged(error: Exception) -> bool:
    """Whether an arm has failed with a loss that is not finite: its rate is too high."""
    return isinstance(error, RunFailed) and DIVERGED in str(error)
