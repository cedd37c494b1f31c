"""The study: a grid whose cells are command lines; the store is all that they share."""

import json
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from dsa_sandbox import children, machine, sizes
from dsa_sandbox.commands import finetune, make_tasks
from dsa_sandbox.config.resolve import INDEXER_KEYS, in_order, resolve
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.listener import Listener
from dsa_sandbox.metrics import arm, transfer
from dsa_sandbox.registry import Unknown, archs, strategies
from dsa_sandbox.runs import folder, provenance
from dsa_sandbox.runs.files import digest_of, file_digest, write_json
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import find_run, make_home
from dsa_sandbox.runs.load import SavedNetwork, pretrained
from dsa_sandbox.tasks import checking, orders
from dsa_sandbox.tasks.schema import Task

REGISTRIES = {"archs": archs, "strategies": strategies}
ANEW = ".study-"  # files of the home: what a study with --force has made so far
# settings that mean nothing to networks without an indexer
FOR_INDEXED = (*INDEXER_KEYS, "train.dense_fraction")
FOR_TAUGHT = ("finetune.indexer", "finetune.indexer_learning_rate")  # and those of its arms


class Cell(NamedTuple):
    """One command line, and what to call it in progress lines."""

    label: str
    arguments: list[str]


class Rows(NamedTuple):
    """Tasks that the user brings along."""

    where: str  # as it was typed
    name: str
    tasks: list[Task]


class Plan(NamedTuple):
    """The whole grid before it begins."""

    archs: list[str]
    strategies: list[str]
    common: list[str]  # options of every cell
    strategy_sets: list[str]  # --set values that belong to one strategy
    indexed_sets: list[str]  # and to networks with an indexer, for build and pretrain
    taught_sets: list[str]  # or for their arms
    making: list[str]  # options of make-tasks
    read: list[str]  # where the text lies: options of build, pretrain and finetune
    included: list[str]  # options of all
    home: Path
    jobs: int
    threads: int
    num_tasks: int
    context: int
    rows: Rows | None
    anew: Path | None = None  # of a study with --force: the file of what it has made so far
    indexed: tuple[str, ...] = ()  # those of `archs` that have an indexer

    def of_base(self, arch: str) -> list[str]:
        """What build and pretrain are told of a network."""
        sets = self.indexed_sets if arch in self.indexed else []
        indexed = [part for text in sets for part in ("--set", text)]
        return ["--arch", arch, *self.common, *indexed, *self.read, *self.included]

    def of_arm(self, arch: str, strategy: str) -> list[str]:
        """What finetune is told, beside its base and its tasks."""
        parts = strategy.split("+")
        own = [text for text in self.strategy_sets if text.partition(".")[0] in parts]
        own += self.taught_sets if arch in self.indexed else []
        sets = [part for text in own for part in ("--set", text)]
        return ["--strategy", strategy, *self.common, *self.read, *sets, *self.included]

    def described(self) -> dict[str, Any]:
        """What --dry-run says of it."""
        cells = [f"{arch} {strategy}" for arch in self.archs for strategy in self.strategies]
        return {
            "arch": ", ".join(self.archs),
            "cells": ", ".join(cells),
            **({"rows": self.rows.name} if self.rows else {}),
            "tasks": self.num_tasks,
            "jobs": self.jobs,
            "threads": self.threads,
            "force": self.anew is not None,
        }


class Outcome(NamedTuple):
    """The runs that a study stands on."""

    bases: list[Run]
    stream: Run
    arms: list[Run]

    def paths(self) -> dict[str, Any]:
        """Where they are."""
        return {
            "bases": [str(run.path) for run in self.bases],
            "stream": str(self.stream.path),
            "arms": [str(run.path) for run in self.arms],
        }


def names(text: str, kind: str) -> list[str]:
    """A comma-separated list of registered names; UserError for one that is not there."""
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    chosen = list(dict.fromkeys(map(in_order, chosen) if kind == "strategies" else chosen))
    problems = []
    for name in chosen:
        try:
            for part in name.split("+") if kind == "strategies" else [name]:
                REGISTRIES[kind].check(part)
        except Unknown as error:
            problems.append(f"--{kind}: {error.args[0]}")
    if not chosen:
        problems.append(f"--{kind}: names nothing")
    if problems:
        raise UserError(*problems)
    return chosen


def check_strategies(
    chosen: list[str], preset: str | None, config: Path | None, sets: Sequence[str]
) -> None:
    """UserError, before anything is trained, for what a cell would refuse in the end."""
    sections = "+".join(chosen).split("+")
    for name in chosen:
        others = set(sections) - set(name.split("+"))
        resolved = resolve(
            preset=preset,
            config=config,
            sets=[text for text in sets if text.partition(".")[0] not in others],
            options={"strategy": (name, "--strategies")},
            with_strategy=True,
        )
        finetune.make_strategy(resolved.settings)


def rows_of(home: Path, where: str | None) -> Rows | None:
    """The tasks of a file, or of a make-tasks run; UserError for what is wrong with them."""
    if where is None:
        return None
    stream = make_tasks.read_tasks(home, where)
    return Rows(where, stream.name, stream.tasks)


def check(resolved: Settings, networks: list[str], home: Path, rows: Rows | None = None) -> None:
    """UserError, before anything is trained, for what arms or their stream would refuse."""
    machine.resolve(resolved.machine, resolved.preset)
    if rows is None:
        orders.check(resolved.tasks.order, resolved.tasks.count)
    else:
        orders.arranged(rows.tasks, resolved.tasks.order)
        if resolved.data.tokenizer == "words":  # known without a text to learn it from
            tokenizer = tokens.word_tokenizer()
            checking.check(rows.tasks, tokenizer, resolved.model.context, rows.name)
    finetune.check_dense(resolved, len(rows.tasks) if rows else resolved.tasks.count)
    finetune.check_policies(resolved)
    indexed = [arch for arch in networks if sizes.has_indexer(arch, resolved.model)]
    finetune.check_indexer(resolved.model_copy(update={"arch": (indexed or networks)[0]}))
    if resolved.eval.judge:
        pretrained(find_run(home, resolved.eval.judge))


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
    count: int | None,
    family: str | None = None,
    rows: Rows | None = None,
    seed: int | None,
    jobs: int | None,
    force: bool = False,
) -> Plan:
    """Turn options into the command lines of the grid."""
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
        of_strategy = text.partition(".")[0] in "+".join(strategies).split("+")
        kind = indexed if key in FOR_INDEXED else taught if key in FOR_TAUGHT else shared
        (own if of_strategy else kind).append(text)
    for text in shared:
        common += ["--set", text]
    cores = machine.physical_cores()
    device_ = resolved.machine.device
    on_cpu = device_ == "cpu" or (device_ == "auto" and not Path("/dev/nvidia0").exists())
    threads = machine.num_threads(resolved.machine, resolved.preset)
    if jobs is None:
        if not on_cpu:
            jobs = 1
        elif resolved.machine.threads or resolved.preset == "smoke":
            jobs = max(1, cores // threads)
        else:
            jobs = min(cores, len(archs) * len(strategies))
    if not resolved.machine.threads and resolved.preset != "smoke":
        threads = max(1, cores // jobs)
    common += ["--set", f"machine.threads={threads}"]
    anew = None
    if force:
        files = [*include, *([config] if config else [])]
        cells = [archs, strategies, own, rows and [task.model_dump() for task in rows.tasks]]
        anew = home / f"{ANEW}{study_digest(resolved, cells, files)}.json"
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
        resolved.tasks.count if rows is None else len(rows.tasks),
        resolved.model.context,
        rows,
        anew,
        tuple(arch for arch in archs if sizes.has_indexer(arch, resolved.model)),
    )


def study_digest(resolved: Settings, cells: list[Any], files: Sequence[Path]) -> str:
    """What makes a study with --force the one that was interrupted: all but the machine."""
    asked = resolved.model_dump(exclude={"machine"})
    read = [file_digest(path) for path in files]
    text = corpus.resolve(resolved.data).digest
    key = [asked, cells, read, text, provenance.source_digest()]
    return digest_of(key)[:16]


def run(plan: Plan, listener: Listener) -> Outcome:
    """All stages; what the store has is not made again, but by a study with --force.

    That makes each cell once: interrupted, it goes on with what it has made itself.
    """
    if plan.anew is not None:
        make_home(plan.home)
        for path in plan.home.glob(f"{ANEW}*.json"):
            if read_anew(path).get("source") != provenance.source_digest():
                path.unlink()  # of other source code: it can never go on
        if made := read_anew(plan.anew).get("made"):
            listener.note(f"goes on with the study that --force began: {len(made)} runs are made")
    outcome = all_stages(plan, listener)
    if plan.anew is not None:
        plan.anew.unlink(missing_ok=True)  # the next --force makes all of it once more
    return outcome


def read_anew(path: Path) -> dict[str, Any]:
    """What a study with --force noted; nothing where there is no such file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def all_stages(plan: Plan, listener: Listener) -> Outcome:
    """Build, pre-train, make tasks, and all arms."""
    workers = Workers(plan, listener)
    stages = [
        [Cell(f"{verb} {arch}", [verb, *plan.of_base(arch)]) for arch in plan.archs]
        for verb in ("build", "pretrain")
    ]
    for cell in stages[0][:-1]:
        cell.arguments.append("--quiet")  # each would show the tables of all
    born = workers.all(stages[0])
    if plan.rows is not None:  # a tokenizer that is learned from the text is known from here on
        tokenizer = SavedNetwork(Run(born[0])).tokenizer
        checking.check(plan.rows.tasks, tokenizer, plan.context, plan.rows.name)
    bases = workers.all(stages[1])
    making = ["make-tasks", *map(str, bases), *plan.common, *plan.making, *plan.included]
    (made,) = workers.all([Cell("make-tasks", making)])
    cells = []
    for arch, base in zip(plan.archs, bases):
        for strategy in plan.strategies:
            arguments = ["finetune", str(base), "--tasks", str(made), *plan.of_arm(arch, strategy)]
            cells.append(Cell(f"{arch} {strategy}", arguments))
    arms = workers.all(cells)
    return Outcome([Run(p) for p in bases], Run(made), [Run(p) for p in arms])


class Workers:
    """Child processes, at most `jobs` at once; signals are passed on and waited for."""

    def __init__(self, plan: Plan, listener: Listener) -> None:
        self.plan, self.listener = plan, listener
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.made: dict[str, str] = read_anew(plan.anew).get("made", {}) if plan.anew else {}

    def all(self, cells: list[Cell]) -> list[Path]:
        """Run the cells; the path that each printed. The first failure ends the study."""
        paths = {number: path for number, cell in enumerate(cells) if (path := self.is_made(cell))}
        waiting = [(number, cell) for number, cell in enumerate(cells) if number not in paths]
        waiting.reverse()  # sparse attention takes longest: it goes first
        outputs: dict[int, list[bytes]] = {}
        errors: dict[int, list[str]] = {}
        readers: dict[int, list[threading.Thread]] = {}
        with self.listener.deferred():
            while waiting or self.children:
                while waiting and len(self.children) < self.plan.jobs and not self.stopping:
                    number, cell = waiting.pop(0)
                    outputs[number], errors[number] = [], []
                    self.children[number] = self.start(cell)
                    readers[number] = self.read(
                        cell, self.children[number], outputs[number], errors[number]
                    )
                if self.stopping and not self.children:
                    raise Interrupted(self.listener.stop_signal)
                self.pass_on()
                for number, child in list(self.children.items()):
                    if child.poll() is None:
                        continue
                    for reader in readers[number]:
                        reader.join()
                    close_pipes(child)
                    del self.children[number]
                    if child.returncode == 0:
                        paths[number] = children.path_of(outputs[number][-1])
                        self.note_made(cells[number], paths[number])
                    elif not self.stopping:
                        self.end_all()
                        raise failure(cells[number], child.returncode, errors[number])
                time.sleep(0.05)
        return [paths[number] for number in range(len(cells))]

    @property
    def stopping(self) -> bool:
        return bool(self.listener.stop_signal)

    def start(self, cell: Cell) -> "subprocess.Popen[bytes]":
        """The child that does a cell's work."""
        force = [] if self.plan.anew is None else ["--force"]
        return children.start([*cell.arguments, *force], self.plan.threads)

    def is_made(self, cell: Cell) -> Path | None:
        """The finished run that this study, with --force, has made of a cell."""
        if cell.label not in self.made:
            return None
        path = self.plan.home / self.made[cell.label]
        done = folder.readable_manifest(Run(path)).get("state") == "finished"
        return path if done else None

    def note_made(self, cell: Cell, path: Path) -> None:
        """Remember that; without --force, the store itself knows what is made."""
        if self.plan.anew is not None:
            self.made[cell.label] = path.name
            noted = {"source": provenance.source_digest(), "made": self.made}
            write_json(self.plan.anew, noted)

    def read(
        self,
        cell: Cell,
        child: "subprocess.Popen[bytes]",
        output: list[bytes],
        errors: list[str],
    ) -> list[threading.Thread]:
        """Threads that collect the child's streams and tell its notes."""
        assert child.stdout is not None
        assert child.stderr is not None

        def collect(stream: IO[bytes]) -> None:
            output.extend(stream)

        def tell(stream: IO[bytes]) -> None:
            for line in map(children.text_of, stream):
                errors.append(line)
                if not line.startswith("error: "):
                    self.listener.note(f"[{cell.label}] {line}")

        threads = [
            threading.Thread(target=collect, args=(child.stdout,)),
            threading.Thread(target=tell, args=(child.stderr,)),
        ]
        for thread in threads:
            thread.start()
        return threads

    def pass_on(self) -> None:
        """Give the children the signal that we were given, once each."""
        if not self.stopping:
            return
        for child in self.children.values():
            if not getattr(child, "told", False):
                child.send_signal(self.listener.stop_signal)
                child.told = True  # type: ignore[attr-defined]

    def end_all(self) -> None:
        """Stop the cells that still run; they save and leave."""
        for child in self.children.values():
            child.send_signal(signal.SIGTERM)
        for child in self.children.values():
            child.wait()
            close_pipes(child)
        self.children.clear()


def close_pipes(child: "subprocess.Popen[bytes]") -> None:
    """Give back what a finished child wrote into."""
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def failure(cell: Cell, code: int, lines: list[str]) -> Exception:
    """The child's own error as ours; its traceback where it had one."""
    problems = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if code == 2 and problems:
        return UserError(*(f"{cell.label}: {problem}" for problem in problems))
    if code == 3 and problems:
        return RunFailed("\n".join(f"{cell.label}: {problem}" for problem in problems))
    command = shlex.join(["dsa-sandbox", *cell.arguments])
    tail = "\n".join(lines[-15:])
    return RunFailed(f"{cell.label} ended with code {code}: {command}\n{tail}")


def evaluate(outcome: Outcome) -> dict[str, dict[str, Any]]:
    """Figures of every arm."""
    return transfer.against({run.name: arm.figures_of(run) for run in outcome.arms})
