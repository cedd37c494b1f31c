"""import and export: folders in the layout of transformers."""

from pathlib import Path
from typing import Annotated

import typer

from dsa_sandbox.cli.options import (
    MAKES_A_RUN,
    Call,
    answer_plan,
    answer_run,
    path,
    show_notes,
    verb,
)

app = typer.Typer()


@verb(app, "export pretrain-dense --to my-model", shared="include home as_json quiet")
def export(
    call: Call,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run with a network.")],
    to: Annotated[Path, typer.Option("--to", help="Output folder.", metavar="FOLDER", parser=path)],
    force: Annotated[
        bool, typer.Option("--force", help="Write into a folder that is not empty.")
    ] = False,
) -> None:
    """Export a network to transformers: dense as Llama, dsa-v32 as DeepSeek, dsa with its code."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.commands import exchange as command
    from dsa_sandbox.runs import home as store

    made = command.export(store.find_run(call.session.home, run), to, force=force)
    if call.as_json:
        console.emit_json({"command": "export", **made})
    else:
        note = f"{made['architecture']}, {made['parameters']:,} parameters"
        show_notes(call, note)
        console.emit(made["folder"])


@verb(
    app,
    "import my-llama --context 512",
    options="data context seed",
    shared=MAKES_A_RUN.replace("include ", ""),
    later=True,
)
def import_(
    call: Call,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Folder with config.json, safetensors and tokenizer.json.",
            parser=path,
        ),
    ],
) -> None:
    """Import a Llama-shaped or exported model as a base; runs no code of its folder."""
    from dsa_sandbox.commands import exchange as command
    from dsa_sandbox.interop import from_transformers

    found = from_transformers.read_folder(folder)
    resolved = call.resolve(network=(found.file, {**found.fixed, **found.likely}))
    settings = from_transformers.check(resolved, found)
    if call.dry_run:
        command.check_import(settings)
        plan = {
            "arch": settings.arch,
            "architecture": found.architecture,
            "vocabulary": found.vocabulary,
            "context": settings.model.context,
        }
        answer_plan(call, "import", plan)
        return
    result = command.import_folder(settings, call.session, found)
    note = f"{result.figures['architecture']}, {result.figures['parameters']:,} parameters"
    show_notes(call, f"{note}, as {settings.arch}")
    answer_run(call, result)
