"""Streams of tasks: made over what bases know, found again, read from files."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.config import paths
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.errors import RunFailed, UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import families
from dsa_sandbox.runs import files
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import find_run, newest
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import (
    load_model,
    load_tokenizer,
    pretrained,
    stood_on,
    writer_for,
)
from dsa_sandbox.runs.saved import run_settings
from dsa_sandbox.tasks import checking, orders, schema, writing
from dsa_sandbox.tasks.writing import Writer

LEAST_KNOWN = 5  # facts below which there is nothing to make tasks of


def make_tasks(
    resolved: Settings,
    home: Path,
    bases: list[Run],
    *,
    rows: str | None = None,
    force: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
    as_parent: bool = False,
) -> Result:
    """A stream of tasks over the facts that every base knows; figures hold gate and density.

    `rows` names a file (or run) of tasks to check and keep instead of making them. `as_parent`:
    another command stands on it, so that one that is being made is waited for.
    """
    given, sha = check(resolved, home, bases, rows)
    first = bases[0]
    parents = {base.name: base.manifest["files"]["model.safetensors"] for base in bases}
    values: dict[str, Any] = {"parents": sorted(parents.values()), "seed": resolved.seed}
    values |= sections(resolved, ("tasks",)) | stood_on(bases)
    if not resolved.tasks.order:
        del values["tasks"]["order"]  # streams as made are known by the name they always had
    parts = [resolved.tasks.family, resolved.tasks.stream, resolved.preset, f"s{resolved.seed}"]
    if given:
        values |= {"rows": sha}
        parts[:2] = ["given"]
    built_in = given or resolved.tasks.family in families.builtin
    job = Job(
        home,
        "make-tasks",
        parts,
        values,
        resolved,
        parents,
        force=force,
        includes={} if built_in else includes,
        listener=listener,
    )
    if job.finished:
        return job.returned()
    machine.start(job.engine)
    writer = writer_for(first, resolved.tasks.stream)
    known, figures = measure_bases(bases, writer, job.engine)
    tasks = given or made_tasks(resolved, writer, known, figures)
    tasks = orders.arranged(tasks, resolved.tasks.order)
    density = writing.density(tasks, writer.tokenizer, writer.num_kept)
    figures |= {"tasks": len(tasks), "density": density, "order": resolved.tasks.order}
    if density > resolved.tasks.max_density and not given:
        raise UserError(
            f"tasks: mean density K/t at answers is {density:.3f}, above tasks.max_density="
            f"{resolved.tasks.max_density}; use bases with a smaller model.num_kept"
        )
    if density > resolved.tasks.max_density:
        listener.warn(
            f"mean density K/t at answers is {density:.3f}: K covers much of the past; use longer "
            "prompts, or bases with a smaller model.num_kept"
        )
    with ExitStack() as stack:
        if not job.begin(stack, wait=as_parent):
            return job.returned()
        files.write_atomic(job.run.path / "tasks.jsonl", schema.write(tasks))
        shutil.copyfile(first.checked("tokenizer.json"), job.run.path / "tokenizer.json")
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def check(
    resolved: Settings, home: Path, bases: list[Run], rows: str | None
) -> tuple[list[schema.Task], str]:
    """The rows that are given, if any, and their sha256; UserError where no stream can be made."""
    machine.resolve(resolved.machine, resolved.preset)
    for base in bases:
        pretrained(base)
    first = bases[0]
    for other in bases[1:]:
        ours, theirs = (run.manifest["files"]["tokenizer.json"] for run in (first, other))
        if ours != theirs:
            raise UserError(f"{other.name}: its tokenizer differs from that of {first.name}")
        if run_settings(other).model.num_kept != run_settings(first).model.num_kept:
            raise UserError(f"{other.name}: its model.num_kept differs from that of {first.name}")
    if rows is None:
        orders.check(resolved.tasks.order, resolved.tasks.count)
        return [], ""
    given, name, sha = read_tasks(home, rows)
    checking.check(given, load_tokenizer(first), run_settings(first).model.context, name)
    orders.arranged(given, resolved.tasks.order)
    return given, sha


def check_unasked(
    tasks: str | None, options: Mapping[str, Any], sources: Mapping[str, str]
) -> None:
    """UserError where, beside rows that are given, something is asked of rows to be made.

    Only what was typed is refused: a file of settings may serve other commands too.
    """
    if tasks is None:
        return
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}={value}: has no effect on the rows of --tasks; leave it out")
    for key in ("tasks.family", "tasks.count"):
        if sources.get(key) == "--set":
            raise UserError(
                f"{key}: has no effect on the rows of --tasks; leave it out  [from --set]"
            )


def measure_bases(
    bases: list[Run], writer: Writer, engine: Engine
) -> tuple[list[Fact], dict[str, Any]]:
    """Facts that every base knows, and known facts and worlds gate of each."""
    common: list[Fact] = []
    rows: dict[str, Any] = {}
    asked = 0
    for base in bases:
        model = load_model(base).to(engine.device)
        known, asked = base_quality.known_facts(model, writer)
        worlds = base_quality.gate(model, writer)
        rows[base.name] = {
            "arch": base.manifest["arch"],
            "known_facts": len(known),
            "gate": {"right": worlds.right, "bleed": worlds.bleed, "open": worlds.open},
        }
        common = known if not rows.keys() - {base.name} else [f for f in common if f in known]
    return common, {"bases": rows, "asked_facts": asked, "known_by_all": len(common)}


def made_tasks(
    resolved: Settings, writer: Writer, known: list[Fact], figures: dict[str, Any]
) -> list[schema.Task]:
    """Tasks of the chosen family over the known facts; `figures` get how many facts there were."""
    plan, table = resolved.tasks, grammar.table().families
    usable = [f for f in known if table[f.family].split == plan.stream and not f.reserved]
    if len(usable) < LEAST_KNOWN:
        raise RunFailed(
            f"the bases know {len(usable)} facts usable as tasks, fewer than "
            f"{LEAST_KNOWN}: pre-train longer (train.steps) or on more facts (data.fact_share)"
        )
    try:
        tasks: list[schema.Task] = families[plan.family](writer, usable, plan.count, resolved.seed)
    except ValueError as error:
        raise UserError(f"tasks: {error}; choose a larger model.context or smaller K") from None
    checking.check(tasks, writer.tokenizer, writer.context, f"tasks.family={plan.family}")
    facts = {(task.relation, task.subject) for task in tasks}
    figures |= {"usable": len(usable), "reused_facts": len(tasks) - len(facts)}
    figures |= {"family": plan.family}
    return tasks


def fitting_tasks(home: Path, base: Run, asked: Mapping[str, Any]) -> Run | None:
    """The newest finished stream that was made with this base and has the figures asked for."""
    sha = base.manifest["files"]["model.safetensors"]
    imported = base.manifest["command"] == "import"  # others may have its weights, and read other

    def fits(manifest: dict[str, Any]) -> bool:
        figures = {"family": "contradiction", "order": 0, **manifest.get("figures", {})}
        wanted = all(figures.get(key) == value for key, value in asked.items())
        parents = manifest["parents"]
        return wanted and (base.name in parents if imported else sha in parents.values())

    return newest(home, "make-tasks", fits=fits)


def tasks_for(
    resolved: Settings,
    home: Path,
    base: Run,
    where: str | None,
    *,
    asked: Mapping[str, Any],
    dry_run: bool = False,
    includes: Mapping[str, str] | None = None,
    listener: Listener = SILENT,
) -> tuple[list[schema.Task], str, str]:
    """The stream to learn: the one named, else the newest that fits, else one made now.

    `asked` holds figures of make-tasks that the user has set: tasks, family, order.
    """
    if where is not None:
        found = read_tasks(home, where)
        if asked.get("tasks", len(found[0])) != len(found[0]):
            raise UserError(
                f"tasks.count={asked['tasks']}: {found[1]} has {len(found[0])} tasks, and an arm "
                "learns all of them  [from --tasks]"
            )
        return found
    run = fitting_tasks(home, base, asked)
    if run is not None:
        listener.note(f"tasks: {run.name} (the newest made with this base)")
        return read_tasks(home, str(run.path))
    listener.note("tasks: none made with this base yet; making them as make-tasks would")
    if dry_run:
        return [], "", ""
    made = make_tasks(resolved, home, [base], includes=includes, listener=listener, as_parent=True)
    listener.note(f"tasks: {made.run.name}")
    return read_tasks(home, str(made.run.path))


def read_tasks(home: Path, where: str) -> tuple[list[schema.Task], str, str]:
    """Tasks of a make-tasks run or a file: the rows, a name to show, and their sha256."""
    path = paths.named(where, "--tasks")
    if path.is_file():
        rows, sha256 = schema.load(path)
        return rows, str(path), sha256
    if path.is_dir() and not (path / "manifest.json").exists():
        raise UserError(f"--tasks {path}: a folder; name a file of tasks, or a make-tasks run")
    if path.suffix in (".jsonl", ".json"):
        raise UserError(f"{path}: no such file  [from --tasks]")
    run = find_run(home, where)
    if run.manifest.get("command") != "make-tasks":
        raise UserError(f"{run.name}: a {run.manifest.get('command')} run, not a stream of tasks")
    if not run.finished:
        raise UserError(f"{run.name}: not finished; run the same make-tasks command to continue")
    return (
        schema.parsed(run.content("tasks.jsonl"), run.path / "tasks.jsonl"),
        run.name,
        run.manifest["files"]["tasks.jsonl"],
    )
