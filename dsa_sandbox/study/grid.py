"""A study: a grid of arms. Each cell is a command line; cells share only the home of runs."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import children, machine, sizes
from dsa_sandbox.commands import arm_checks, make_tasks
from dsa_sandbox.config.resolve import INDEXER_KEYS, Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import Listener
from dsa_sandbox.metrics import arm
from dsa_sandbox.registry import archs
from dsa_sandbox.registry import strategies as registered
from dsa_sandbox.runs import folder, provenance
from dsa_sandbox.runs.files import digest_of, file_digest, write_json
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import find_run, make_home
from dsa_sandbox.runs.load import SavedNetwork, pretrained
from dsa_sandbox.tasks import checking, orders
from dsa_sandbox.tasks.schema import Task
from dsa_sandbox.workers import Cell, run_cells

SINGLES = 4  # single tasks of an arm, unless the user says how many
FORCED = ".study-"  # prefix of files in the home: runs that a study with --force has made so far
# settings that only networks with an indexer have
FOR_INDEXED = (*INDEXER_KEYS, "train.dense_fraction")
FOR_TAUGHT = ("finetune.indexer", "finetune.indexer_ratio")  # and only their arms


class Rows(NamedTuple):
    """Tasks given by --tasks: a file, or a make-tasks run."""

    where: str  # the value of --tasks
    name: str
    tasks: list[Task]


class Plan(NamedTuple):
    """All that a study needs to start its cells."""

    archs: list[str]
    strategies: list[str]
    common: list[str]  # options of all cells
    strategy_sets: list[str]  # --set values of the strategies' own sections
    indexed_sets: list[str]  # --set values for build and pretrain of networks with an indexer
    indexed_arm_sets: list[str]  # --set values for finetune of networks whose indexer selects
    making: list[str]  # options of make-tasks
    read: list[str]  # --data, an option of build, pretrain and finetune
    included: list[str]  # --include, an option of all cells
    home: Path
    jobs: int
    threads: int
    num_tasks: int
    context: int
    rows: Rows | None
    forced: Path | None = None  # with --force: the file that lists the runs made so far
    indexed: tuple[str, ...] = ()  # the architectures that have an indexer
    stream: bool = True  # whether arms learn the stream
    singles: int = 0  # single tasks of each arm and of its placebo
    dense_tasks: bool = False  # whether the user has set eval.dense_tasks, tasks of the stream

    def base_options(self, arch: str) -> list[str]:
        """Command-line options of `build` and `pretrain` for one architecture."""
        sets = self.indexed_sets if arch in self.indexed else []
        indexed = [part for text in sets for part in ("--set", text)]
        return ["--arch", arch, *self.common, *indexed, *self.read, *self.included]

    def arm_options(self, arch: str, strategy: str) -> list[str]:
        """Command-line options of `finetune` for one arm, without its base and its tasks."""
        parts = strategy.split("+")
        own = [text for text in self.strategy_sets if text.partition(".")[0] in parts]
        selects = arch in self.indexed and not archs.about(arch).keeps_all
        own += self.indexed_arm_sets if selects else []
        sets = [part for text in own for part in ("--set", text)]
        return ["--strategy", strategy, *self.common, *self.read, *sets, *self.included]

    def arm(self, arch: str, strategy: str, base: Path, tasks: Path, more: list[str]) -> list[str]:
        """The command line of an arm; `more` are options that come last."""
        start = ["finetune", str(base), "--tasks", str(tasks)]
        return [*start, *self.arm_options(arch, strategy), *more]

    def described(self) -> dict[str, Any]:
        """The values that --dry-run prints."""
        cells = [f"{arch} {strategy}" for arch in self.archs for strategy in self.strategies]
        return {
            "arch": ", ".join(self.archs),
            "cells": ", ".join(cells),
            **({"rows": self.rows.name} if self.rows else {}),
            "tasks": self.num_tasks if self.stream else 0,
            "singles": self.singles,
            "jobs": self.jobs,
            "threads": self.threads,
            "force": self.forced is not None,
        }


class Outcome(NamedTuple):
    """The runs of a study."""

    bases: list[Run]
    stream: Run
    arms: list[Run]

    def paths(self) -> dict[str, Any]:
        """Paths of the runs, for `--json`."""
        return {
            "bases": [str(run.path) for run in self.bases],
            "stream": str(self.stream.path),
            "arms": [str(run.path) for run in self.arms],
        }


def read_rows(home: Path, where: str | None) -> Rows | None:
    """The tasks of a file or of a make-tasks run; UserError where they are not valid."""
    if where is None:
        return None
    stream = make_tasks.read_tasks(home, where)
    return Rows(where, stream.name, stream.tasks)


def check_study(
    resolved: Resolved, networks: list[str], home: Path, rows: Rows | None = None
) -> None:
    """UserError, before any training, for settings that arms or make-tasks would refuse."""
    settings = resolved.settings
    machine.resolve(settings.machine, settings.preset)
    if rows is None:
        orders.check(settings.tasks.order, settings.tasks.count)
    else:
        orders.arranged(rows.tasks, settings.tasks.order)
        if settings.data.tokenizer == "words":  # other tokenizers are learned from the text
            tokenizer = tokens.word_tokenizer()
            checking.check(rows.tasks, tokenizer, settings.model.context, rows.name)
    arm_checks.check_dense(settings, len(rows.tasks) if rows else settings.tasks.count)
    arm_checks.check_policies(settings)
    arms = [settings.model_copy(update={"arch": arch}) for arch in networks]
    if arm_checks.rewarming_is_asked(resolved, arms):
        selecting = [arm for arm in arms if arm_checks.nothing_to_rewarm(arm) is None]
        indexed = [arm for arm in arms if sizes.has_indexer(arm.arch, arm.model)]
        arm_checks.check_indexer([*selecting, *indexed, *arms][0])
    if settings.eval.judge:
        pretrained(find_run(home, settings.eval.judge))


def plan(
    resolved: Settings,
    home: Path,
    *,
    archs: list[str],
    strategies: list[str],
    preset: str | None,
    config: Path | None,
    sets: Sequence[str],
    include: Sequence[Path],
    data: str | None,
    device: str | None,
    stream: bool = True,
    singles: int | None = None,
    count: int | None,
    family: str | None = None,
    rows: Rows | None = None,
    seed: int | None,
    jobs: int | None,
    force: bool = False,
) -> Plan:
    """The options of a study, sorted by the commands that take them; jobs and threads decided.

    `stream`: whether arms learn the stream; `singles`: how many of its tasks they learn singly.
    """
    common = ["--home", str(home)]
    for option, value in (
        ("--preset", preset),
        ("--config", config),
        ("--device", device),
        ("--seed", seed),
    ):
        if value is not None:
            common += [option, str(value)]
    own: list[str] = []
    indexed: list[str] = []
    taught: list[str] = []
    shared: list[str] = []
    for text in sets:
        key = text.partition("=")[0].strip()
        if key == "finetune.experiment":  # `stream` and `singles` say what is run
            continue
        of_a_strategy = text.partition(".")[0] in "+".join(strategies).split("+")
        kind = indexed if key in FOR_INDEXED else taught if key in FOR_TAUGHT else shared
        (own if of_a_strategy else kind).append(text)
    for text in shared:
        common += ["--set", text]
    num_arms = len(archs) * len(strategies)
    jobs, threads = machine.jobs_and_threads(resolved.machine, resolved.preset, jobs, num_arms)
    common += ["--set", f"machine.threads={threads}"]
    forced = None
    if force:
        files = [*include, *([config] if config else [])]
        cells = [
            archs,
            strategies,
            own,
            stream,
            singles,
            rows and [task.model_dump() for task in rows.tasks],
        ]
        forced = home / f"{FORCED}{study_digest(resolved, cells, files)}.json"
    num_tasks = resolved.tasks.count if rows is None else len(rows.tasks)
    making: list[str] = []
    for option, value in (
        ("--count", count),
        ("--family", family),
        ("--tasks", rows and rows.where),
    ):
        if value is not None:
            making += [option, str(value)]
    return Plan(
        archs,
        strategies,
        common,
        own,
        indexed,
        taught,
        making,
        ["--data", data] if data is not None else [],
        [part for path in include for part in ("--include", str(path))],
        home,
        jobs,
        threads,
        num_tasks,
        resolved.model.context,
        rows,
        forced,
        tuple(arch for arch in archs if sizes.has_indexer(arch, resolved.model)),
        stream,
        num_singles(num_tasks, singles),
        bool(resolved.eval.dense_tasks),
    )


def num_singles(num_tasks: int, asked: int | None) -> int:
    """Number of single tasks; UserError where more are asked for than the stream has."""
    if asked is not None and asked > num_tasks:
        raise UserError(
            f"--singles={asked}: single tasks are the first of the stream, which has {num_tasks}"
        )
    return min(num_tasks, SINGLES) if asked is None else asked


def study_digest(resolved: Settings, cells: list[Any], files: Sequence[Path]) -> str:
    """Digest of all options but the machine: equal for an interrupted study and its repetition."""
    asked = resolved.model_dump(exclude={"machine"})
    read = [file_digest(path) for path in files]
    text = corpus.resolve(resolved.data).digest
    key = [asked, cells, read, text, provenance.source_digest()]
    return digest_of(key)[:16]


def run(plan: Plan, listener: Listener) -> Outcome:
    """Run all stages. Finished runs of the home are taken; a study with --force makes all again.

    An interrupted study with --force continues with the runs that it has made itself.
    """
    if plan.forced is not None:
        make_home(plan.home)
        for path in plan.home.glob(f"{FORCED}*.json"):
            if read_forced(path).get("source") != provenance.source_digest():
                path.unlink()  # made by other source code: it cannot be continued
        if made := read_forced(plan.forced).get("made"):
            listener.note(
                f"continues the interrupted study with --force: {len(made)} runs are finished"
            )
    outcome = all_stages(plan, listener)
    if plan.forced is not None:
        plan.forced.unlink(missing_ok=True)  # the next --force makes all runs again
    return outcome


def read_forced(path: Path) -> dict[str, Any]:
    """Content of the file of a study with --force; empty where there is no valid file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def all_stages(plan: Plan, listener: Listener) -> Outcome:
    """Build and pretrain all bases, make their tasks, then fine-tune all arms."""
    bases = make_bases(plan, listener)
    stream = make_stream(plan, bases, listener)
    arms = learn(plan, bases, stream, listener)
    return Outcome([Run(p) for p in bases], Run(stream), [Run(p) for p in arms])


def make_bases(plan: Plan, listener: Listener) -> list[Path]:
    """Build and pre-train the base of each architecture; the pre-trained runs."""
    builds, pretrainings = (
        [Cell(f"{verb} {arch}", [verb, *plan.base_options(arch)]) for arch in plan.archs]
        for verb in ("build", "pretrain")
    )
    for cell in builds[:-1]:
        cell.arguments.append("--quiet")  # each would print the parameter tables of all
    built = run_stage(plan, builds, listener)
    if plan.rows is not None:  # only a build has the tokenizer that is learned from the text
        tokenizer = SavedNetwork(Run(built[0])).tokenizer
        checking.check(plan.rows.tasks, tokenizer, plan.context, plan.rows.name)
    return run_stage(plan, pretrainings, listener)


def make_stream(plan: Plan, bases: list[Path], listener: Listener) -> Path:
    """Make, or check, the tasks of all bases; the make-tasks run."""
    making = ["make-tasks", *map(str, bases), *plan.common, *plan.making, *plan.included]
    (stream,) = run_stage(plan, [Cell("make-tasks", making)], listener)
    return stream


def learn(plan: Plan, bases: list[Path], stream: Path, listener: Listener) -> list[Path]:
    """Fine-tune all arms: on the stream, on single tasks, and the placebos of the latter."""
    plan = plan._replace(singles=plan.singles and usable_singles(plan, stream, listener))
    streams: list[Cell] = []
    singles: list[Cell] = []
    placebos: list[Cell] = []
    alone = ["--first", str(plan.singles), "--set", "finetune.experiment=single"]
    alone += ["--set", "eval.dense_tasks=[]"] if plan.dense_tasks else []
    for arch, base in zip(plan.archs, bases):
        for strategy in plan.strategies:
            name = f"{arch} {strategy}"
            if plan.stream:
                more = ["--set", "finetune.experiment=stream"]
                streams.append(Cell(name, plan.arm(arch, strategy, base, stream, more)))
            if plan.singles and learns_one_by_one(strategy):
                arguments = plan.arm(arch, strategy, base, stream, alone)
                singles.append(Cell(f"{name}, single tasks", arguments))
                placebo = [*arguments, "--set", "finetune.placebo=true"]
                placebos.append(Cell(f"{name}, placebo", placebo))
    arms = run_stage(plan, [*streams, *singles], listener)
    return arms + run_stage(plan, placebos, listener)


def usable_singles(plan: Plan, stream: Path, listener: Listener) -> int:
    """The number of single tasks; 0, with a note, where the tasks cannot be learned singly."""
    tasks = make_tasks.tasks_of(Run(stream)).tasks[: plan.singles]
    for number, task in enumerate(tasks, 1):
        if task.undoes or not (task.items("validation_in") and task.items("validation_out")):
            lack = "undoes another" if task.undoes else "lacks validation_in or validation_out"
            listener.note(f"no single tasks: task {number} of {stream.name} {lack}")
            return 0
    return len(tasks)


def learns_one_by_one(strategy: str) -> bool:
    """Whether a strategy may learn single tasks; bounds learn all at once, apart, or none."""
    return all(registered[part].protocol == "sequential" for part in strategy.split("+"))


def run_stage(plan: Plan, cells: list[Cell], listener: Listener) -> list[Path]:
    """The run of each cell, in order; with --force, runs that this study has made are taken."""
    force = [] if plan.forced is None else ["--force"]
    made: dict[str, str] = read_forced(plan.forced).get("made", {}) if plan.forced else {}
    paths = {cell.label: plan.home / made[cell.label] for cell in cells if cell.label in made}
    paths = {label: path for label, path in paths.items() if is_finished(path)}

    def start(cell: Cell) -> "subprocess.Popen[bytes]":
        return children.start([*cell.arguments, *force], plan.threads)

    def finished(cell: Cell, path: Path) -> None:
        if plan.forced is not None:  # without --force, finished runs are found in the home
            made[cell.label] = path.name
            write_json(plan.forced, {"source": provenance.source_digest(), "made": made})

    missing = [cell for cell in cells if cell.label not in paths]
    paths |= run_cells(missing, plan.jobs, start, listener, finished)
    return [paths[cell.label] for cell in cells]


def is_finished(path: Path) -> bool:
    """Whether the folder at `path` holds a finished run."""
    return folder.readable_manifest(Run(path)).get("state") == "finished"


def evaluate(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Figures of every arm, by the name of its run."""
    return arm.together({run.name: arm.figures_of(run) for run in outcome.arms})
