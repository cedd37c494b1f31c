"""Networks that come from transformers, and go there."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.config import paths
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.interop import from_transformers, to_transformers
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.runs import checkpoints, files
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.job import Job, Result, sections
from dsa_sandbox.runs.load import load_model, load_tokenizer, network_of
from dsa_sandbox.runs.saved import run_settings


def check(resolved: Settings) -> None:
    """UserError for a device or text that is not there."""
    machine.resolve(resolved.machine, resolved.preset)
    corpus.resolve(resolved.data)


def import_folder(
    resolved: Settings,
    home: Path,
    folder: from_transformers.Folder,
    *,
    force: bool = False,
    listener: Listener = SILENT,
) -> Result:
    """A run of what a folder in the layout of transformers holds, to be fine-tuned or measured.

    `resolved` has the folder's settings (`reading.check`); its `data` are what fine-tuning takes
    held-out text and pre-training text from.
    """
    source = corpus.resolve(resolved.data)
    context, tokenizer = resolved.model.context, folder.tokenizer
    data_hash = tokens.corpus_digest(source, resolved.data, resolved.seed, context, tokenizer)
    values = {"arch": resolved.arch, "seed": resolved.seed, "data_hash": data_hash}
    values |= {"files": folder.files, **sections(resolved, ("model",))}
    job = Job(
        home,
        "import",
        [resolved.arch, resolved.preset, f"s{resolved.seed}"],
        values,
        resolved,
        {},
        force=force,
        includes={},
        listener=listener,
    )
    if job.finished:
        return job.returned()
    state = from_transformers.state_of(folder, resolved)
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
    """Write a finished network as a folder that transformers loads."""
    network_of(run)
    folder = paths.named(folder, "--to")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not force):
        raise UserError(f"{folder}: already exists  [from --to]; use --force to write into it")
    paths.folder(folder, "--to")
    resolved = run_settings(run)
    to_transformers.layout_of(resolved)
    model = load_model(run)
    total = sum(p.numel() for p in model.parameters())
    imported = run.manifest.get("imported")
    origin = f"pre-trained on {text_of(run, resolved)}"
    if imported:
        name = imported.get("name") or Path(imported["folder"]).name
        origin = f"imported from {name} ({imported['architecture']})"
    trained = {
        "build": "not trained",
        "finetune": f"{origin} and fine-tuned with {run.manifest.get('strategy')} on contradictory "
        "worlds",
    }.get(run.manifest["command"], origin)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--to {folder}: cannot be created: {reason(error)}") from None
    there = to_transformers.write(folder, model, resolved, load_tokenizer(run))
    toy = not imported
    card = to_transformers.card(run.name, resolved, total, trained, toy=toy, num_there=there)
    files.write_atomic(folder / "README.md", card)
    architecture = to_transformers.layout_of(resolved).architecture
    return {"folder": str(folder), "architecture": architecture, "parameters": total}


def text_of(run: Run, resolved: Settings) -> str:
    """What a run was pre-trained on, without a path of this machine."""
    source, told = resolved.data.source, run.manifest.get("data") or {}
    if source == "grammar":
        return "the built-in grammar"
    # older runs do not say of which kind it was
    hub = re.fullmatch(r"\w[\w.-]*/[\w-]+", source) is not None
    hub = told["kind"] == "hub" if "kind" in told else hub
    return source if hub else Path(source).name or "local text"
