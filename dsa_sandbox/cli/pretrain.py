"""build and pretrain: a network's initial weights, and its pre-training."""

import typer

from dsa_sandbox.cli.options import (
    IS_A_CELL,
    AllowMismatch,
    Call,
    answer_plan,
    answer_run,
    network_plan,
    show_notes,
    verb,
)

app = typer.Typer()


@verb(app, "build --arch dense", options="arch data seed", shared=IS_A_CELL)
def build(call: Call, allow_mismatch: AllowMismatch = False) -> None:
    """Initialise a network and save it as a run; print the parameter tables."""
    from dsa_sandbox.config import training_checks

    training_checks.check_training(call.resolved, [call.settings.arch])
    if call.dry_run:
        answer_plan(call, "build", network_plan(call))
        return
    from dsa_sandbox.commands import pretrain as command
    from dsa_sandbox.report import summaries

    result = command.build(call.settings, call.session, allow_mismatch=allow_mismatch)
    show_notes(call, summaries.parameters(result.figures))
    answer_run(call, result)


@verb(
    app,
    "pretrain --arch dsa --set train.steps=500",
    options="arch data seed device",
    shared=IS_A_CELL,
)
def pretrain(call: Call, allow_mismatch: AllowMismatch = False) -> None:
    """Pre-train a network from scratch; the same command resumes or returns the run."""
    from dsa_sandbox.config import training_checks

    training_checks.check_training(call.resolved, [call.settings.arch])
    if call.dry_run:
        answer_plan(call, "pretrain", network_plan(call))
        return
    from dsa_sandbox.commands import pretrain as command
    from dsa_sandbox.report import summaries

    result = command.pretrain(call.settings, call.session, allow_mismatch=allow_mismatch)
    show_notes(call, summaries.base(result.run.name, result.figures))
    answer_run(call, result)
