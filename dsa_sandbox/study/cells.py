"""The cells of a block: bases, streams of tasks, arms and their placebos, in stages.

A stage needs the runs of earlier ones. A cell is one command line; `asked` is the hash of all that
decides its results, so that a finished cell is known again without starting it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dsa_sandbox.config import rates, resolve
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.study_file import OF_A_BASE, Arm, StudyFile, variant
from dsa_sandbox.data import corpus
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.files import digest_of
from dsa_sandbox.verdict.blocks import ArmKey, base_name

PLAIN = Arm("", "")


class StudyCell(NamedTuple):
    """A cell of a block."""

    seed: int
    verb: str  # pretrain, make-tasks or finetune
    arm: Arm = PLAIN  # or base; make-tasks has none
    experiment: str = ""  # of an arm: stream or single
    placebo: bool = False

    @property
    def variant(self) -> str:
        """In what the arm or base differs from the plain one."""
        return ", ".join(variant(self.arm.sets))

    @property
    def tasks(self) -> dict[str, Any]:
        """In what the tasks differ from those of other arms: their order, or their family."""
        sets = self.arm.sets
        return {key: value for key, value in sets.items() if key.startswith("tasks.")}

    @property
    def kind(self) -> str:
        """The cell's name without its seed: equal cells of all blocks have the same."""
        name = f"{self.arm.arch} {self.arm.strategy}".strip()
        if self.verb != "finetune":
            named = f"{self.verb} {name}".strip()
            return ", ".join(part for part in (named, self.variant) if part)
        parts = [self.experiment] + ["placebo"] * self.placebo
        return ", ".join(part for part in (f"{name} {' '.join(parts)}", self.variant) if part)

    @property
    def label(self) -> str:
        """The cell's name within the study."""
        return f"{self.seed} {self.kind}"

    @property
    def slug(self) -> str:
        """The cell's name as a part of a file name."""
        return re.sub(r"[^A-Za-z0-9.=+_-]+", "-", self.kind)

    @property
    def key(self) -> ArmKey:
        """What names the arm within its block."""
        experiment: Any = self.experiment
        return ArmKey(experiment, self.arm.arch, self.arm.strategy, self.placebo, self.variant)

    @property
    def base(self) -> str:
        """What names the base within its block."""
        return base_name(self.arm.arch, self.variant)


class Cells(NamedTuple):
    """The cells of one block by stage, and the hash of what decides each of them, by label."""

    stages: list[list[StudyCell]]
    asked: Mapping[str, str]

    @property
    def all(self) -> list[StudyCell]:
        """All cells in the order in which they can run."""
        return [cell for stage in self.stages for cell in stage]

    def needed_by(self, cell: StudyCell) -> list[StudyCell]:
        """The cells whose runs a cell starts from."""
        if cell.verb == "pretrain":
            return []
        bases = self.stages[0]
        if cell.verb == "make-tasks":
            return [base for base in bases if not base.arm.sets] or bases
        own = Arm(cell.arm.arch, "", cell.arm.base_sets)
        found = [base for base in bases if base.arm == own]
        found += [stream for stream in self.stages[1] if stream.tasks == cell.tasks]
        if cell.placebo:
            found.append(cell._replace(placebo=False))
        return found


class Order(NamedTuple):
    """A study that is ready to be run here."""

    study: StudyFile
    source: str  # of the study, in messages
    home: Path
    folder: Path  # of the study
    table: rates.Table | None  # of rates; None: the shipped ones
    include: Sequence[Path]
    includes: Mapping[str, str]  # sha256 by path
    rows: Path | None
    rows_sha256: str
    sets: Sequence[str]  # of machine.*, from the command line
    device: str | None
    jobs: int
    threads: int
    precision: str
    processor: Mapping[str, str]
    seeds: Sequence[int]  # of the blocks that are run now

    def resolved(self, arm: Arm, experiment: str = "") -> Resolved:
        """The settings of an arm's cell, or of a base's."""
        study = self.study
        values = {**study.settings, **arm.sets}
        if arm.strategy:
            values["finetune.experiment"] = experiment
        if study.level is not None and arm.strategy:
            values["finetune.level"] = study.level
        options = {"arch": (arm.arch, self.source), "tasks.count": (study.tasks, self.source)}
        if arm.strategy:
            options["strategy"] = (arm.strategy, self.source)
        sections = {*arm.strategy.split("+"), *resolve.SECTIONS, *resolve.TOP_KEYS}
        return resolve.resolve(
            preset=study.preset,
            values={k: v for k, v in values.items() if k.split(".")[0] in sections},
            options=options,
            with_strategy=bool(arm.strategy),
            tuning=self.table,
        )


def blocks(order: Order, seeds: Sequence[int]) -> list[Cells]:
    """The cells of each block."""
    known: dict[str, list[Any]] = {}
    return [cells_of(order, seed, known) for seed in seeds]


def cells_of(order: Order, seed: int, known: dict[str, list[Any]]) -> Cells:
    """The cells of a block, in stages; `known` collects what decides each kind of cell."""
    study = order.study
    bases = [StudyCell(seed, "pretrain", base) for base in study.bases_at(seed)]
    arms = []
    for experiment, listed in (("stream", study.stream_arms), ("single", study.single_arms)):
        for arm in listed:
            arms.append(StudyCell(seed, "finetune", arm, experiment))
    placebos = [
        arm._replace(placebo=True)
        for arm in arms
        if arm.experiment == "single" and not arm.arm.sets and study.placebo_tasks
    ]
    streams: list[StudyCell] = []
    for learning in arms:
        stream = StudyCell(seed, "make-tasks", Arm("", "", learning.tasks))
        streams += [stream] if stream not in streams else []
    cells = Cells([bases, streams, arms, placebos], {})
    asked: dict[str, str] = {}
    for cell in cells.all:
        needs = [asked[one.label] for one in cells.needed_by(cell)]
        if cell.kind not in known:
            known[cell.kind] = decides(order, cell)
        asked[cell.label] = digest_of([cell.label, known[cell.kind], needs])
    return cells._replace(asked=asked)


def decides(order: Order, cell: StudyCell) -> list[Any]:
    """All that decides a cell's results, beside its seed and the runs that it starts from."""
    study = order.study
    arm = cell.arm
    if not arm.arch:
        arm = Arm(study.bases_at(study.seeds[0])[0].arch, "", arm.sets)
    settings = order.resolved(arm, cell.experiment).settings
    values = resolve.as_flat(settings)
    sections = {
        "pretrain": OF_A_BASE,
        "make-tasks": ("tasks",),
        "finetune": ("finetune", "eval", *cell.arm.strategy.split("+")),
    }[cell.verb]
    named = {key: value for key, value in values.items() if key.split(".")[0] in sections}
    about = [named, order.precision, provenance.NUMERICS, torch_version()]
    about += [sorted(order.includes.values())]
    if cell.verb == "pretrain":
        about += [corpus.resolve(settings.data).digest]
    if cell.verb == "make-tasks":
        about += [order.rows_sha256]
    if cell.experiment == "single":
        about += [study.placebo_tasks if cell.placebo else study.single_tasks]
    return about


def torch_version() -> str:
    """torch's version without its patch: results may differ between minor ones."""
    return ".".join(torch.__version__.split(".")[:2])


def command(order: Order, cell: StudyCell, parents: Sequence[Path]) -> list[str]:
    """The command line of a cell; `parents` are the runs that it starts from, bases first."""
    study = order.study
    common = ["--home", str(order.home), "--study", str(order.folder)]
    common += ["--config", str(order.folder / "settings.toml"), "--seed", str(cell.seed)]
    common += [part for path in order.include for part in ("--include", str(path))]
    common += [part for text in order.sets for part in ("--set", text)]
    common += ["--set", f"machine.threads={order.threads}"]
    if cell.verb == "pretrain":
        device = ["--device", order.device] if order.device else []
        return ["pretrain", "--arch", cell.arm.arch, *common, *device, *set_options(cell.arm.sets)]
    device = ["--device", order.device] if order.device else []
    if cell.verb == "make-tasks":
        which = ["--tasks", str(order.rows)] if order.rows else ["--count", str(study.tasks)]
        place = set_options(cell.tasks)
        bases = map(str, parents)
        return ["make-tasks", *bases, *which, *common, *device, *place]
    base, stream = map(str, parents[:2])
    own = {key: value for key, value in cell.arm.own_sets.items() if key not in cell.tasks}
    sets: dict[str, Any] = {**own, "finetune.experiment": cell.experiment}
    sets["finetune.level"] = order.resolved(cell.arm, cell.experiment).settings.finetune.level
    if cell.experiment == "single":
        sets["eval.dense_tasks"] = []
    if cell.placebo:
        sets["finetune.placebo"] = True
    first = []
    if cell.experiment == "single":
        first = ["--first", str(study.placebo_tasks if cell.placebo else study.single_tasks)]
    start = ["finetune", base, "--tasks", stream, "--strategy", cell.arm.strategy, *first]
    return [*start, *common, *device, *set_options(sets)]


def set_options(sets: Mapping[str, Any]) -> list[str]:
    """Settings as --set options."""
    return [part for text in variant(sets) for part in ("--set", text)]
