"""make-tasks: the stream of tasks, made or checked."""

from typing import Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    IS_A_CELL,
    Call,
    Count,
    Family,
    TasksFrom,
    answer_plan,
    answer_run,
    show_notes,
    verb,
)

app = typer.Typer()


@verb(
    app,
    "make-tasks --count 8",
    options="count family tasks seed device",
    shared=IS_A_CELL,
    later=True,
)
def make_tasks(
    call: Call,
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
) -> None:
    """Make a stream of tasks from facts that the bases know, or check your own (--tasks)."""
    from dsa_sandbox.commands import make_tasks as command
    from dsa_sandbox.report import summaries
    from dsa_sandbox.runs import load

    bases = command.bases_for(call.session, runs or [], call.preset)
    resolved = call.resolve(preset=bases[0].manifest.get("preset"))
    command.check_unasked(tasks, {"--count": count, "--family": family}, resolved)
    settings = load.settings_for(resolved, bases[0])
    if call.dry_run:
        given = command.check_stream(settings, call.session.home, bases, tasks)
        plan: dict[str, Any] = {"bases": ", ".join(base.name for base in bases)}
        plan |= {"rows": tasks} if given else {"family": settings.tasks.family}
        plan |= {"count": len(given.tasks) if given else settings.tasks.count}
        plan |= {"stream": settings.tasks.stream, "order": settings.tasks.order}
        answer_plan(call, "make-tasks", plan)
        return
    result = command.make_tasks(settings, call.session, bases, rows=tasks)
    show_notes(call, summaries.stream(result.run.name, result.figures))
    answer_run(call, result)
