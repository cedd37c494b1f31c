"""Arms as fine-tuning stores them, written by hand: three tasks of two clozes each."""

import json
from pathlib import Path
from typing import Any

from dsa_sandbox.runs.folder import Run

NUM_TASKS, CAP = 3, 40
SETTINGS = f"[finetune]\nmax_steps = {CAP}\n"


def item(kind: str, row: int, task: int, number: int, **values: Any) -> dict[str, Any]:
    """A line of records.jsonl; wrong, and without a distance, unless `values` say otherwise."""
    record = {"row": row, "task": task, "kind": kind, "item": number, "distance": None}
    record |= {"answer": -2.0, "rival": -1.0, "contra": -3.0, "tf_em": False, "gen_em": False}
    return record | values


def right(distance: int | None = None) -> dict[str, Any]:
    return {"answer": -0.5, "rival": -2.0, "tf_em": True, "gen_em": True, "distance": distance}


def records(protocol: str) -> list[dict[str, Any]]:
    """Both clozes of a task are right after it, one of them (near) from then on."""
    found = []
    rows = {"joint": [NUM_TASKS]}.get(protocol, list(range(1, NUM_TASKS + 1)))
    for row in [0, *rows]:
        for task in [row - 1] if row and protocol == "independent" else range(row or NUM_TASKS):
            new = row == task + 1 or protocol == "joint"
            found += [
                item("cloze", row, task, 0, **(right(17) if row else {"distance": 17})),
                item("cloze", row, task, 1, **(right(60) if row and new else {"distance": 60})),
                item("paraphrase", row, task, 0, **(right(60) if row else {"distance": 60})),
                item("outside", row, task, 0, **right()),
                item("neighbour", row, task, 0, **({} if row else right()), kl=0.25 * row),
                item("bleed", row, task, 0),
            ]
    return found


def full_row(row: int, last: bool, arch: str) -> dict[str, Any]:
    """What a full row stores beside the loss."""
    line: dict[str, Any] = {
        "kl": 0.1 * row,
        "pairs": {"pronoun": 0.9 - 0.1 * row, "agreement": 0.8},
        "recall": [
            {"of": of, "distance": d, "num": 8, "right": 0.9 - 0.1 * row, "hit": share}
            for of in ("names", "relations")
            for d, share in ((16, None if arch == "dense" else 0.75), (64, None))
        ],
        "bits_per_byte": 0.5 + 0.1 * row,
        "stories": {"repetition": 0.1 * row, "distinct": 0.5, "ended": 1.0, "length": 70.0}
        | {"protagonist": 0.8, "pronoun": None, "judge_nll": 1.5 + row},
    }
    if row == 0:
        line |= {"unigram_nll": 4.0, "pairs_bigram": {"pronoun": 0.5, "agreement": 0.5}}
        line["chance"] = {"neighbour": 0.25, "outside": 0.25}
    else:
        line |= {"kl_new": 0.3 * row, "moved": {"selected": 0.05 * row, "norm": 0.0}}
    if arch != "dense":
        line["jaccard"] = [1 - 0.1 * row, 1 - 0.2 * row]
    if last:
        line["recovery"] = [{"task": 0, "steps": k, "right": k / 10} for k in (0, 1, 5, 10)]
    return line


def arm(
    home: Path,
    strategy: str = "sgd",
    *,
    arch: str = "dsa",
    protocol: str = "sequential",
    full: bool = True,
    fall: float = 0.1,
    front: list[dict[str, float]] | None = None,
    undoes: dict[int, str] | None = None,
) -> Run:
    """A finished run; `fall` is how much base NLL rises with each row, nats.

    Not `full`: what the first releases stored, and nothing else.
    """
    run = Run(home / f"finetune-{arch}-{strategy}-smoke-s0-00000000")
    run.path.mkdir(parents=True)
    tasks = [
        {"task": f"t{n}"} | ({"undoes": undoes[n]} if undoes and n in undoes else {})
        for n in range(NUM_TASKS)
    ]
    (run.path / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks), "utf-8")
    (run.path / "settings.toml").write_text(SETTINGS, "utf-8")
    for record in records(protocol):
        run.append("records.jsonl", record)
    for row in [0, NUM_TASKS] if protocol == "joint" else range(NUM_TASKS + 1):
        task, last = row - 1, row == NUM_TASKS
        for step, exact in ((10, 1), (20, 2)) if row and protocol != "none" else ():
            check = {"task": task, "step": step, "margin": 1.0, "exact": exact}
            run.append("metrics.jsonl", {"loss": 1.0, **check})
        for step in (0, 1, 2) if full and row and protocol == "sequential" else ():
            seen = [0.5 - 0.25 * (step == 1)] * task + [0.5 * step]
            run.append("metrics.jsonl", {"task": task, "at_step": step, "seen": seen})
        line: dict[str, Any] = {"row": row, "base_nll": 1.0 + fall * row}
        line |= {"steps": 20, "learned": protocol != "none"} if row else {}
        line |= full_row(row, last, arch) if full else {}
        line |= {"front": front} if last and front else {}
        run.append("metrics.jsonl", line)
        run.append("timing.jsonl", {"row": row, "elapsed_s": 1.0 + row})
    manifest: dict[str, Any] = {
        "command": "finetune",
        "identity": "0" * 64,
        "created": 1.0,
        "arch": arch,
        "strategy": strategy,
        "optimizer": "adamw",
        "overwriting": False,
        "seed": 0,
        "parents": {f"pretrain-{arch}": arch, "tasks": "stream"},
        "mask": {"trainable": 1000, "sha256": "mask"},
        "tasks": {"name": "tasks", "sha256": "stream", "count": NUM_TASKS},
    }
    new = {"protocol": protocol, "remembers_bytes": 2_500_000}
    run.update(**manifest | (new if full else {}))
    run.finish()
    return run
