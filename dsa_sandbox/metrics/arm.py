"""All figures of a fine-tuning run, from its stored records; no torch."""

import json
import tomllib
from collections.abc import Iterable
from typing import Any

from dsa_sandbox.errors import UserError
from dsa_sandbox.metrics import (
    drift,
    forgetting,
    items,
    placebo,
    single,
    stability_gap,
    stream,
    transfer,
)
from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.folder import Run

COSTS = {
    "capped": Figure(
        "capped",
        "count",
        "tasks that ended below the level, by the cap of steps or without a new best",
        "task",
    ),
    "trainable": Figure("trainable", "count", "parameters that the strategy trains", "task"),
    "memory_mb": Figure(
        "memory", "MB", "tensors that the strategy keeps from task to task", "task"
    ),
    "time_s": Figure("time", "s", "time of the run, measurements included", "task"),
}


FIGURES = (
    single.FIGURES
    | stream.FIGURES
    | forgetting.FIGURES
    | transfer.FIGURES
    | stability_gap.FIGURES
    | items.FIGURES
    | drift.FIGURES
    | COSTS
)


def check_schema(runs: Iterable[Run]) -> None:
    """UserError, in one line, where arms were made by a version that stored something else."""
    older = [run.name for run in runs if run.manifest.get("schema", 0) < provenance.SCHEMA]
    if older:
        more = f" and {len(older) - 1} more" if len(older) > 1 else ""
        raise UserError(
            f"{older[0]}{more}: made by an older version, with items of other kinds; make new "
            "tasks and fine-tune again (make-tasks, finetune)"
        )


def experiment_of(manifest: dict[str, Any]) -> str:
    """stream (tasks one after another) or single (each task from the base)."""
    return str(manifest.get("experiment", "stream"))


def measured_as(manifest: dict[str, Any]) -> str:
    """The protocol that says which figures an arm defines: single tasks are learned apart."""
    single_tasks = experiment_of(manifest) == "single"
    return "independent" if single_tasks else str(manifest["protocol"])


def described() -> dict[str, dict[str, str]]:
    """Name, unit and formula of every figure by key, for `--json`."""
    found = {}
    for key, figure in FIGURES.items():
        found[key] = {"name": figure.name, "unit": figure.unit, "formula": figure.formula}
    return found


def figures_of(run: Run) -> dict[str, Any]:
    """Everything `eval` shows of an arm; NaN where its run has not stored the figure's records.

    UserError for an arm of an older version.
    """
    check_schema([run])
    rows = run.rows("metrics.jsonl")
    lines = forgetting.ends_of(rows)
    protocol = measured_as(run.manifest)
    replaced = forgetting.overwritten(rows_of_tasks(run))
    records = forgetting.current(run.rows("records.jsonl"), replaced)
    num_tasks = lines[-1]["row"]
    matrix = forgetting.accuracy_matrix(records, num_tasks)
    about = conditions(run)
    areas = transfer.learning_areas([row for row in rows if "step" in row], num_tasks, about["cap"])
    dense = [row for row in rows if "at_step" in row]
    chances = [share for kind, share in lines[0].get("chance", {}).items() if kind in items.KNOWN]
    timing = [row for row in run.rows("timing.jsonl") if "row" in row]
    # with tasks learned apart, no network has learned all of them
    last = lines[-1] if protocol != "independent" else {}
    gap = stability_gap.stability_figures(matrix, dense, replaced)
    found = {
        **about,
        "tasks": num_tasks,
        "diverged_after": forgetting.diverged_after(lines) if last else None,
        **of_single_tasks(rows, num_tasks, about),
        **stream.stream_figures(records, lines, protocol),
        **forgetting.forgetting_figures(records, lines, protocol),
        **transfer.learning_figures(areas, protocol),
        **defined(gap, stability_gap.FIGURES, protocol),
        **items.item_figures(records, num_tasks, protocol, forgetting.mean(chances)),
        **drift.drift_figures(lines, protocol),
        "capped": capped(lines, protocol),
        "trainable": run.manifest["mask"]["trainable"],
        "memory_mb": run.manifest.get("remembers_bytes", NAN) / 1e6,
        "time_s": sum_of_sessions(timing),
        "worlds": forgetting.world_probabilities(records, protocol),
        "base_nll": lines[0]["base_nll"],
        "moved": last.get("moved", {}),
        "by_task": {
            "learning_auc": areas,
            "exact_match_when_learned": forgetting.own_accuracy(matrix, protocol).tolist(),
        },
        "jaccard_by_layer": last.get("jaccard") or [],
        "hits_by_layer": drift.hits_by_layer(lines),
        "pairs": {
            "before": lines[0].get("pairs"),
            "after": last.get("pairs"),
            "bigram": lines[0].get("pairs_bigram"),
        },
        **curves_by_lag(records, matrix, num_tasks, protocol),
        "by_distance": items.by_distance(records, num_tasks, protocol),
        "recall_by_distance": {"before": lines[0].get("recall"), "after": last.get("recall")},
        "recovery": drift.recovery(last),
        "stories": {"before": lines[0].get("stories"), "after": last.get("stories")},
        "front": last.get("front", []),
    }
    if about["experiment"] == "single":
        found["learned"] = NAN  # a trajectory goes on beyond the level: `reached` counts there
    return found


def conditions(run: Run) -> dict[str, Any]:
    """What sets an arm apart: architecture, strategy, experiment, settings, base, tasks, mask."""
    manifest, terms = run.manifest, terms_of(run)
    tasks = manifest["tasks"]["sha256"]
    return {
        "kind": "arm",
        "arch": manifest["arch"],
        "strategy": manifest["strategy"],
        "experiment": experiment_of(manifest),
        "placebo": bool(manifest.get("placebo", False)),
        "protocol": str(manifest["protocol"]),
        "optimizer": manifest["optimizer"],
        "overwriting": manifest["overwriting"],
        "seed": manifest["seed"],
        "stream": tasks,
        "base": sorted(sha for sha in manifest["parents"].values() if sha != tasks),
        "parents": list(manifest["parents"]),
        "mask": manifest["mask"]["sha256"],
        "cap": terms["finetune.max_steps"],
        "level": float(terms["finetune.level"]),
        "terms": terms,
    }


def of_single_tasks(
    rows: list[dict[str, Any]], num_tasks: int, about: dict[str, Any]
) -> dict[str, Any]:
    """Figures of single tasks; those of a stream have none."""
    if about["experiment"] != "single":
        return dict.fromkeys(single.FIGURES, NAN)
    return single.single_figures(rows, num_tasks, about["level"])


def curves_by_lag(
    records: list[dict[str, Any]], matrix: Any, num_tasks: int, protocol: str
) -> dict[str, list[float]]:
    """Exact match and discrimination of a task by the number of tasks learned since."""
    if protocol == "joint":
        return {"by_lag": [], "discrimination_by_lag": []}
    values = stream.discriminations(records, num_tasks)
    return {
        "by_lag": forgetting.retention_by_lag(matrix),
        "discrimination_by_lag": forgetting.retention_by_lag(values),
    }


def together(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results, with the figures that an arm has only beside its bounds or its placebo."""
    return placebo.against(transfer.against(results))


def rows_of_tasks(run: Run) -> list[dict[str, Any]]:
    """The task rows that the run keeps; empty where it has no tasks.jsonl."""
    path = run.path / "tasks.jsonl"
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def terms_of(run: Run) -> dict[str, Any]:
    """Settings that arms must share to be compared, by flat key.

    Read as plain TOML, because the section of an included strategy may be unknown here.
    """
    settings = tomllib.loads((run.path / "settings.toml").read_text("utf-8"))
    found = {f"finetune.{key}": value for key, value in settings["finetune"].items()}
    measured = settings.get("eval", {})
    for key in ("num_heldout", "selection"):
        if key in measured:
            found[f"eval.{key}"] = measured[key]
    return found


def capped(lines: list[dict[str, Any]], protocol: str) -> int:
    """Number of tasks that ended below the level; a joint row stores the share of learned tasks."""
    if protocol == "joint":
        size = int(lines[-1]["row"])
        return sum(round(size * (1 - line["learned"])) for line in lines if line.get("capped"))
    return sum(bool(line.get("capped")) for line in lines)


def sum_of_sessions(timing: list[dict[str, Any]]) -> float:
    """Seconds over all sessions of a run: the clock of each session starts at zero."""
    last = {row.get("session", 0): row["elapsed_s"] for row in timing}
    return float(sum(last.values()))
