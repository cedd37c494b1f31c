"""Plots of an indexer over the steps of pre-training: a line for each layer."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import sizes
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import forgetting
from dsa_sandbox.report import charts
from dsa_sandbox.report.panels import Drawn, Panel, Series
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
IN_WORDS = ("density", "tie_rate")  # figures below the charts


class Taught(NamedTuple):
    """A pre-training run, with the figures of its indexer at each validation."""

    run: Run
    settings: Settings
    lines: list[dict[str, Any]]  # of metrics.jsonl: step, phase, and figures of each layer


def chosen(home: Path, names: list[str]) -> list[Run]:
    """The named runs, or the newest pre-training run that trains an indexer, finished or not."""
    if names:
        return [find_run(home, name) for name in names]
    for run in reversed(all_runs(home)):
        if folder.readable_manifest(run).get("command") == "pretrain" and not untaught(run):
            return [run]
    raise UserError(
        f"no indexer is taught in {home} yet; run first: dsa-sandbox pretrain --arch dsa"
    )


def untaught(run: Run) -> str:
    """Why a pre-training run trains no indexer; empty where it does."""
    try:
        resolved = run_settings(run)
    except UserError as error:
        return str(error)
    if not sizes.has_indexer(resolved.arch, resolved.model):
        return f"{run.name}: {resolved.arch} has no indexer; name a run of dsa"
    if resolved.train.selection != "learned":
        return f"{run.name}: no indexer is taught with train.selection={resolved.train.selection}"
    return ""


def load_indexers(runs: list[Run]) -> list[Taught]:
    """The stored figures of the indexers of runs; UserError for each run without any."""
    found = []
    problems = []
    for run in runs:
        command = run.manifest.get("command")
        if command != "pretrain":
            problems.append(f"{run.name}: a {command} run; a pretrain run is needed")
            continue
        if reason := untaught(run):
            problems.append(reason)
            continue
        lines = run.rows("metrics.jsonl")
        settings = run_settings(run)
        taught = Taught(run, settings, [line for line in lines if "indexer" in line])
        if taught.lines:
            found.append(taught)
            continue
        step = lines[-1]["step"] if lines else 0
        problems.append(
            f"{run.name}: nothing to draw yet: it is at step {step}, and its indexer is taught "
            f"from step {settings.train.phase_ends[0]} on"
        )
    if problems:
        raise UserError(*problems)
    return found


def draw_indexer(runs: list[Run], style: dict[str, Any]) -> Drawn:
    """Three charts over the steps, with the other figures in words; points are those of each layer.

    One run: a line for each layer. Several: a line for each run, the mean over its layers.
    """
    several = load_indexers(runs)
    ends = {taught.settings.train.phase_ends for taught in several}
    x_label = "steps"
    if len(ends) == 1:
        dense_end, warmup_end = ends.pop()
        x_label += f" (taught alone from {dense_end}, with the trunk from {warmup_end})"
    texts = [several[0].run.name] if len(several) == 1 else []
    panels = []
    for figure, title in TITLES.items():
        lines = by_layer(several[0], figure) if len(several) == 1 else by_run(several, figure)
        if any(math.isfinite(y) for line in lines for y in line.y):
            name = figure.replace("_", " ").replace("kl", "KL")
            panels.append(Panel("curves", title, x_label, name, lines, height=12))
    texts += [charts.text_of(panel, **style) for panel in panels]
    texts.append("\n".join(folded(in_words(taught), style["width"]) for taught in several))
    found = []
    for taught in several:
        found += points(taught)
    return Drawn("\n\n".join(texts), found, panels)


def in_words(taught: Taught) -> str:
    """The figures below the charts of a run."""
    figures = []
    for name in IN_WORDS:
        figures.append(f"{name.replace('_', ' ')} {mean_at(-1, taught, name):.3f}")
    step = taught.lines[-1]["step"]
    return f"{label(taught)}: {', '.join(figures)} at step {step}, over all layers"


def label(taught: Taught) -> str:
    """The name of the run in a legend."""
    return taught.run.name.removeprefix("pretrain-")


def value(row: dict[str, Any], figure: str) -> float:
    """A figure of a layer; NaN where it was not measured or no query has a choice."""
    found = row.get(figure)
    return math.nan if found is None else float(found)


def mean_at(number: int, taught: Taught, figure: str) -> float:
    """A figure at one validation, mean over the layers."""
    return forgetting.mean(value(row, figure) for row in taught.lines[number]["indexer"])


def steps_of(taught: Taught) -> list[float]:
    """Steps of the validations."""
    return [float(line["step"]) for line in taught.lines]


def by_layer(taught: Taught, figure: str) -> list[Series]:
    """A figure over the steps, a line for each layer."""
    found = []
    for layer in range(len(taught.lines[0]["indexer"])):
        values = [value(line["indexer"][layer], figure) for line in taught.lines]
        found.append(Series(f"layer {layer + 1}", steps_of(taught), values))
    return found


def by_run(several: list[Taught], figure: str) -> list[Series]:
    """A figure over the steps, a line for each run."""
    found = []
    for taught in several:
        values = [mean_at(number, taught, figure) for number in range(len(taught.lines))]
        found.append(Series(label(taught), steps_of(taught), values))
    return found


def points(taught: Taught) -> list[dict[str, Any]]:
    """A point for each validation and layer, None where there is no value."""
    found = []
    for line in taught.lines:
        for layer, row in enumerate(line["indexer"], 1):
            point = {"run": taught.run.name, "step": line["step"], "phase": line["phase"]}
            point["layer"] = layer
            for name in (*TITLES, *IN_WORDS):
                point[name] = row.get(name)
            found.append(point)
    return found
