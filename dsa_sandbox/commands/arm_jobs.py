"""The run of an arm by its identity, and the arm that a placebo belongs to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dsa_sandbox.commands.arm_checks import judging_network
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs.folder import Run, readable_manifest
from dsa_sandbox.runs.home import all_runs
from dsa_sandbox.runs.job import Job, sections
from dsa_sandbox.runs.load import SavedNetwork, identities
from dsa_sandbox.runs.session import Session
from dsa_sandbox.tasks.schema import TaskStream


def job_for(
    settings: Settings,
    session: Session,
    base: SavedNetwork,
    stream: TaskStream,
    belongs_to: Run | None = None,
    latest: bool = False,
) -> Job:
    """The job of an arm; a placebo also depends on the steps of the arm that it belongs to.

    With `latest`, the newest finished run of these settings is taken.
    """
    judging = judging_network(settings, session.home)
    inputs: dict[str, Any] = {
        "parents": [base.sha256, stream.sha256],
        "strategy": settings.strategy,
        "strategy_settings": {n: part.model_dump() for n, part in settings.chosen.items()},
        **sections(settings, ("finetune",)),
        **identities([base]),
    }
    inputs["eval"] = job_eval(settings, judging)
    parents = {base.name: base.sha256, stream.name: stream.sha256}
    if belongs_to is not None:
        parents[belongs_to.name] = belongs_to.manifest["files"]["metrics.jsonl"]
        inputs["arm"] = parents[belongs_to.name]
    return Job(
        session,
        "finetune",
        settings,
        name=[settings.arch, settings.strategy],
        inputs=inputs,
        parents=parents,
        latest=latest,
    )


def job_eval(settings: Settings, judging: SavedNetwork | None) -> dict[str, Any]:
    """The settings of measuring, with the identity of the judge in place of its name."""
    found: dict[str, Any] = sections(settings, ("eval",))["eval"]
    found["judge"] = judging and [judging.manifest["identity"], judging.sha256]
    return found


def arm_of(
    settings: Settings, session: Session, base: SavedNetwork, stream: TaskStream
) -> Run | None:
    """The finished arm that a placebo belongs to; UserError where it is missing.

    An arm of single tasks may have learned more tasks of the stream than its placebo.
    """
    if not settings.finetune.placebo:
        return None
    plan = settings.finetune.model_copy(update={"placebo": False})
    settings = settings.model_copy(update={"finetune": plan})
    session = replace(session, force=False)
    for learned in [stream, *longer(session.home, settings, stream)]:
        job = job_for(settings, session, base, learned, latest=True)
        if job.finished:
            break
    else:
        raise UserError(
            "finetune.placebo=true: takes its steps from the same arm without placebo, which is "
            "not finished in this home; run it first with finetune.placebo=false"
        )
    return job.run


def longer(home: Path, settings: Settings, stream: TaskStream) -> list[TaskStream]:
    """Streams of single tasks that arms of the home have learned, and that begin with this one."""
    if settings.finetune.experiment != "single":
        return []
    whole, found = stream.of or stream.sha256, {}
    for run in all_runs(home):
        tasks = readable_manifest(run).get("tasks")
        if isinstance(tasks, dict) and whole in (tasks.get("of"), tasks.get("sha256")):
            sha256 = str(tasks.get("sha256"))
            if int(tasks.get("count", 0)) > len(stream.tasks):
                found[sha256] = TaskStream(stream.tasks, stream.name, sha256, tasks.get("of", ""))
    return list(found.values())


def steps_of(arm: Run) -> list[dict[str, Any]]:
    """For each task of an arm: its steps, where its figures were measured, and its bisection."""
    rows = arm.rows("metrics.jsonl")
    found = []
    for line in (row for row in rows if row.get("row")):
        at = [row["at"] for row in rows if "at" in row and row["task"] == line["row"] - 1]
        steps = line.get("best_step", line["steps"])
        if arm.manifest["experiment"] == "single":  # nothing is measured after the last of them
            steps = max(at, default=0)
        bisection: dict[str, Any] = {
            key: line[key] for key in ("from_step", "bisected") if key in line
        }
        found.append({"steps": steps, "at": at, **bisection})
    return found
