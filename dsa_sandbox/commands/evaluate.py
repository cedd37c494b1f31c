"""The verb `eval`: figures of arms, from their records, and of bases, by measuring them."""

from typing import Any

from dsa_sandbox import machine
from dsa_sandbox.commands.make_tasks import read_tasks
from dsa_sandbox.errors import UserError
from dsa_sandbox.evaluation import base_quality
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.metrics import arm, forgetting, stream
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import chosen_runs, in_grid
from dsa_sandbox.runs.load import BASES, policy_of, pretrained
from dsa_sandbox.runs.session import Session
from dsa_sandbox.selection import backends, policies
from dsa_sandbox.tasks import checking, schema


def evaluate_all(
    session: Session,
    names: list[str],
    *,
    tasks: str | None = None,
    selection: str | None = None,
    data: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Figures by run: of the named ones, or of all finished arms of the newest arm's stream.

    Without names, the runs come in the order of architectures and strategies.
    """
    chosen = chosen_runs(session.home, names, finished=True)
    if not names:
        chosen = in_grid(chosen)
    arm.check_schema([run for run in chosen if run.manifest.get("command") == "finetune"])
    options = {"tasks": tasks, "selection": selection, "data": data}
    return arm.together({run.name: evaluate(run, session, **options) for run in chosen})


def evaluate(
    run: Run,
    session: Session,
    *,
    tasks: str | None = None,
    selection: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Figures of a run: of an arm from its records; of a base measured now.

    Of a base, `tasks` names a stream whose items it is scored on without learning them,
    `selection` a policy that selects the keys, and `data` the present place of its text.
    """
    manifest = run.manifest
    command = manifest.get("command")
    if command == "finetune":
        for option, value in (("tasks", tasks), ("selection", selection), ("data", data)):
            if value is not None:
                raise UserError(
                    f"{run.name}: an arm is read from its records; --{option} applies to bases only"
                )
        if manifest["state"] != "finished":
            raise UserError(f"{run.name}: not finished; `plot` draws unfinished runs")
        run.checked("records.jsonl")
        run.checked("metrics.jsonl")
        return arm.figures_of(run)
    if command not in BASES:
        takes = ", ".join([*BASES, "finetune"])
        raise UserError(f"{run.name}: a {command} run; eval takes runs of {takes}")
    base = pretrained(run)
    if data is not None:  # checked even where a packed copy makes the text unnecessary
        base.source(data)
    settings = base.settings
    engine = backends.engine_for(settings, machine.resolve(settings.machine, settings.preset))
    machine.start(engine)
    model = base.network().to(engine.device)
    backends.use(model, engine.attention)
    if selection is not None and not policies.selects(model):
        raise UserError(
            f"--selection={selection}: {run.name} is {settings.arch}, which selects no keys"
        )
    if selection is not None:
        policies.use(model, policy_of(settings, "--selection", selection))
    if tasks is not None:
        rows = read_tasks(session.home, tasks)
        checking.check(rows.tasks, base.tokenizer, model.context, rows.name)
        probes = Probes(rows.tasks, base.tokenizer)
        numbers = list(range(len(rows.tasks)))
        records = list(probes.records(model, 0, numbers, schema.KINDS))
        right = {kind: forgetting.right(forgetting.select(records, kind)) for kind in schema.KINDS}
        return {
            "kind": "probes",
            "stream": rows.name,
            "tasks": len(rows.tasks),
            "right": right,
            "parts": stream.means_over_tasks(records, 0, len(rows.tasks)),
        }
    text = base.text(session, where=data)
    figures = base_quality.base_quality(model, text, base.writer("test"), settings.seed)
    return {"kind": "base", "arch": manifest["arch"], **figures}
