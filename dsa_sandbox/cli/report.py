"""report: the verdicts of a study and what stands behind them."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from dsa_sandbox.cli.options import Call, path, verb

app = typer.Typer()


@verb(app, "report laptop --require H2=supported", shared="include home as_json quiet")
def report(
    call: Call,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Study of the home, or a folder of one (default: the newest of the home).",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            help="Exit with 4 unless a claim has this verdict, as H2=supported; repeatable.",
            metavar="CLAIM=VERDICT",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            help="Also write the report (.md), or its effects as a picture (.svg, .png).",
            metavar="FILE",
            parser=path,
        ),
    ] = None,
) -> None:
    """Report a study, finished or not: arms, verdicts with their reasons, falsifiers."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import studies as command
    from dsa_sandbox.report import study_report

    asked = command.requirements(require or [])
    command.check_save(save)
    found = command.study_of(call.session.home, name)
    command.check_claims(found, asked)
    if save is not None:
        command.write(found, save)
        call.session.listener.note(f"report written to {save}")
    if call.as_json:
        console.emit_json({"command": "report", **study_report.as_json(found)})
    else:
        width, unicode = console.width_of(sys.stdout), console.has_unicode(sys.stdout)
        console.emit(study_report.text(found, width=width, unicode=unicode))
    command.check_verdicts(found, asked)
