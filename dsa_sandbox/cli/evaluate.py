"""eval and plot: metrics of arms and bases, in tables and charts."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    Data,
    Everything,
    Home,
    Include,
    Json,
    Quiet,
    TasksFrom,
    Verb,
    path,
    prepare,
)

app = typer.Typer()


@app.command("eval", cls=Verb, epilog="Example: dsa-sandbox eval --json")
def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="Arms or bases (default: all arms of the newest stream)."
        ),
    ] = None,
    tasks: TasksFrom = None,
    data: Data = None,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            help="For bases: selection policy (learned, random, window, oracle, all).",
            metavar="NAME",
        ),
    ] = None,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Also print the formula of every figure.")
    ] = False,
    everything: Everything = False,
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compute metrics of finished fine-tuning runs, or measure bases (on a stream: --tasks)."""
    call = prepare(home=home, include=include, as_json=as_json, quiet=quiet)
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import evaluate as command
    from dsa_sandbox.metrics import arm, transfer
    from dsa_sandbox.registry import archs, strategies
    from dsa_sandbox.report.screen import screen
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.verdict import contrasts

    chosen = store.chosen_runs(call.home, runs or [], finished=True)
    if not runs:  # as a grid, in whatever order the arms were made
        known = [*archs, *strategies]

        def place(run: Any) -> list[int]:
            names = [run.manifest["arch"], *run.manifest["strategy"].split("+")]
            return [known.index(name) if name in known else len(known) for name in names]

        chosen.sort(key=place)
    results = {}
    for run in chosen:
        results[run.name] = command.evaluate(
            run, call.home, tasks=tasks, selection=selection, data=data, listener=call.listener
        )
    results = transfer.against(results)
    if as_json:
        about = {"command": "eval", "runs": results, "figures": arm.described()}
        console.emit_json(about | contrasts.as_json(results))
        return
    width = console.width_of(sys.stdout)
    console.emit(screen(results, width=width, everything=everything, formulas=formulas))


@app.command(cls=Verb, epilog="Example: dsa-sandbox plot --kind retention --save curves.csv")
def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Arms (default: all of the newest stream); for indexer: bases (the newest).",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="forgetting, retention, front, lag, kl, gap, drift, recovery, recall, "
            "coherence; for bases: indexer.",
            metavar="NAME",
        ),
    ] = "forgetting",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", help="Also write the points to a .csv file.", metavar="FILE", parser=path
        ),
    ] = None,
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Plot learning, forgetting and drift of arms, or the training of an indexer."""
    call = prepare(include=include, home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import plots

    plots.check_plot(kind, save)
    chosen = plots.chosen(kind, call.home, runs or [])
    drawn = plots.draw(
        kind,
        chosen,
        width=min(console.width_of(sys.stdout), 160),
        colour=console.has_colour(sys.stdout),
        unicode=console.has_unicode(sys.stdout),
    )
    if save is not None:
        plots.save_csv(save, drawn.points)
        call.listener.note(f"points written to {save}")
    if as_json:
        console.emit_json({"command": "plot", "kind": kind, "points": drawn.points})
    else:
        console.emit(drawn.text)
