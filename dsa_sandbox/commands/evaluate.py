"""Figures of a run: of an arm from its records, of a base by measuring it."""

from pathlib import Path
from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.commands.make_tasks import read_tasks
from dsa_sandbox.errors import UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.listener import SILENT, Listener
from dsa_sandbox.metrics import arm, forgetting
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.load import (
    BASES,
    corpus_of,
    load_model,
    load_tokenizer,
    policy_of,
    pretrained,
    text_of,
    writer_for,
)
from dsa_sandbox.runs.saved import run_settings
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.tasks import checking, schema


def evaluate(
    run: Run,
    home: Path,
    *,
    tasks: str | None = None,
    selection: str | None = None,
    data: str | None = None,
    listener: Listener = SILENT,
) -> dict[str, Any]:
    """Figures of a run: of an arm from its records; of a base measured now.

    With `tasks`, a base is asked the probes of a stream that it has not learned; with `selection`,
    that policy chooses the keys; `data` says where its text lies now.
    """
    manifest = run.manifest
    command = manifest.get("command")
    if command == "finetune":
        if tasks is not None:
            raise UserError(
                f"{run.name}: an arm is read from its records; --tasks applies to bases only"
            )
        if selection is not None:
            raise UserError(
                f"{run.name}: an arm is read from its records; --selection applies to bases only"
            )
        if data is not None:
            raise UserError(
                f"{run.name}: an arm is read from its records; --data applies to bases only"
            )
        if manifest["state"] != "finished":
            raise UserError(f"{run.name}: not finished; `plot` draws unfinished runs")
        run.checked("records.jsonl")
        run.checked("metrics.jsonl")
        return arm.figures_of(run)
    if command not in BASES:
        takes = ", ".join([*BASES, "finetune"])
        raise UserError(f"{run.name}: a {command} run; eval takes runs of {takes}")
    pretrained(run)
    if data is not None:  # also where its packed text is there: an option is never passed over
        text_of(run, data)
    resolved = run_settings(run)
    engine = backends.engine_for(resolved, machine.resolve(resolved.machine, resolved.preset))
    machine.start(engine)
    model = load_model(run).to(engine.device)
    backends.use(model, engine.attention)
    if selection is not None and not policies.selects(model):
        raise UserError(
            f"--selection={selection}: {run.name} is {resolved.arch}, which selects no keys"
        )
    if selection is not None:
        policies.use(model, policy_of(resolved, "--selection", selection))
    if tasks is not None:
        rows, name, _ = read_tasks(home, tasks)
        tokenizer = load_tokenizer(run)
        checking.check(rows, tokenizer, model.context, name)
        probes = Probes(rows, tokenizer)
        records = list(probes.records(model, 0, list(range(len(rows))), schema.KINDS))
        right = {kind: forgetting.right(forgetting.select(records, kind)) for kind in schema.KINDS}
        return {"kind": "probes", "stream": name, "tasks": len(rows), "right": right}
    text = corpus_of(run, home, listener, where=data)
    figures = base_quality.base_quality(model, text, writer_for(run, "test"), resolved.seed)
    return {"kind": "base", "arch": manifest["arch"], **figures}
