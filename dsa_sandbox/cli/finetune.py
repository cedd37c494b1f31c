"""finetune: learn a stream of tasks on a base."""

from typing import Annotated

import typer

from dsa_sandbox.cli.options import (
    IS_A_CELL,
    Arch,
    Call,
    TasksFrom,
    answer_plan,
    answer_run,
    show_notes,
    verb,
)

app = typer.Typer()


@verb(
    app,
    "finetune --strategy ewc --set ewc.strength=0.1",
    options="strategy arch tasks data count seed device",
    shared=IS_A_CELL,
    later=True,
    with_strategy=True,
)
def finetune(
    call: Call,
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="BASE",
            help="Pre-trained or imported run (default: the newest pre-trained).",
        ),
    ] = None,
    arch: Arch = None,
    tasks: TasksFrom = None,
    first: Annotated[
        int | None,
        typer.Option(
            "--first", min=1, help="Learn only the first tasks of the stream.", metavar="N"
        ),
    ] = None,
) -> None:
    """Train a base on the tasks, one after another, with a strategy; record forgetting."""
    from dsa_sandbox.commands import finetune as command
    from dsa_sandbox.report import summaries
    from dsa_sandbox.runs import load
    from dsa_sandbox.tasks import checking

    session = call.session
    base = load.base_for(session, run, arch, call.preset)
    resolved = call.resolve(preset=base.manifest.get("preset"), base_arch=base.manifest["arch"])
    settings, stream = command.settings_and_tasks(
        resolved, session, base, tasks, first=first, dry_run=call.dry_run
    )
    if call.dry_run:
        if stream:
            context = settings.model.context
            checking.check(stream.tasks, base.tokenizer, context, stream.name)
        num_tasks = len(stream.tasks) if stream else first or settings.tasks.count
        plan = {
            "base": base.name,
            "strategy": settings.strategy,
            "tasks": num_tasks if stream else "made first",
            "max_steps": num_tasks * settings.finetune.max_steps,
            **resolved.rate_lines(),
            **command.dry_run(settings, base, num_tasks),
        }
        answer_plan(call, "finetune", plan)
        return
    assert stream
    result = command.finetune(settings, session, base, stream, resolved.tuned)
    show_notes(call, summaries.arm(result.run.name, result.figures))
    answer_run(call, result)
