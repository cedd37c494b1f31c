"""All figures of a fine-tuning run, from its stored records; no torch."""

import json
import tomllib
from collections import Counter
from typing import Any

from dsa_sandbox.metrics import drift, forgetting, items, stability_gap, transfer
from dsa_sandbox.runs.folder import Run

COSTS = {
    "remembers_mb": forgetting.Formula(
        "remembers", "MB of all that the strategy keeps from task to task", "none", "task"
    )
}


FORMULAS = (
    forgetting.FORMULAS
    | transfer.FORMULAS
    | stability_gap.FORMULAS
    | items.FORMULAS
    | drift.FORMULAS
    | COSTS
)


def figures_of(run: Run) -> dict[str, Any]:
    """Everything `eval` says of an arm; NaN where its run has not stored what a figure needs."""
    rows = run.rows("metrics.jsonl")
    lines = forgetting.ends_of(rows)
    manifest = run.manifest
    course = manifest.get("course", "sequence")
    replaced = forgetting.overwritten(rows_of_tasks(run))
    records = forgetting.current(run.rows("records.jsonl"), replaced)
    num_tasks = lines[-1]["row"]
    matrix = forgetting.accuracy_matrix(records, num_tasks)
    terms = terms_of(run)
    cap = terms["finetune.max_steps"]
    by_task = transfer.areas(
        [row for row in rows if "step" in row],
        Counter(r["task"] for r in forgetting.select(records, "cloze", row=0)),
        matrix[0].tolist(),
        cap,
    )
    dense = [row for row in rows if "at_step" in row]
    chances = [share for kind, share in lines[0].get("chance", {}).items() if kind in items.KNOWN]
    timing = [row for row in run.rows("timing.jsonl") if "row" in row]
    stream = manifest["tasks"]["sha256"]
    # tasks learned apart leave no network that has learned them all
    last = lines[-1] if course != "apart" else {}
    return {
        "kind": "arm",
        "arch": manifest["arch"],
        "strategy": manifest["strategy"],
        "course": course,
        "optimizer": manifest["optimizer"],
        "overwriting": manifest["overwriting"],
        "seed": manifest["seed"],
        "stream": stream,
        "base": sorted(sha for sha in manifest["parents"].values() if sha != stream),
        "trainable": manifest["mask"]["trainable"],
        "mask": manifest["mask"]["sha256"],
        "tasks": num_tasks,
        "cap": cap,
        "diverged_after": forgetting.diverged_after(lines),
        "terms": terms,
        **forgetting.summary(records, lines, course),
        **transfer.figures(by_task, course),
        **forgetting.meant(
            stability_gap.figures(matrix, dense, replaced), stability_gap.FORMULAS, course
        ),
        **items.figures(records, num_tasks, course, forgetting.mean(chances)),
        **drift.figures(lines, course),
        "capped": capped(lines, course),
        "worlds": forgetting.world_probabilities(records, course),
        "base_nll": lines[0]["base_nll"],
        "moved": last.get("moved", {}),
        "by_task": {
            "auc": [auc for auc, _ in by_task],
            "exact": forgetting.own_accuracy(matrix, course).tolist(),
        },
        "jaccard_by_layer": last.get("jaccard") or [],
        "pairs": {
            "before": lines[0].get("pairs"),
            "after": last.get("pairs"),
            "bigram": lines[0].get("pairs_bigram"),
        },
        "by_lag": forgetting.retention_by_lag(matrix) if course != "together" else [],
        "by_distance": items.by_distance(records, num_tasks, course),
        "recall_by_distance": {"before": lines[0].get("recall"), "after": last.get("recall")},
        "recovery": drift.recovery(last),
        "stories": {"before": lines[0].get("stories"), "after": last.get("stories")},
        "front": last.get("front", []),
        "remembers_mb": manifest.get("remembers_bytes", float("nan")) / 1e6,
        "elapsed_s": sum_of_sessions(timing),
    }


def rows_of_tasks(run: Run) -> list[dict[str, Any]]:
    """The task rows that the run keeps; none where it has no tasks.jsonl."""
    path = run.path / "tasks.jsonl"
    lines = path.read_text("utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def terms_of(run: Run) -> dict[str, Any]:
    """Settings that arms must share to be compared, by flat key.

    Read as plain TOML: the strategy's section may be a stranger's.
    """
    settings = tomllib.loads((run.path / "settings.toml").read_text("utf-8"))
    found = {f"finetune.{key}": value for key, value in settings["finetune"].items()}
    asked = settings.get("eval", {})
    return found | {f"eval.{k}": asked[k] for k in ("num_heldout", "selection") if k in asked}


def capped(lines: list[dict[str, Any]], course: str) -> int:
    """Tasks that hit the cap of steps unlearned; a joint row holds the share that did not."""
    if course == "nothing":
        return 0
    size = lines[-1]["row"] if course == "together" else 1
    return round(sum(size * (1 - line["learned"]) for line in lines if line["row"]))


def sum_of_sessions(timing: list[dict[str, Any]]) -> float:
    """Seconds over all sessions of a run: the clock of each begins at zero."""
    last = {row.get("session", 0): row["elapsed_s"] for row in timing}
    return float(sum(last.values()))
