"""ls, settings and rm: list what there is, print settings, remove runs."""

import sys
from typing import Annotated

import typer

from dsa_sandbox.cli.options import (
    Arch,
    Config,
    Count,
    Data,
    DryRun,
    Home,
    Include,
    Json,
    Preset,
    Quiet,
    Seed,
    Set,
    Strategy,
    Verb,
    prepare,
)

app = typer.Typer()


@app.command("ls", cls=Verb, epilog="Example: dsa-sandbox ls runs")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="runs, presets, strategies, archs or tasks.")
    ] = "runs",
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs and their progress, presets, strategies, architectures or task families."""
    call = prepare(home=home, include=include, as_json=as_json)
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import listing

    rows = listing.entries(kind, call.home)
    if as_json:
        console.emit_json({"command": "ls", "kind": kind, "rows": rows})
    elif rows:
        console.emit(listing.listed(rows, console.width_of(sys.stdout)))
    else:
        call.listener.note(f"no {kind} in {call.home}")


@app.command("settings", cls=Verb, epilog="Example: dsa-sandbox settings --preset mini > mini.toml")
def settings_(
    strategy: Strategy = None,
    arch: Arch = None,
    data: Data = None,
    count: Count = None,
    seed: Seed = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say above each setting what it is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print every setting and where its value came from, as TOML that --config accepts."""
    call = prepare(
        options={
            "strategy": (strategy, "--strategy"),
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "tasks.count": (count, "--count"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        as_json=as_json,
        with_strategy=True,
    )
    from dsa_sandbox.cli import console
    from dsa_sandbox.config import resolve

    if as_json:
        values = resolve.as_flat(call.settings)
        sources = {key: call.resolved.sources.get(key, "default") for key in values}
        about = {"descriptions": resolve.descriptions(call.settings)} if describe else {}
        console.emit_json({"command": "settings", "settings": values, "sources": sources, **about})
    else:
        text = resolve.as_toml(call.settings, call.resolved.sources, describe)
        console.emit(text.rstrip())


@app.command("rm", cls=Verb, epilog="Example: dsa-sandbox rm pretrain-dsa-smoke-s0-1234abcd")
def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs to remove.")],
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove a run that other runs depend on.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove runs; refuse a run that other runs depend on, or that is being written."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox.cli import console
    from dsa_sandbox.runs import home as store

    chosen = [store.find_run(call.home, name) for name in runs]
    removed = store.remove(chosen, call.home, force=force, dry_run=dry_run)
    if as_json:
        console.emit_json({"command": "rm", "removed": removed, "dry_run": dry_run})
    else:
        for folder in removed:
            call.listener.note(f"{'would remove' if dry_run else 'removed'} {folder}")
