"""make-tasks: the stream of tasks, made or checked."""

from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    Config,
    Count,
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
    TasksFrom,
    Verb,
    answer_plan,
    answer_run,
    prepare,
    show_notes,
)

app = typer.Typer()


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
    """Make a stream of tasks from facts that the bases know, or check your own (--tasks)."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import make_tasks as streams
    from dsa_sandbox.report import summaries
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.runs import load, saved

    place, listener = store.home_folder(home), console.Terminal(quiet)
    saved.include(include or [])
    if runs:
        chosen = [store.find_run(place, name) for name in runs]
    else:
        newest = load.default_base(place, None, preset, listener)
        chosen = load.block_of(place, newest)
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
    resolved = load.for_base(call.settings, chosen[0], call.resolved.sources)
    resolved = load.with_seed_of(resolved, chosen[0], call.resolved.sources)
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
    show_notes(call, summaries.stream(result.run.name, result.figures))
    answer_run(call, "make-tasks", result)
