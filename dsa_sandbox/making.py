"""The commands that make runs. Heavy imports wait until needed."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsa_sandbox.errors import UserError
from dsa_sandbox.options import (
    OUTPUT,
    AllowMismatch,
    Arch,
    Config,
    Count,
    Data,
    Device,
    DryRun,
    Family,
    Force,
    Home,
    Include,
    Json,
    Preset,
    Quiet,
    Seed,
    Set,
    Strategy,
    TasksFrom,
    Verb,
    answer_plan,
    answer_run,
    load_includes,
    network_plan,
    path,
    prepare,
    show_notes,
)

app = typer.Typer()


@app.command(cls=Verb, epilog="Example: dsa-sandbox build --arch dense")
def build(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    allow_mismatch: AllowMismatch = False,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network's initial weights as a run; show both parameter tables."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox import resolving

    resolving.check_training(call.resolved, [call.settings.arch])
    if dry_run:
        answer_plan(call, "build", network_plan(call))
        return
    from dsa_sandbox.commands import networks
    from dsa_sandbox.report import table

    result = networks.build(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.parameters(result.figures))
    answer_run(call, "build", result)


@app.command(cls=Verb, epilog="Example: dsa-sandbox pretrain --arch dsa --set train.steps=500")
def pretrain(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    allow_mismatch: AllowMismatch = False,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model from scratch; the same command again resumes or returns it."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox import resolving

    resolving.check_training(call.resolved, [call.settings.arch])
    if dry_run:
        answer_plan(call, "pretrain", network_plan(call))
        return
    from dsa_sandbox.commands import networks
    from dsa_sandbox.report import table

    result = networks.pretrain(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.base(result.run.name, result.figures))
    answer_run(call, "pretrain", result)


@app.command("import", cls=Verb, epilog="Example: dsa-sandbox import my-llama --context 512")
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="config.json, safetensors, tokenizer.json.", parser=path
        ),
    ],
    data: Data = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context", help="Longest sequence (default: its own, at most 2048).", metavar="N"
        ),
    ] = None,
    seed: Seed = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a run of a Llama, or of what `export` has written; no code of the folder is run."""
    from dsa_sandbox.commands import exchange
    from dsa_sandbox.interop import reading

    found = reading.opened(folder)
    call = prepare(
        options={
            "data.source": (data, "--data"),
            "model.context": (context, "--context"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        home=home,
        as_json=as_json,
        quiet=quiet,
        network=(found.file, {**found.fixed, **found.likely}),
    )
    settings = reading.check(call.resolved, found)
    if dry_run:
        exchange.check(settings)
        plan = {
            "arch": settings.arch,
            "architecture": found.architecture,
            "vocabulary": found.vocabulary,
            "context": settings.model.context,
        }
        answer_plan(call, "import", plan)
        return
    result = exchange.import_folder(settings, call.home, found, force=force, listener=call.listener)
    note = f"{result.figures['architecture']}, {result.figures['parameters']:,} parameters"
    show_notes(call, f"{note}, as {settings.arch}")
    answer_run(call, "import", result)


@app.command("make-tasks", cls=Verb, epilog="Example: dsa-sandbox make-tasks --count 8")
def make_tasks(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="BASE",
            help="Pre-trained or imported runs (default: the newest pre-trained of each arch).",
        ),
    ] = None,
    count: Count = None,
    family: Family = None,
    tasks: TasksFrom = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the stream of tasks from facts that the bases know; or check rows of yours (--tasks)."""
    from dsa_sandbox import bases, console, store
    from dsa_sandbox.commands import streams
    from dsa_sandbox.report import table

    place, listener = store.home_folder(home), console.Terminal(quiet)
    load_includes(include or [])
    if runs:
        chosen = [store.find_run(place, name) for name in runs]
    else:
        newest = bases.default_base(place, None, preset, listener)
        chosen = bases.block_of(place, newest)
    call = prepare(
        options={
            "tasks.count": (count, "--count"),
            "tasks.family": (family, "--family"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset or chosen[0].manifest.get("preset"),
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    unasked = {"--count": count, "--family": family}
    streams.check_unasked(tasks, unasked, call.resolved.sources)
    resolved = bases.for_base(call.settings, chosen[0], call.resolved.sources)
    resolved = bases.with_seed_of(resolved, chosen[0], call.resolved.sources)
    if dry_run:
        given, _ = streams.check(resolved, call.home, chosen, tasks)
        plan: dict[str, Any] = {"bases": ", ".join(base.name for base in chosen)}
        plan |= {"rows": tasks} if given else {"family": resolved.tasks.family}
        plan |= {"count": len(given) or resolved.tasks.count}
        plan |= {"stream": resolved.tasks.stream, "order": resolved.tasks.order}
        answer_plan(call, "make-tasks", plan)
        return
    result = streams.make_tasks(
        resolved,
        call.home,
        chosen,
        rows=tasks,
        force=force,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.stream(result.run.name, result.figures))
    answer_run(call, "make-tasks", result)


@app.command(cls=Verb, epilog="Example: dsa-sandbox finetune --strategy ewc --set ewc.strength=0.1")
def finetune(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="A pre-trained or imported run (default: the newest pre-trained).",
        ),
    ] = None,
    strategy: Strategy = None,
    arch: Arch = None,
    tasks: TasksFrom = None,
    data: Data = None,
    count: Count = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn the tasks one after another with a strategy, and record what is forgotten."""
    from dsa_sandbox import console, store

    listener = console.Terminal(quiet)
    place = store.home_folder(home)
    if run is not None:
        base = store.find_run(place, run)
    else:
        from dsa_sandbox import bases

        base = bases.default_base(place, arch, preset, listener)
    manifest = base.manifest
    call = prepare(
        options={
            "strategy": (strategy, "--strategy"),
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "tasks.count": (count, "--count"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset or manifest.get("preset"),
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
        with_strategy=True,
    )
    from dsa_sandbox import bases
    from dsa_sandbox.commands import streams, tuning
    from dsa_sandbox.report import table
    from dsa_sandbox.tasks.stream import check as check_rows

    bases.pretrained(base)
    resolved = bases.for_base(call.settings, base, call.resolved.sources)
    resolved = bases.with_seed_of(resolved, base, call.resolved.sources)
    tuning.check(resolved, call.home)  # before tasks are made
    typed = call.resolved.sources.get("tasks.count") in ("--count", "--set")
    asked: dict[str, Any] = {"tasks": resolved.tasks.count} if typed else {}
    for key in ("family", "order"):
        source = call.resolved.sources.get(f"tasks.{key}")
        if tasks is not None and source == "--set":
            value = getattr(resolved.tasks, key)
            raise UserError(f"tasks.{key}={value}: --tasks names the stream  [from --set]")
        if source is not None:
            asked[key] = getattr(resolved.tasks, key)
    rows, name, sha = streams.tasks_for(
        resolved,
        call.home,
        base,
        tasks,
        asked=asked,
        dry_run=dry_run,
        includes=call.includes,
        listener=call.listener,
    )
    if dry_run:
        if rows:
            check_rows(rows, bases.load_tokenizer(base), resolved.model.context, name)
        num_tasks = len(rows) or resolved.tasks.count
        plan = {
            "base": base.name,
            "strategy": resolved.strategy,
            "tasks": len(rows) or "made first",
            "max_steps": num_tasks * resolved.finetune.max_steps,
            **tuning.dry_run(resolved, base, num_tasks),
        }
        answer_plan(call, "finetune", plan)
        return
    result = tuning.finetune(
        resolved,
        call.home,
        base,
        rows,
        name,
        sha,
        force=force,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.arm(result.run.name, result.figures))
    answer_run(call, "finetune", result)


@app.command(cls=Verb, epilog="Example: dsa-sandbox run --preset smoke --count 8")
def run(
    count: Count = None,
    family: Family = None,
    tasks: TasksFrom = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Cells side by side (default: cores / threads).", metavar="N"
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option("--strategies", help="Strategies of the grid.", metavar="A,B,..")
    ] = "sgd,ewc,acft",
    archs: Annotated[
        str, typer.Option("--archs", help="Architectures of the grid.", metavar="A,B,..")
    ] = "dense,dsa",
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Make every run anew beside those that are there; interrupted, the same command "
            "goes on with what it has made.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole study: build, pretrain, make-tasks, all arms, eval, plot; skips what is there."""
    call = prepare(
        options={
            "tasks.count": (count, "--count"),
            "tasks.family": (family, "--family"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset,
        config=config,
        sets=[s for s in set_ or [] if not is_strategy_key(s, strategies)],
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox import console, resolving, study
    from dsa_sandbox.commands import streams
    from dsa_sandbox.report import figures, table

    for key, option in (("arch", "--archs"), ("strategy", "--strategies")):
        if call.resolved.sources.get(key) == "--set":
            raise UserError(f"--set {key}: a study names several; use {option}")
    networks = study.names(archs, "archs")
    resolving.check_training(call.resolved, networks)
    chosen = study.names(strategies, "strategies")
    study.check_strategies(chosen, preset, config, set_ or [])
    unasked = {"--count": count, "--family": family}
    streams.check_unasked(tasks, unasked, call.resolved.sources)
    rows = study.rows_of(call.home, tasks)
    study.check(call.settings, networks, call.home, rows)
    plan = study.plan(
        call.settings,
        call.home,
        archs=networks,
        strategies=chosen,
        preset=preset,
        config=config,
        sets=set_ or [],
        include=include or [],
        data=data,
        device=device,
        count=count,
        family=family,
        rows=rows,
        seed=seed,
        jobs=jobs,
        force=force,
    )
    if dry_run:
        answer_plan(call, "run", {**network_plan(call), **plan.described()})
        return
    outcome = study.run(plan, call.listener)
    results = study.evaluate(outcome)
    if as_json:
        console.emit_json(
            {"command": "run", **outcome.paths(), "runs": results, **table.contrasts(results)}
        )
        return
    style: dict[str, Any] = {
        "width": min(console.width_of(sys.stdout), 160),
        "colour": console.has_colour(sys.stdout),
        "unicode": console.has_unicode(sys.stdout),
    }
    for kind in ("forgetting", "front"):
        console.emit(figures.draw(kind, outcome.arms, **style).text + "\n")
    width = console.width_of(sys.stdout)
    stream = table.stream(outcome.stream.name, outcome.stream.manifest["figures"])
    console.emit(table.folded(stream, width) + "\n")
    console.emit(table.results(results, width=width))


def is_strategy_key(text: str, strategies: str) -> bool:
    """Whether a --set belongs to one of the strategies of the grid: its cells get it."""
    return text.partition(".")[0] in strategies.replace("+", ",").replace(" ", "").split(",")
