"""The commands that look at runs or take them elsewhere. Heavy imports wait until needed."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsa_sandbox.options import (
    Arch,
    Config,
    Count,
    Data,
    Device,
    DryRun,
    Home,
    Include,
    Json,
    Preset,
    Quiet,
    Seed,
    Set,
    Strategy,
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
            help="Of bases: who chooses the keys (learned, random, window, oracle, all).",
            metavar="NAME",
        ),
    ] = None,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Show how each figure is computed.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also a table of learning and drift.")
    ] = False,
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Figures of arms from their records, or of bases by measuring them (on --tasks, if named)."""
    call = prepare(home=home, include=include, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console, store
    from dsa_sandbox.commands import networks
    from dsa_sandbox.evaluation import learning
    from dsa_sandbox.registry import archs, strategies
    from dsa_sandbox.report import table

    chosen = store.chosen_runs(call.home, runs or [], finished=True)
    if not runs:  # as a grid: however many ran side by side, and whichever came first
        known = [*archs, *strategies]
        chosen.sort(
            key=lambda run: [
                known.index(name) if name in known else len(known)
                for name in (run.manifest["arch"], *run.manifest["strategy"].split("+"))
            ]
        )
    results = {
        run.name: networks.evaluate(
            run, call.home, tasks=tasks, selection=selection, data=data, listener=call.listener
        )
        for run in chosen
    }
    results = learning.against(results)
    if as_json:
        console.emit_json(
            {
                "command": "eval",
                "runs": results,
                "formulas": table.formulas(),
                **table.contrasts(results),
            }
        )
        return
    width = console.width_of(sys.stdout)
    console.emit(table.results(results, width=width, with_formulas=formulas, more=everything))


@app.command(cls=Verb, epilog="Example: dsa-sandbox plot --kind retention --save curves.csv")
def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Arms (default: all of the newest stream), or for indexer bases (the newest).",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="forgetting, retention, front, lag, kl, gap, drift, recovery, recall, coherence; "
            "of bases: indexer.",
            metavar="NAME",
        ),
    ] = "forgetting",
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", help="Also write the points to a .csv file.", metavar="FILE", parser=path
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw what arms learn, forget and become, or what an indexer learns."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console
    from dsa_sandbox.report import figures

    figures.check(kind, save)
    chosen = figures.chosen(kind, call.home, runs or [])
    drawn = figures.draw(
        kind,
        chosen,
        width=min(console.width_of(sys.stdout), 160),
        colour=console.has_colour(sys.stdout),
        unicode=console.has_unicode(sys.stdout),
    )
    if save is not None:
        figures.save_csv(save, drawn.points)
        call.listener.note(f"points written to {save}")
    if as_json:
        console.emit_json({"command": "plot", "kind": kind, "points": drawn.points})
    else:
        console.emit(drawn.text)


@app.command(
    cls=Verb, epilog='Example: dsa-sandbox generate --prompt "Tom had a red ball." --count 3'
)
def generate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="A run with a network (default: the newest base)."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="How the stories begin.", metavar="TEXT")
    ] = "Once upon a time",
    count: Annotated[
        int, typer.Option("--count", min=1, max=1000, help="Stories.", metavar="N")
    ] = 1,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest continuation.", metavar="N")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0: always the likeliest.", metavar="X")
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Leave out the unlikeliest.", metavar="X"),
    ] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the draws.", metavar="N")
    ] = 0,
    device: Device = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a network tell stories; the text appears as it is told."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import bases, console, store
    from dsa_sandbox.commands import networks

    networks.check_drawing(temperature, top_p)  # before a network is looked for
    if run is not None:
        teller = store.find_run(call.home, run)
    else:
        teller = bases.default_network(call.home, call.listener)

    def say(text: str) -> None:
        if count == 1 and not as_json:
            console.emit(text, end="")

    drawing: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    stories = networks.generate(
        teller, prompt=prompt, count=count, device=device, say=say, **drawing
    )
    if as_json:
        console.emit_json(
            {"command": "generate", "run": teller.name, **drawing, "stories": stories}
        )
    elif count == 1:
        console.emit("")
    else:
        console.emit("\n\n".join(stories))


@app.command(cls=Verb, epilog="Example: dsa-sandbox export pretrain-dense --to my-model")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run with a network.")],
    to: Annotated[
        Path, typer.Option("--to", help="Folder to write.", metavar="FOLDER", parser=path)
    ],
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also into a folder that is not empty.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network for transformers: dense as Llama, dsa-v32 as DeepSeek, dsa with its code."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console, store
    from dsa_sandbox.commands import exchange

    made = exchange.export(store.find_run(call.home, run), to, force=force)
    if as_json:
        console.emit_json({"command": "export", **made})
    else:
        call.listener.note(f"{made['architecture']}, {made['parameters']:,} parameters")
        console.emit(made["folder"])


@app.command("ls", cls=Verb, epilog="Example: dsa-sandbox ls runs")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="runs, presets, strategies, archs or tasks.")
    ] = "runs",
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs (with how far unfinished ones are), presets, strategies, archs or task families."""
    call = prepare(home=home, include=include, as_json=as_json)
    from dsa_sandbox import console
    from dsa_sandbox.report import listing

    rows = listing.rows(kind, call.home)
    if as_json:
        console.emit_json({"command": "ls", "kind": kind, "rows": rows})
    elif rows:
        console.emit(listing.table(rows, console.width_of(sys.stdout)))
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
    as_json: Json = False,
) -> None:
    """Print every resolved setting and who set it, as TOML that --config accepts."""
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
    from dsa_sandbox import console, resolving

    if as_json:
        values = resolving.as_flat(call.settings)
        sources = {key: call.resolved.sources.get(key, "default") for key in values}
        console.emit_json({"command": "settings", "settings": values, "sources": sources})
    else:
        console.emit(resolving.as_toml(call.settings, call.resolved.sources).rstrip())


@app.command("rm", cls=Verb, epilog="Example: dsa-sandbox rm pretrain-dsa-smoke-s0-1234abcd")
def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Runs to remove.")],
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where other runs stand on it.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove runs; one that others stand on, or that is being written, is refused."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console, store

    chosen = [store.find_run(call.home, name) for name in runs]
    removed = store.remove(chosen, call.home, force=force, dry_run=dry_run)
    if as_json:
        console.emit_json({"command": "rm", "removed": removed, "dry_run": dry_run})
    else:
        for folder in removed:
            call.listener.note(f"{'would remove' if dry_run else 'removed'} {folder}")
