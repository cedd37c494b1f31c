"""eval and plot: metrics of arms and bases, in tables and charts."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsa_sandbox import registry
from dsa_sandbox.cli.options import Call, Data, Everything, TasksFrom, path, verb

app = typer.Typer()


@verb(app, "eval --json", shared="include home as_json quiet")
def evaluate(
    call: Call,
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
) -> None:
    """Compute metrics of finished fine-tuning runs, or measure bases (on a stream: --tasks)."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import evaluate as command
    from dsa_sandbox.metrics import arm
    from dsa_sandbox.report.screen import screen
    from dsa_sandbox.verdict import summary

    results = command.evaluate_all(
        call.session, runs or [], tasks=tasks, selection=selection, data=data
    )
    if call.as_json:
        about = {"command": "eval", "runs": results, "figures": arm.described()}
        console.emit_json(about | summary.as_json(results))
        return
    colour = console.has_colour(sys.stdout)
    style: dict[str, Any] = {"width": console.width_of(sys.stdout), "colour": colour}
    console.emit(screen(results, everything=everything, formulas=formulas, **style))


@verb(app, "plot --kind retention --save curves.svg", shared="include home as_json quiet")
def plot(
    call: Call,
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
            help=f"{', '.join(registry.plots)}; for bases: indexer.",
            metavar="NAME",
        ),
    ] = "forgetting",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            help="Also write a picture (.svg, .png), or the points (.csv).",
            metavar="FILE",
            parser=path,
        ),
    ] = None,
) -> None:
    """Plot learning, forgetting and drift of arms, or the training of an indexer."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import plots

    plots.check_plot(kind, save)
    chosen = plots.chosen(kind, call.session.home, runs or [])
    drawn = plots.draw(
        kind,
        chosen,
        width=min(console.width_of(sys.stdout), 160),
        colour=console.has_colour(sys.stdout),
        unicode=console.has_unicode(sys.stdout),
    )
    if save is not None:
        call.session.listener.note(plots.save(save, kind, drawn))
    if call.as_json:
        console.emit_json({"command": "plot", "kind": kind, "points": drawn.points})
    else:
        console.emit(drawn.text)
