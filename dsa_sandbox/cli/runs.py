"""ls, settings and rm: list what there is, print settings, remove runs."""

import sys
from typing import Annotated

import typer

from dsa_sandbox.cli.options import Call, show_notes, verb

app = typer.Typer()


@verb(app, "ls runs", shared="include home as_json")
def list_(
    call: Call,
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="runs, presets, studies, strategies, archs or tasks."),
    ] = "runs",
) -> None:
    """List runs and their progress, presets, studies, strategies, archs or task families."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.report import listing

    rows = listing.entries(kind, call.session.home)
    if call.as_json:
        console.emit_json({"command": "ls", "kind": kind, "rows": rows})
    elif rows:
        console.emit(listing.listed(rows, console.width_of(sys.stdout)))
    else:
        show_notes(call, f"no {kind} in {call.session.home}")


@verb(
    app,
    "settings --preset mini > mini.toml",
    options="strategy arch data count seed",
    shared="preset config set_ include home as_json",
    with_strategy=True,
)
def settings_(
    call: Call,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say above each setting what it is.")
    ] = False,
) -> None:
    """Print every setting and where its value came from, as TOML that --config accepts."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.config import resolve

    settings, sources, _ = call.resolved
    if call.as_json:
        values = resolve.as_flat(settings)
        found = {key: sources.get(key, "default") for key in values}
        about = {"descriptions": resolve.descriptions(settings)} if describe else {}
        console.emit_json({"command": "settings", "settings": values, "sources": found, **about})
    else:
        console.emit(resolve.as_toml(settings, sources, describe).rstrip())


@verb(app, "rm pretrain-dsa-smoke-s0-1234abcd", shared="home dry_run as_json quiet")
def remove(
    call: Call,
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs to remove.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also remove a run that other runs depend on.")
    ] = False,
) -> None:
    """Remove runs; refuse a run that other runs depend on, or that is being written."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.runs import home as store

    home = call.session.home
    chosen = [store.find_run(home, name) for name in runs]
    removed = store.remove(chosen, home, force=force, dry_run=call.dry_run)
    if call.as_json:
        console.emit_json({"command": "rm", "removed": removed, "dry_run": call.dry_run})
    else:
        for folder in removed:
            show_notes(call, f"{'would remove' if call.dry_run else 'removed'} {folder}")
