"""The verb `make-tasks`: streams of tasks, made from facts that bases know, found, or read."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.config import paths
from dsa_sandbox.config.resolve import Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Fact
from dsa_sandbox.errors import RunFailed, UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.machine import Engine
from dsa_sandbox.registry import families
from dsa_sandbox.runs import files
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import find_run, newest
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import SavedNetwork, block_of, default_base, identities, pretrained
from dsa_sandbox.runs.session import Session
from dsa_sandbox.tasks import checking, orders, schema, writing
from dsa_sandbox.tasks.schema import TaskStream
from dsa_sandbox.tasks.writing import Writer

LEAST_KNOWN = 5  # usable facts, below which no stream is made


def make_tasks(
    settings: Settings,
    session: Session,
    bases: list[SavedNetwork],
    *,
    rows: str | None = None,
    as_parent: bool = False,
) -> Result:
    """A stream of tasks from facts that every base knows; figures hold gate and density.

    `rows` names a file (or run) of tasks to check and store instead of making them. `as_parent`,
    for a command that learns them: a process that is making the same stream is waited for.
    """
    given = check_stream(settings, session.home, bases, rows)
    first = bases[0]
    parents = {base.name: base.sha256 for base in bases}
    inputs: dict[str, Any] = {"parents": sorted(parents.values())}
    inputs |= sections(settings, ("tasks",)) | identities(bases)
    if not settings.tasks.order:
        del inputs["tasks"]["order"]  # keeps the identity of streams from before there was an order
    if given:
        inputs["rows"] = given.sha256
    built_in = given or settings.tasks.family in families.builtin
    job = Job(
        replace(session, includes={}) if built_in else session,
        "make-tasks",
        settings,
        name=["given"] if given else [settings.tasks.family, settings.tasks.stream],
        inputs=inputs,
        parents=parents,
    )
    if job.finished:
        return job.returned()
    machine.start(job.engine)
    writer = first.writer(settings.tasks.stream)
    known, figures = measure_bases(bases, writer, job.engine)
    tasks = given.tasks if given else made_tasks(settings, writer, known, figures)
    tasks = orders.arranged(tasks, settings.tasks.order)
    densities = writing.density(tasks, writer.tokenizer, writer.num_kept)
    density = densities.pop("all")
    figures |= {"tasks": len(tasks), "density": density, "order": settings.tasks.order}
    figures |= {"density_by_distance": densities, "absent": writing.absent(tasks)}
    unknown = checking.unknown_words(tasks, writer.tokenizer) if given else []
    if unknown:
        session.listener.warn(
            f"words of stories and prompts that the base does not know: {', '.join(unknown[:8])}"
            f"{', ...' if len(unknown) > 8 else ''}; they are read as its unknown token"
        )
    if density > settings.tasks.max_density and not given:
        raise UserError(
            f"tasks: mean density K/t at answers is {density:.3f}, above tasks.max_density="
            f"{settings.tasks.max_density}; use bases with a smaller model.num_kept"
        )
    if density > settings.tasks.max_density:
        session.listener.warn(
            f"mean density K/t at answers is {density:.3f}: K covers much of the past; use longer "
            "prompts, or bases with a smaller model.num_kept"
        )
    with ExitStack() as stack:
        if not job.begin(stack, wait=as_parent):
            return job.returned()
        files.write_atomic(job.run.path / "tasks.jsonl", schema.write(tasks))
        files.write_atomic(job.run.path / "tokenizer.json", first.tokenizer_json)
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def check_stream(
    settings: Settings, home: Path, bases: list[SavedNetwork], rows: str | None
) -> TaskStream | None:
    """The given tasks, if any; UserError where no stream can be made for these bases."""
    machine.resolve(settings.machine, settings.preset)
    first = bases[0]
    for other in bases[1:]:
        ours, theirs = (base.manifest["files"]["tokenizer.json"] for base in (first, other))
        if ours != theirs:
            raise UserError(f"{other.name}: its tokenizer differs from that of {first.name}")
        if other.settings.model.num_kept != first.settings.model.num_kept:
            raise UserError(f"{other.name}: its model.num_kept differs from that of {first.name}")
    if rows is None:
        orders.check(settings.tasks.order, settings.tasks.count)
        return None
    given = read_tasks(home, rows)
    checking.check(given.tasks, first.tokenizer, first.settings.model.context, given.name)
    orders.arranged(given.tasks, settings.tasks.order)
    return given


def bases_for(session: Session, names: list[str], preset: str | None) -> list[SavedNetwork]:
    """The named bases, else the newest and those of other architectures that compare to it."""
    if names:
        return [pretrained(find_run(session.home, name)) for name in names]
    return block_of(session.home, pretrained(default_base(session, None, preset)))


def check_unasked(tasks: str | None, options: Mapping[str, Any], resolved: Resolved) -> None:
    """UserError where options or --set ask for new tasks although --tasks names given ones.

    Values of a settings file are accepted: the file may serve other commands too.
    """
    if tasks is None:
        return
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option}={value}: has no effect on the rows of --tasks; leave it out")
    for key in ("tasks.family", "tasks.count"):
        if resolved.is_typed(key):
            raise UserError(
                f"{key}: has no effect on the rows of --tasks; leave it out  "
                f"[from {resolved.sources[key]}]"
            )


def measure_bases(
    bases: list[SavedNetwork], writer: Writer, engine: Engine
) -> tuple[list[Fact], dict[str, Any]]:
    """Facts that every base knows, and figures: known facts and world gate of each base."""
    common: list[Fact] = []
    rows: dict[str, Any] = {}
    asked = 0
    for base in bases:
        model = base.network().to(engine.device)
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
    settings: Settings, writer: Writer, known: list[Fact], figures: dict[str, Any]
) -> list[schema.Task]:
    """Tasks of the chosen family from known facts; adds counts of facts to `figures`."""
    wanted, table = settings.tasks, grammar.table().families
    usable = [f for f in known if table[f.family].split == wanted.stream and not f.reserved]
    if len(usable) < LEAST_KNOWN:
        raise RunFailed(
            f"the bases know {len(usable)} facts usable as tasks, fewer than "
            f"{LEAST_KNOWN}: pre-train longer (train.steps) or on more facts (data.fact_share)"
        )
    try:
        make = families[wanted.family]
        tasks: list[schema.Task] = make(writer, usable, wanted.count, settings.seed)
    except ValueError as error:
        raise UserError(f"tasks: {error}; choose a larger model.context or smaller K") from None
    if not isinstance(tasks, list) or len(tasks) != wanted.count:
        made = f"{len(tasks)} tasks" if isinstance(tasks, list) else f"{type(tasks).__name__}"
        raise UserError(
            f"tasks.family={wanted.family}: its function returned {made}, not a list of "
            f"{wanted.count} (tasks.count)"
        )
    checking.check(tasks, writer.tokenizer, writer.context, f"tasks.family={wanted.family}")
    facts = {(task.relation, task.subject) for task in tasks}
    figures |= {"usable": len(usable), "reused_facts": len(tasks) - len(facts)}
    figures |= {"family": wanted.family}
    return tasks


def fitting_tasks(home: Path, base: SavedNetwork, asked: Mapping[str, Any]) -> Run | None:
    """The newest finished stream that was made with this base and has the figures asked for."""
    # two imported runs may share weights and differ in tokenizer or text: only the name tells
    imported = base.manifest["command"] == "import"

    def fits(manifest: dict[str, Any]) -> bool:
        figures = {"family": "contradiction", "order": 0, **manifest.get("figures", {})}
        wanted = all(figures.get(key) == value for key, value in asked.items())
        parents = manifest["parents"]
        return wanted and (base.name in parents if imported else base.sha256 in parents.values())

    return newest(home, "make-tasks", fits=fits)


def tasks_for(
    settings: Settings,
    session: Session,
    base: SavedNetwork,
    where: str | None,
    *,
    asked: Mapping[str, Any],
    dry_run: bool = False,
) -> TaskStream | None:
    """The stream to learn: the named one, else the newest that fits, else one made now.

    `asked` holds figures of make-tasks that the user has set: tasks, family, order. None where a
    dry run would have to make it.
    """
    listener = session.listener
    if where is not None:
        found = read_tasks(session.home, where)
        if asked.get("tasks", len(found.tasks)) != len(found.tasks):
            raise UserError(
                f"tasks.count={asked['tasks']}: {found.name} has {len(found.tasks)} tasks, and an "
                "arm learns all of them  [from --tasks]"
            )
        return found
    run = fitting_tasks(session.home, base, asked)
    if run is not None:
        listener.note(f"tasks: {run.name} (the newest made with this base)")
        return tasks_of(run)
    listener.note("tasks: none made with this base yet; making them as make-tasks would")
    if dry_run:
        return None
    made = make_tasks(settings, replace(session, force=False), [base], as_parent=True).run
    listener.note(f"tasks: {made.name}")
    return tasks_of(made)


def read_tasks(home: Path, where: str) -> TaskStream:
    """The stream of a make-tasks run or of a file; UserError where `where` names neither."""
    path = paths.named(where, "--tasks")
    if path.is_file():
        return schema.load(path)
    if path.is_dir() and not (path / "manifest.json").exists():
        raise UserError(f"--tasks {path}: a folder; name a file of tasks, or a make-tasks run")
    if path.suffix in (".jsonl", ".json"):
        raise UserError(f"{path}: no such file  [from --tasks]")
    return tasks_of(find_run(home, where))


def tasks_of(run: Run) -> TaskStream:
    """The stream of a finished make-tasks run; UserError for any other run."""
    if run.manifest.get("command") != "make-tasks":
        raise UserError(f"{run.name}: a {run.manifest.get('command')} run, not a stream of tasks")
    if not run.finished:
        raise UserError(f"{run.name}: not finished; run the same make-tasks command to continue")
    tasks = schema.parsed(run.content("tasks.jsonl"), run.path / "tasks.jsonl")
    return TaskStream(tasks, run.name, run.manifest["files"]["tasks.jsonl"])
