"""import and export: folders in the layout of transformers."""

from pathlib import Path
from typing import Annotated

import typer

from dsa_sandbox.cli.options import (
    Config,
    Data,
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
    path,
    prepare,
    show_notes,
)

app = typer.Typer()


@app.command(cls=Verb, epilog="Example: dsa-sandbox export pretrain-dense --to my-model")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run with a network.")],
    to: Annotated[Path, typer.Option("--to", help="Output folder.", metavar="FOLDER", parser=path)],
    include: Include = None,
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that is not empty.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export a network to transformers: dense as Llama, dsa-v32 as DeepSeek, dsa with its code."""
    call = prepare(include=include, home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import exchange
    from dsa_sandbox.runs import home as store

    made = exchange.export(store.find_run(call.home, run), to, force=force)
    if as_json:
        console.emit_json({"command": "export", **made})
    else:
        call.listener.note(f"{made['architecture']}, {made['parameters']:,} parameters")
        console.emit(made["folder"])


@app.command("import", cls=Verb, epilog="Example: dsa-sandbox import my-llama --context 512")
def import_(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with config.json, safetensors and tokenizer.json.",
            parser=path,
        ),
    ],
    data: Data = None,
    context: Annotated[
        int | None,
        typer.Option(
            "--context",
            help="Maximum sequence length (default: the model's, at most 2048).",
            metavar="N",
        ),
    ] = None,
    seed: Seed = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import a Llama-shaped or exported model as a base; runs no code of its folder."""
    from dsa_sandbox.commands import exchange
    from dsa_sandbox.interop import from_transformers

    found = from_transformers.read_folder(folder)
    call = prepare(
        options={
            "data.source": (data, "--data"),
            "model.context": (context, "--context"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        home=home,
        as_json=as_json,
        quiet=quiet,
        network=(found.file, {**found.fixed, **found.likely}),
    )
    settings = from_transformers.check(call.resolved, found)
    if dry_run:
        exchange.check(settings)
        plan = {
            "arch": settings.arch,
            "architecture": found.architecture,
            "vocabulary": found.vocabulary,
            "context": settings.model.context,
        }
        answer_plan(call, "import", plan)
        return
    result = exchange.import_folder(settings, call.home, found, force=force, listener=call.listener)
    note = f"{result.figures['architecture']}, {result.figures['parameters']:,} parameters"
    show_notes(call, f"{note}, as {settings.arch}")
    answer_run(call, "import", result)
