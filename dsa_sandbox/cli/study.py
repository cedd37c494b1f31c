"""run: the whole study."""

import sys
from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    OUTPUT,
    Config,
    Count,
    Data,
    Device,
    DryRun,
    Everything,
    Family,
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
    network_plan,
    prepare,
)
from dsa_sandbox.errors import UserError

app = typer.Typer()


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
            "--jobs", min=1, help="Parallel jobs (default: cores / threads).", metavar="N"
        ),
    ] = None,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies", help="Strategies of the grid, separated by commas.", metavar="A,B,.."
        ),
    ] = "sgd,ewc,acft",
    archs: Annotated[
        str,
        typer.Option(
            "--archs", help="Architectures of the grid, separated by commas.", metavar="A,B,.."
        ),
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
            help="Make every run again under a new name; after an interruption, the same command "
            "continues with the new runs.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    dry_run: DryRun = False,
    everything: Everything = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole study: build, pretrain, make-tasks, all arms, eval, plot; skip what exists."""
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
    from dsa_sandbox import study
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import make_tasks
    from dsa_sandbox.config import resolve
    from dsa_sandbox.metrics import arm
    from dsa_sandbox.report import plots, summaries
    from dsa_sandbox.report.screen import screen
    from dsa_sandbox.report.wrapping import folded
    from dsa_sandbox.verdict import contrasts

    for key, option in (("arch", "--archs"), ("strategy", "--strategies")):
        if call.resolved.sources.get(key) == "--set":
            raise UserError(f"--set {key}: a study names several; use {option}")
    networks = study.names(archs, "archs")
    resolve.check_training(call.resolved, networks)
    chosen = study.names(strategies, "strategies")
    study.check_strategies(chosen, preset, config, set_ or [])
    unasked = {"--count": count, "--family": family}
    make_tasks.check_unasked(tasks, unasked, call.resolved.sources)
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
        about = {"command": "run", **outcome.paths(), "runs": results, "figures": arm.described()}
        console.emit_json(about | contrasts.as_json(results))
        return
    style: dict[str, Any] = {
        "width": min(console.width_of(sys.stdout), 160),
        "colour": console.has_colour(sys.stdout),
        "unicode": console.has_unicode(sys.stdout),
    }
    width = console.width_of(sys.stdout)
    if everything:
        stream = summaries.stream(outcome.stream.name, outcome.stream.manifest["figures"])
        console.emit(folded(stream, width) + "\n")
    chart = plots.end_of_study(outcome.arms, style, everything=everything)
    console.emit(screen(results, width=width, everything=everything, chart=chart))


def is_strategy_key(text: str, strategies: str) -> bool:
    """Whether a --set belongs to one of the strategies of the grid: its cells get it."""
    return text.partition(".")[0] in strategies.replace("+", ",").replace(" ", "").split(",")
