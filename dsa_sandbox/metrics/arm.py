"""All figures of a fine-tuning run, from its stored records; no torch."""

import json
import tomllib
from collections import Counter
from typing import Any

from dsa_sandbox.metrics import drift, forgetting, items, stability_gap, transfer
from dsa_sandbox.metrics.figure import NAN, Figure, defined
from dsa_sandbox.runs.folder import Run

COSTS = {
    "capped": Figure("capped", "count", "tasks that hit the cap of steps unlearned", "task"),
    "trainable": Figure("trainable", "count", "parameters that the strategy trains", "task"),
    "memory_mb": Figure(
        "memory", "MB", "tensors that the strategy keeps from task to task", "task"
    ),
    "time_s": Figure("time", "s", "time of the run, measurements included", "task"),
}


FIGURES = (
    forgetting.FIGURES
    | transfer.FIGURES
    | stability_gap.FIGURES
    | items.FIGURES
    | drift.FIGURES
    | COSTS
)


# what manifests of version 0.1 call the protocols, under `course`
OLD_PROTOCOLS = {
    "sequence": "sequential",
    "together": "joint",
    "apart": "independent",
    "nothing": "none",
}


def protocol_of(manifest: dict[str, Any]) -> str:
    """The training protocol of an arm."""
    old = OLD_PROTOCOLS[manifest.get("course", "sequence")]
    return str(manifest.get("protocol", old))


def described() -> dict[str, dict[str, str]]:
    """Name, unit and formula of every figure by key, for `--json`."""
    found = {}
    for key, figure in FIGURES.items():
        found[key] = {"name": figure.name, "unit": figure.unit, "formula": figure.formula}
    return found


def figures_of(run: Run) -> dict[str, Any]:
    """Everything `eval` shows of an arm; NaN where its run has not stored the figure's records."""
    rows = run.rows("metrics.jsonl")
    lines = forgetting.ends_of(rows)
    manifest = run.manifest
    protocol = protocol_of(manifest)
    replaced = forgetting.overwritten(rows_of_tasks(run))
    records = forgetting.current(run.rows("records.jsonl"), replaced)
    num_tasks = lines[-1]["row"]
    matrix = forgetting.accuracy_matrix(records, num_tasks)
    terms = terms_of(run)
    cap = terms["finetune.max_steps"]
    curves = transfer.learning_curves(
        [row for row in rows if "step" in row],
        Counter(record["task"] for record in forgetting.select(records, "cloze", row=0)),
        matrix[0].tolist(),
        cap,
    )
    dense = [row for row in rows if "at_step" in row]
    chances = [share for kind, share in lines[0].get("chance", {}).items() if kind in items.KNOWN]
    timing = [row for row in run.rows("timing.jsonl") if "row" in row]
    stream = manifest["tasks"]["sha256"]
    # with the protocol `independent`, no network has learned all tasks
    last = lines[-1] if protocol != "independent" else {}
    gap = stability_gap.stability_figures(matrix, dense, replaced)
    return {
        "kind": "arm",
        "arch": manifest["arch"],
        "strategy": manifest["strategy"],
        "protocol": protocol,
        "optimizer": manifest["optimizer"],
        "overwriting": manifest["overwriting"],
        "seed": manifest["seed"],
        "stream": stream,
        "base": sorted(sha for sha in manifest["parents"].values() if sha != stream),
        "mask": manifest["mask"]["sha256"],
        "tasks": num_tasks,
        "cap": cap,
        "diverged_after": forgetting.diverged_after(lines),
        "terms": terms,
        **forgetting.forgetting_figures(records, lines, protocol),
        **transfer.learning_figures(curves, protocol),
        **defined(gap, stability_gap.FIGURES, protocol),
        **items.item_figures(records, num_tasks, protocol, forgetting.mean(chances)),
        **drift.drift_figures(lines, protocol),
        "capped": capped(lines, protocol),
        "trainable": manifest["mask"]["trainable"],
        "memory_mb": manifest.get("remembers_bytes", NAN) / 1e6,
        "time_s": sum_of_sessions(timing),
        "worlds": forgetting.world_probabilities(records, protocol),
        "base_nll": lines[0]["base_nll"],
        "moved": last.get("moved", {}),
        "by_task": {
            "learning_auc": [auc for auc, _ in curves],
            "exact_match_when_learned": forgetting.own_accuracy(matrix, protocol).tolist(),
        },
        "jaccard_by_layer": last.get("jaccard") or [],
        "hits_by_layer": drift.hits_by_layer(lines),
        "pairs": {
            "before": lines[0].get("pairs"),
            "after": last.get("pairs"),
            "bigram": lines[0].get("pairs_bigram"),
        },
        "by_lag": forgetting.retention_by_lag(matrix) if protocol != "joint" else [],
        "by_distance": items.by_distance(records, num_tasks, protocol),
        "recall_by_distance": {"before": lines[0].get("recall"), "after": last.get("recall")},
        "recovery": drift.recovery(last),
        "stories": {"before": lines[0].get("stories"), "after": last.get("stories")},
        "front": last.get("front", []),
    }


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
    """Number of tasks that hit the cap unlearned; a joint row stores the share of learned tasks."""
    if protocol == "none":
        return 0
    size = lines[-1]["row"] if protocol == "joint" else 1
    return round(sum(size * (1 - line["learned"]) for line in lines if line["row"]))


def sum_of_sessions(timing: list[dict[str, Any]]) -> float:
    """Seconds over all sessions of a run: the clock of each session starts at zero."""
    last = {row.get("session", 0): row["elapsed_s"] for row in timing}
    return float(sum(last.values()))
