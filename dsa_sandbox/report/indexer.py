"""What the indexer has learned, over the steps of pre-training: a line for each layer."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import forgetting
from dsa_sandbox.report import charts
from dsa_sandbox.report.charts import Drawn, Series
from dsa_sandbox.report.wrapping import folded
from dsa_sandbox.runs import folder
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import all_runs, find_run
from dsa_sandbox.runs.saved import run_settings

TITLES = {
    "kl_captured": "KL captured: 1 - KL / KL(uniform), in the sparse phase over the selected keys",
    "recall": "Recall: share of the teacher's attention on the selected keys",
    "overlap": "Overlap: share of the teacher's own top-k that is selected",
}
BESIDE = ("density", "tie_rate")  # figures that are told, not drawn


class Taught(NamedTuple):
    """A run, and what its indexer was worth at each validation since it is taught."""

    run: Run
    settings: Settings
    lines: list[dict[str, Any]]  # of metrics.jsonl: step, phase, and figures of each layer


def chosen(home: Path, names: list[str]) -> list[Run]:
    """The named runs, or the newest pre-training, finished or not, that teaches an indexer."""
    if names:
        return [find_run(home, name) for name in names]
    for run in reversed(all_runs(home)):
        if folder.readable_manifest(run).get("command") == "pretrain" and not untaught(run):
            return [run]
    raise UserError(
        f"no indexer is taught in {home} yet; run first: dsa-sandbox pretrain --arch dsa"
    )


def untaught(run: Run) -> str:
    """Why no indexer is taught in a pre-training; empty where one is."""
    try:
        resolved = run_settings(run)
    except UserError as error:
        return str(error)
    if not sizes.has_indexer(resolved.arch, resolved.model):
        return f"{run.name}: {resolved.arch} has no indexer; name a run of dsa"
    if resolved.train.selection != "learned":
        return f"{run.name}: no indexer is taught with train.selection={resolved.train.selection}"
    return ""


def load(runs: list[Run]) -> list[Taught]:
    """What the runs have logged of their indexers; UserError for each that has nothing."""
    found, problems = [], []
    for run in runs:
        command = run.manifest.get("command")
        if command != "pretrain":
            problems.append(f"{run.name}: a {command} run; a pretrain run is needed")
            continue
        if reason := untaught(run):
            problems.append(reason)
            continue
        lines = run.rows("metrics.jsonl")
        taught = Taught(run, run_settings(run), [line for line in lines if "indexer" in line])
        if taught.lines:
            found.append(taught)
        else:
            begin, step = taught.settings.train.phase_ends[0], lines[-1]["step"] if lines else 0
            problems.append(
                f"{run.name}: nothing to draw yet: it is at step {step}, and its indexer is taught "
                f"from step {begin} on"
            )
    if problems:
        raise UserError(*problems)
    return found


def draw(runs: list[Run], style: dict[str, Any]) -> Drawn:
    """Three charts over the steps, and the rest in words; the points are those of every layer.

    One run: a line for each layer. Several: a line for each run, the mean over its layers.
    """
    several = load(runs)
    ends = {taught.settings.train.phase_ends for taught in several}
    x_label = "steps"
    if len(ends) == 1:
        ((dense_end, warmup_end),) = ends
        x_label += f" (taught alone from {dense_end}, with the trunk from {warmup_end})"
    texts = [several[0].run.name] if len(several) == 1 else []
    for figure, title in TITLES.items():
        lines = by_layer(several[0], figure) if len(several) == 1 else by_run(several, figure)
        if any(map(math.isfinite, [y for line in lines for y in line.y])):
            drawn = charts.curves(
                title, x_label, figure.replace("_", " "), lines, height=12, **style
            )
            texts.append(drawn)
    texts.append("\n".join(folded(beside(taught), style["width"]) for taught in several))
    return Drawn("\n\n".join(texts), [point for taught in several for point in points(taught)])


def beside(taught: Taught) -> str:
    """What is told below the charts of a run."""
    told = [f"{name.replace('_', ' ')} {mean_at(-1, taught, name):.3f}" for name in BESIDE]
    return f"{label(taught)}: {', '.join(told)} at step {taught.lines[-1]['step']}, over all layers"


def label(taught: Taught) -> str:
    """What the run is called in a legend."""
    return taught.run.name.removeprefix("pretrain-")


def value(row: dict[str, Any], figure: str) -> float:
    """A figure of a layer; NaN where it was not measured or no query had a choice."""
    found = row.get(figure)
    return math.nan if found is None else float(found)


def mean_at(number: int, taught: Taught, figure: str) -> float:
    """Mean over the layers at one of the validations."""
    return forgetting.mean(value(row, figure) for row in taught.lines[number]["indexer"])


def steps_of(taught: Taught) -> list[float]:
    """Where the validations stand."""
    return [float(line["step"]) for line in taught.lines]


def by_layer(taught: Taught, figure: str) -> list[Series]:
    """A line for each layer."""
    layers = zip(*(line["indexer"] for line in taught.lines), strict=True)
    return [
        Series(f"layer {number}", steps_of(taught), [value(row, figure) for row in rows])
        for number, rows in enumerate(layers, 1)
    ]


def by_run(several: list[Taught], figure: str) -> list[Series]:
    """A line for each run."""
    return [
        Series(
            label(taught),
            steps_of(taught),
            [mean_at(number, taught, figure) for number in range(len(taught.lines))],
        )
        for taught in several
    ]


def points(taught: Taught) -> list[dict[str, Any]]:
    """A row for each validation and layer, null where there is no value."""
    return [
        {"run": taught.run.name, "step": line["step"], "phase": line["phase"], "layer": number}
        | {name: row.get(name) for name in (*TITLES, *BESIDE)}
        for line in taught.lines
        for number, row in enumerate(line["indexer"], 1)
    ]
