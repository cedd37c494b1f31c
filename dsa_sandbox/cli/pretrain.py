"""build and pretrain: a network's initial weights, and its pre-training."""

import typer

from dsa_sandbox.cli.options import (
    AllowMismatch,
    Arch,
    Config,
    Data,
    Device,
    DryRun,
    Force,
    Home,
    Include,
    Json,
    Preset,
    Quiet,
    Seed,
    Set,
    Verb,
    answer_plan,
    answer_run,
    network_plan,
    prepare,
    show_notes,
)

app = typer.Typer()


@app.command(cls=Verb, epilog="Example: dsa-sandbox build --arch dense")
def build(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    allow_mismatch: AllowMismatch = False,
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
    """Initialise a network and save it as a run; print the parameter tables."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox.config import resolve

    resolve.check_training(call.resolved, [call.settings.arch])
    if dry_run:
        answer_plan(call, "build", network_plan(call))
        return
    from dsa_sandbox.commands import pretrain as networks
    from dsa_sandbox.report import summaries

    result = networks.build(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, summaries.parameters(result.figures))
    answer_run(call, "build", result)


@app.command(cls=Verb, epilog="Example: dsa-sandbox pretrain --arch dsa --set train.steps=500")
def pretrain(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    allow_mismatch: AllowMismatch = False,
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
    """Pre-train a network from scratch; the same command resumes or returns the run."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox.config import resolve

    resolve.check_training(call.resolved, [call.settings.arch])
    if dry_run:
        answer_plan(call, "pretrain", network_plan(call))
        return
    from dsa_sandbox.commands import pretrain as networks
    from dsa_sandbox.report import summaries

    result = networks.pretrain(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, summaries.base(result.run.name, result.figures))
    answer_run(call, "pretrain", result)
