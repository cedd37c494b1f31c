"""run: the whole study."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    MAKES_A_RUN,
    OUTPUT,
    Archs,
    Call,
    Count,
    Data,
    Device,
    Everything,
    Family,
    Include,
    Jobs,
    Seed,
    Strategies,
    TasksFrom,
    answer_plan,
    network_plan,
    path,
    verb,
)
from dsa_sandbox.errors import UserError

app = typer.Typer()


@verb(
    app,
    "run --preset smoke --count 4 --singles 1",
    options="count family tasks data seed device",
    shared=MAKES_A_RUN,
    later=True,
)
def run(
    call: Call,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Study to run: a .toml file, or one that `ls studies` lists (default: the arms of "
            "--archs and --strategies).",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            help="Several seeds: 10 (0 to 9), 100-109 or 100,105; of a study, those to run now.",
            metavar="RANGE",
        ),
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(
            "--records",
            help="Folder of the same study from another machine: what is finished there is done.",
            metavar="FOLDER",
            parser=path,
        ),
    ] = None,
    count: Count = None,
    family: Family = None,
    tasks: TasksFrom = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    jobs: Jobs = None,
    strategies: Strategies = "sgd,ewc,acft",
    archs: Archs = "dense,dsa",
    singles: Annotated[
        int | None,
        typer.Option(
            "--singles",
            min=0,
            help="Tasks that each arm also learns singly, from the base, with a placebo "
            "(default: 4; 0: none).",
            metavar="N",
        ),
    ] = None,
    include: Include = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Make every run again under a new name; after an interruption, the same command "
            "continues with the new runs.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    everything: Everything = False,
) -> None:
    """Run the whole study: build, pretrain, make-tasks, all arms, eval, plot; skip what exists."""
    if name is not None or seeds is not None or records:
        from dsa_sandbox.cli import seeds as several

        asked = several.Options(
            name=name, seeds=seeds, records=records or [], include=include or [], count=count,
            family=family, tasks=tasks, data=data, seed=seed, device=device, jobs=jobs,
            strategies=strategies, archs=archs, singles=singles,
        )  # fmt: skip
        several.run(call, asked)
        return
    from dsa_sandbox.cli import console
    from dsa_sandbox.cli.grid import asked_experiment, is_strategy_key, rates_of
    from dsa_sandbox.commands import arm_checks, make_tasks
    from dsa_sandbox.config import training_checks
    from dsa_sandbox.metrics import arm
    from dsa_sandbox.report import plots, summaries
    from dsa_sandbox.report.screen import screen
    from dsa_sandbox.report.wrapping import folded
    from dsa_sandbox.study import grid
    from dsa_sandbox.verdict import summary

    sets, home = call.sets, call.session.home
    call.sets = [text for text in sets if not is_strategy_key(text, strategies)]
    resolved = call.resolve()
    for key, option in (("arch", "--archs"), ("strategy", "--strategies")):
        if resolved.sources.get(key) == "--set":
            raise UserError(f"--set {key}: a study names several; use {option}")
    networks = arm_checks.chosen_names(archs, "archs")
    training_checks.check_training(resolved, networks)
    chosen = arm_checks.chosen_names(strategies, "strategies")
    arm_checks.check_strategies(chosen, call.preset, call.config, sets)
    make_tasks.check_unasked(tasks, {"--count": count, "--family": family}, resolved)
    rows = grid.read_rows(home, tasks)
    grid.check_study(resolved, networks, home, rows)
    experiment = asked_experiment(resolved, singles)
    plan = grid.plan(
        call.settings,
        home,
        archs=networks,
        strategies=chosen,
        preset=call.preset,
        config=call.config,
        sets=sets,
        include=include or [],
        data=data,
        device=device,
        stream=experiment != "single",
        singles=0 if experiment == "stream" else singles,
        count=count,
        family=family,
        rows=rows,
        seed=seed,
        jobs=jobs,
        force=call.session.force,
    )
    if call.dry_run:
        described = {**network_plan(call), **plan.described(), **rates_of(call, sets, plan)}
        answer_plan(call, "run", described)
        return
    outcome = grid.run(plan, call.session.listener)
    results = grid.evaluate(outcome)
    if call.as_json:
        about = {"command": "run", **outcome.paths(), "runs": results, "figures": arm.described()}
        console.emit_json(about | summary.as_json(results))
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
    colour = style["colour"]
    console.emit(screen(results, width=width, everything=everything, chart=chart, colour=colour))
