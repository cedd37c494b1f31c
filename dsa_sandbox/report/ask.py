"""`ask`: one probe of one task, answered in words by the base and by each arm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics.arm import experiment_of, rows_of_tasks
from dsa_sandbox.registry import nearest
from dsa_sandbox.report.loading import load
from dsa_sandbox.report.looks import Look, coloured
from dsa_sandbox.report.probe import (
    STAGES,
    Probe,
    Record,
    answers,
    first_of,
    inside,
    items_of,
    outside,
    probe,
    rows_of,
)
from dsa_sandbox.report.wrapping import folded, plain, rendered
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import chosen_runs, in_grid, whole_stream

# what --kind asks: stored kinds of items, each with a distance where that decides
KINDS: dict[str, tuple[tuple[str, str | None], ...]] = {
    "near": (("validation_in", "near"),),
    "far": (("validation_in", "far"),),
    "outside": (("validation_out", None),),
    "transfer": (("transfer_in", None), ("transfer_out", None)),
    "neighbour": (("neighbour", None),),
}
PLACES = {
    "this world": "In the world",
    "no world": "In no world",
    "real world": "In the real world",
    "contrast world": "In a world of contrast stories",
    "unseen world": "In a world of no story",
}
ANOTHER = "Another fact,"


class Asked(NamedTuple):
    """The probes of a task."""

    number: int  # of the task, from 1
    num_tasks: int  # of the stream
    task: Mapping[str, Any]  # its row in tasks.jsonl; empty where the run keeps none
    probes: list[Probe]
    runs: dict[str, str]  # run by the name of its arm
    looks: dict[str, Look]  # by the name of the arm


def chosen(home: Path, names: list[str]) -> list[Run]:
    """The named arms, or those of the newest stream, by architecture and strategy.

    Without names, single tasks are asked where there is no stream, and placebos where there is
    nothing else.
    """
    runs = chosen_runs(home, names)
    for run in runs:
        command = run.manifest.get("command")
        if command != "finetune":
            raise UserError(
                f"{run.name}: a {command} run; ask takes finetune runs (and their base)"
            )
    if len({whole_stream(run) for run in runs}) > 1:
        listed = ", ".join(run.name for run in runs)
        raise UserError(f"these arms have learned several streams; ask one at a time: {listed}")
    if names:
        return runs
    runs = [run for run in runs if not run.manifest.get("placebo")] or runs
    runs = [run for run in runs if experiment_of(run.manifest) == "stream"] or runs
    return in_grid(runs)


def ask(runs: list[Run], task: str | None = None, kind: str | None = None) -> Asked:
    """The probes of a task, with the answers of these arms of one stream.

    `task` is a number from 1, a world or a task's name; `kind` one of KINDS. UserError where there
    is no such item, or no arm has learned the task yet.
    """
    if kind is not None and kind not in KINDS:
        known = ", ".join(KINDS)
        hint = nearest(kind, list(KINDS))
        raise UserError(f"--kind {kind}: no such kind of item{hint}  (there are: {known})")
    for run in runs:
        if not (run.path / "records.jsonl").exists():
            raise UserError(
                f"{run.name}: it keeps no items (it has no records.jsonl); ask where it was made"
            )
    longest = max(runs, key=lambda run: run.manifest["tasks"]["count"])
    tasks, num_tasks = rows_of_tasks(longest), longest.manifest["tasks"]["count"]
    number = numbered(task, tasks, num_tasks)
    arms = [arm for arm in load(runs) if number < arm.num_tasks]
    learned = [arm for arm in arms if number < arm.done]
    if not learned:
        done = max((arm.done for arm in arms), default=0)
        raise UserError(
            f"--task {number + 1}: no arm has learned it yet; {done} of {num_tasks} tasks are done"
        )
    probes = []
    for record in asked_items(items_of(learned[0].records, number), kind):
        answered = {}
        for arm in arms:
            rows = rows_of(arm.protocol, number, arm.num_tasks)
            answered[arm.name] = answers(arm.records, record, rows)
        probes.append(probe(record, answered))
    row = tasks[number] if tasks else {}
    runs_of, looks = {arm.name: arm.run.name for arm in arms}, {arm.name: arm.look for arm in arms}
    return Asked(number + 1, num_tasks, row, probes, runs_of, looks)


def numbered(wanted: str | None, tasks: list[dict[str, Any]], num_tasks: int) -> int:
    """The task of a number, world or name, counted from 0; the first where none is named."""
    if wanted is None:
        return 0
    if wanted.lstrip("-").isdecimal():
        if 1 <= int(wanted) <= num_tasks:
            return int(wanted) - 1
        raise UserError(f"--task {wanted}: no such task; the stream has tasks 1 to {num_tasks}")
    for number, row in enumerate(tasks):
        if wanted.lower() in (str(row.get(key, "")).lower() for key in ("world", "task")):
            return number
    worlds = list(dict.fromkeys(row["world"] for row in tasks if row.get("world")))
    there = f"there are: {', '.join(worlds)}" if worlds else f"give a number, 1 to {num_tasks}"
    raise UserError(f"--task {wanted}: no task of that world{nearest(wanted, worlds)}  ({there})")


def asked_items(items: list[Record], kind: str | None) -> list[Record]:
    """The items of a kind, or by default one in the world and one outside of it."""
    if kind is None:
        firsts = [inside(items), outside(items)]
    else:
        firsts = [first_of(items, *wanted) for wanted in KINDS[kind]]
    found = [record for record in firsts if record is not None]
    if not found:
        has = [name for name, wanted in KINDS.items() if any(first_of(items, *w) for w in wanted)]
        there = ", ".join(has) or "no item that was scored"
        asked = f"--kind {kind}: the task has no such item" if kind else "nothing to ask"
        raise UserError(f"{asked}  (it has: {there})")
    return found


def as_json(asked: Asked) -> dict[str, Any]:
    """The probes as plain values; an answer that an arm does not have is null."""
    probes = []
    for one in asked.probes:
        said = {}
        for name, by_stage in one.answers.items():
            plain_values = {stage: s and s._asdict() for stage, s in by_stage.items()}
            said[asked.runs[name]] = {"arm": name, **plain_values}
        probes.append({**one._asdict(), "answers": said})
    keys = ("task", "world", "subject", "relation", "true_object", "new_object")
    about = {key: asked.task[key] for key in keys if key in asked.task}
    return {"task": {"number": asked.number, "of": asked.num_tasks, **about}, "probes": probes}


def text(asked: Asked, width: int, *, colour: bool = False) -> str:
    """The probes as a heading, and a table of arms for each; with colour, marks have theirs."""
    parts = [folded(heading(asked), width)]
    for one in asked.probes:
        parts.append(f"{folded(question(one, asked.task), width)}\n{table(one, asked, width)}")
    parts.append(folded("Numbers: p of the expected word against the contrary one.", width))
    shown = "\n\n".join(parts)
    return coloured(shown, list(asked.looks.values())) if colour else shown


def heading(asked: Asked) -> str:
    """Which task it is, and what it tells."""
    row = asked.task
    told = f"Task {asked.number} of {asked.num_tasks}"
    if not row:
        return told
    world = row.get("world") or "its world"
    subject = f", {row['subject']}" if row.get("subject") else ""
    return f"{told}{subject}: {row['new_object']} in {world}, {row['true_object']} elsewhere"


def question(one: Probe, task: Mapping[str, Any]) -> str:
    """Where a probe is set, what is right, and on a line of its own what it asks."""
    where = PLACES.get(one.where or "", "In the world" if one.kind.endswith("_in") else "Outside")
    if one.where == "this world" and task.get("world"):
        where = f"In {task['world']}"
    where = f"{ANOTHER} in{where[2:]}" if one.kind == "neighbour" else where
    named = f", named {one.tokens} tokens before the answer" if one.tokens is not None else ""
    frame = ", in words of no story" if one.kind == "transfer_in" else ""
    return f"{where}{named}{frame} (right: {one.expected})\n  {one.asked} ..."


def table(one: Probe, asked: Asked, width: int) -> str:
    """A row for each arm: the word and its p at each stage; a stage that no arm has is left out."""
    heads = {"base": "base", "after": f"after task {asked.number}", "end": "at the end"}
    drawn = plain(3)
    drawn.add_column("arm", no_wrap=True)
    shown = [s for s in STAGES if any(found[s] for found in one.answers.values())]
    for stage in shown:
        drawn.add_column(heads[stage], no_wrap=True)
    words = {s: [said.word for f in one.answers.values() if (said := f[s])] for s in shown}
    widest = {stage: max(map(len, listed)) for stage, listed in words.items()}
    for name, found in one.answers.items():
        cells = []
        for stage in shown:
            one_said = found[stage]
            cells.append(f"{one_said.word:<{widest[stage]}}  {one_said.p:.2f}" if one_said else "-")
        drawn.add_row(f"{asked.looks[name].mark} {name}", *cells)
    return rendered(drawn, width)
