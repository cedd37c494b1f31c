"""The verbs `import` and `export`: networks in the layout of transformers."""

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.config import paths
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.interop import from_transformers, to_transformers
from dsa_sandbox.runs import checkpoints, files
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import SavedNetwork, network_of
from dsa_sandbox.runs.session import Session


def check_import(settings: Settings) -> None:
    """UserError where the device or the text is missing."""
    machine.resolve(settings.machine, settings.preset)
    corpus.resolve(settings.data)


def import_folder(settings: Settings, session: Session, folder: from_transformers.Folder) -> Result:
    """The network of a folder in the layout of transformers, as a run.

    `settings` come from `from_transformers.check`; their `data` name the text that fine-tuning
    takes for held-out loss and for pre-training batches.
    """
    source = corpus.resolve(settings.data)
    context, tokenizer = settings.model.context, folder.tokenizer
    data_hash = tokens.corpus_digest(source, settings.data, settings.seed, context, tokenizer)
    listener = session.listener
    job = Job(
        replace(session, includes={}),
        "import",
        settings,
        name=[settings.arch],
        inputs={
            "arch": settings.arch,
            "data_hash": data_hash,
            "files": folder.files,
            **sections(settings, ("model",)),
        },
        parents={},
    )
    if job.finished:
        return job.returned()
    state = from_transformers.state_of(folder, settings)
    notes = [*folder.notes]
    if context < folder.longest:
        notes.append(f"context {context} of {folder.longest} tokens (--context takes more)")
    for note in notes:
        listener.note(f"{folder.path}: {note}")
    figures = {
        "architecture": folder.architecture,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "vocabulary": folder.vocabulary,
        "context": context,
        "notes": notes,
    }
    named = {"folder": str(folder.path), "name": folder.path.resolve().name}
    imported = {**named, "files": folder.files, **figures}
    with ExitStack() as stack:
        about: dict[str, Any] = {
            "data": source._asdict(),
            "data_hash": data_hash,
            "imported": imported,
        }
        if not job.begin(stack, **about):
            return job.returned()
        files.write_atomic(job.run.path / "tokenizer.json", tokenizer.to_str(pretty=True))
        files.write_atomic(job.run.path / "model.safetensors", checkpoints.tensors_bytes(state))
        job.run.finish(figures=figures)
    return Result(job.run, figures)


def export(run: Run, folder: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a finished network into a folder that transformers loads: path, architecture, size.

    UserError where the folder is not empty, but for `force`.
    """
    saved = network_of(run)
    folder = paths.named(folder, "--to")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not force):
        raise UserError(f"{folder}: already exists  [from --to]; use --force to write into it")
    paths.folder(folder, "--to")
    settings = saved.settings
    to_transformers.layout_of(settings)
    model = saved.network()
    total = sum(p.numel() for p in model.parameters())
    imported = saved.manifest.get("imported")
    origin = f"pre-trained on {text_name(saved)}"
    if imported:
        name = imported.get("name") or Path(imported["folder"]).name
        origin = f"imported from {name} ({imported['architecture']})"
    trained = {
        "build": "not trained",
        "finetune": f"{origin} and fine-tuned with {saved.manifest.get('strategy')} on "
        "contradictory worlds",
    }.get(saved.manifest["command"], origin)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to {folder}: cannot be created: {reason(error)}") from None
    there = to_transformers.write(folder, model, settings, saved.tokenizer)
    toy = not imported
    card = to_transformers.card(run.name, settings, total, trained, toy=toy, num_there=there)
    files.write_atomic(folder / "README.md", card)
    architecture = to_transformers.layout_of(settings).architecture
    return {"folder": str(folder), "architecture": architecture, "parameters": total}


def text_name(saved: SavedNetwork) -> str:
    """The text that a run was pre-trained on: its name, without a path of this machine."""
    source, told = saved.settings.data.source, saved.manifest.get("data") or {}
    if source == "grammar":
        return "the built-in grammar"
    # manifests of the first releases do not tell the kind
    hub = re.fullmatch(r"\w[\w.-]*/[\w-]+", source) is not None
    hub = told["kind"] == "hub" if "kind" in told else hub
    return source if hub else Path(source).name or "local text"
