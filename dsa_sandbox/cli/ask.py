"""ask: what arms say to one probe of one task, in words."""

import sys
from typing import Annotated

import typer

from dsa_sandbox.cli.options import Call, verb

app = typer.Typer()


@verb(app, "ask --task 2 --kind far", shared="include home as_json quiet")
def ask(
    call: Call,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN", help="Arms (default: those of the newest stream)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", help="Task, by its number or its world (default: 1).", metavar="NAME"
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            help="Item: near, far, outside, transfer or neighbour (default: far and outside).",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Ask one probe of a task: what the base, the arm after it, and the arm at the end say."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import ask as report

    asked = report.ask(report.chosen(call.session.home, runs or []), task, kind)
    if call.as_json:
        console.emit_json({"command": "ask", **report.as_json(asked)})
    else:
        colour = console.has_colour(sys.stdout)
        console.emit(report.text(asked, console.width_of(sys.stdout), colour=colour))
