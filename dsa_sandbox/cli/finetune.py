"""finetune: learn a stream of tasks on a base."""

from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    Arch,
    Config,
    Count,
    Data,
    Device,
    DryRun,
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
    prepare,
    show_notes,
)
from dsa_sandbox.errors import UserError

app = typer.Typer()


@app.command(cls=Verb, epilog="Example: dsa-sandbox finetune --strategy ewc --set ewc.strength=0.1")
def finetune(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="Pre-trained or imported run (default: the newest pre-trained).",
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
    """Train a base on the tasks, one after another, with a strategy; record forgetting."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.runs import home as store

    listener = console.Terminal(quiet)
    place = store.home_folder(home)
    if run is not None:
        base = store.find_run(place, run)
    else:
        from dsa_sandbox.runs import load

        base = load.default_base(place, arch, preset, listener)
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
    from dsa_sandbox.commands import finetune as tuning
    from dsa_sandbox.commands import make_tasks
    from dsa_sandbox.report import summaries
    from dsa_sandbox.runs import load
    from dsa_sandbox.tasks.checking import check as check_rows

    load.pretrained(base)
    resolved = load.for_base(call.settings, base, call.resolved.sources)
    resolved = load.with_seed_of(resolved, base, call.resolved.sources)
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
    rows, name, sha = make_tasks.tasks_for(
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
            check_rows(rows, load.load_tokenizer(base), resolved.model.context, name)
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
    show_notes(call, summaries.arm(result.run.name, result.figures))
    answer_run(call, "finetune", result)
