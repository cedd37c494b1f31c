"""Arms as fine-tuning stores them, written by hand: three tasks with two items of a kind each."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dsa_sandbox.metrics import damage
from dsa_sandbox.metrics.discrimination import Parts
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.folder import Run

NUM_TASKS, CAP, LEVEL = 3, 40, 0.7
# discrimination every 4 steps: all three tasks reach .7, two of them .8, one of them .9
TRAJECTORIES = (
    (0.0, 0.2, 0.6, 0.8, 0.96),
    (0.0, 0.4, 0.8, 0.85, 0.85),
    (0.0, 0.5, 0.7, 0.75, 0.75),
)


def item(kind: str, row: int, task: int, number: int, **values: Any) -> dict[str, Any]:
    """A line of records.jsonl; wrong, and without a distance, unless `values` say otherwise."""
    record = {"row": row, "task": task, "kind": kind, "item": number, "distance": None}
    record |= {"frame": None, "where": None, "tokens": None}
    record |= {"asked": "The sky is", "expected": " green", "said": " blue"}
    record |= {"answer": -2.0, "rival": -1.0, "contrary": -3.0, "exact": False}
    return record | values


def right(tokens: int | None = None, **more: Any) -> dict[str, Any]:
    """Fields of an item that is right."""
    found = {"answer": -0.5, "rival": -2.0, "contrary": -2.0, "exact": True, "tokens": tokens}
    return found | more


def odds(p: float) -> dict[str, float]:
    """Scores of an item whose right object has probability p against the contrary one."""
    return {"answer": math.log(p), "contrary": math.log(1 - p)}


def records(protocol: str) -> list[dict[str, Any]]:
    """Both items in the world of a task are right after it, the near one from then on."""
    found = []
    rows = {"joint": [NUM_TASKS]}.get(protocol, list(range(1, NUM_TASKS + 1)))
    for row in [0, *rows]:
        for task in [row - 1] if row and protocol == "independent" else range(row or NUM_TASKS):
            new = row == task + 1 or protocol == "joint"
            near = {"distance": "near", "tokens": 17} | odds(0.9 if row else 0.1)
            far = {"distance": "far", "tokens": 60} | odds(0.8 if row and new else 0.2)
            unseen = {"tokens": 60, "frame": "unseen"} | odds(0.6 if row else 0.1)
            found += [
                item("validation_in", row, task, 0, **(right(17) if row else {}) | near),
                item("validation_in", row, task, 1, **(right(60) if row and new else {}) | far),
                item("validation_out", row, task, 0, **right(where="no world") | odds(0.95)),
                item("transfer_in", row, task, 0, **(right() if row else {}) | unseen),
                item("transfer_out", row, task, 0, where="unseen world", **odds(0.7)),
                item("neighbour", row, task, 0, **({} if row else right()), kl=0.25 * row),
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
        line["chance"] = {"neighbour": 0.25, "validation_out": 0.25}
    else:
        line |= {"kl_new": 0.3 * row, "moved": {"selected": 0.05 * row, "norm": 0.0}}
    if arch != "dense":
        line["jaccard"] = [1 - 0.1 * row, 1 - 0.2 * row]
        if row:
            rates = [0.1 * row, 0.2 * row]
            line["far_worlds"] = {"by_layer": rates, "base": [0.1, 0.2], "chance": 0.2}
    if last:
        line["recovery"] = [{"task": 0, "steps": k, "right": k / 10} for k in (0, 1, 5, 10)]
    return line


def parts(value: float) -> dict[str, float]:
    """Parts whose least is the far one."""
    return Parts(min(value + 0.1, 1.0), value, 1.0).row()


def begin(run: Run, *, undoes: dict[int, str] | None, experiment: str, placebo: bool) -> None:
    """Tasks and settings."""
    run.path.mkdir(parents=True)
    tasks = [
        {"task": f"t{n}"} | ({"undoes": undoes[n]} if undoes and n in undoes else {})
        for n in range(NUM_TASKS)
    ]
    (run.path / "tasks.jsonl").write_text("".join(json.dumps(t) + "\n" for t in tasks), "utf-8")
    settings = {"experiment": experiment, "max_steps": CAP, "level": LEVEL, "placebo": placebo}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (run.path / "settings.toml").write_text("\n".join(["[finetune]", *lines, ""]), "utf-8")


def end(run: Run, *, of: str, **about: Any) -> Run:
    """The manifest of a finished run; a placebo has its arm, the run `of`, as a parent."""
    parents = {f"pretrain-{about['arch']}": about["arch"], "tasks": "stream"}
    manifest: dict[str, Any] = {
        "schema": provenance.SCHEMA,
        "command": "finetune",
        "identity": "0" * 64,
        "created": 1.0,
        "optimizer": "adamw",
        "overwriting": False,
        "seed": 0,
        "protocol": "sequential",
        "experiment": "stream",
        "placebo": False,
        "parents": parents | ({of: "arm"} if about["placebo"] else {}),
        "mask": {"trainable": 1000, "sha256": "mask"},
        "tasks": {"name": "tasks", "sha256": "stream", "count": NUM_TASKS},
        "remembers_bytes": 2_500_000,
    }
    run.update(**manifest | about)
    run.finish()
    return run


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
    placebo: bool = False,
) -> Run:
    """A finished stream; `fall` is how much base NLL rises with each row, nats.

    Not `full`: without the measurements of full rows.
    """
    name = f"finetune-{arch}-{strategy}-smoke-s0-0000000"
    run = Run(home / f"{name}{int(placebo)}")
    begin(run, undoes=undoes, experiment="stream", placebo=placebo)
    for record in records(protocol):
        run.append("records.jsonl", record)
    for row in [0, NUM_TASKS] if protocol == "joint" else range(NUM_TASKS + 1):
        task, last = row - 1, row == NUM_TASKS
        for step, value in ((0, 0.0), (10, 0.5), (20, 0.75)) if row and protocol != "none" else ():
            check = {"task": task, "step": step, "stop": parts(value)}
            run.append("metrics.jsonl", check | ({"loss": 1.0} if step else {}))
        for step in (0, 1, 2) if full and row and protocol == "sequential" else ():
            seen = [0.5 - 0.25 * (step == 1)] * task + [0.5 * step]
            run.append("metrics.jsonl", {"task": task, "at_step": step, "seen": seen})
        line: dict[str, Any] = {"row": row, "base_nll": 1.0 + fall * row}
        if row and protocol != "none":
            line |= {"steps": 20, "learned": True, "capped": False, "overshoot": 0.01 * row}
        elif row:
            line |= {"steps": 0, "learned": False}
        line |= full_row(row, last, arch) if full else {}
        line |= {"front": front} if last and front else {}
        run.append("metrics.jsonl", line)
        run.append("timing.jsonl", {"row": row, "elapsed_s": 1.0 + row})
    about = {"arch": arch, "strategy": strategy, "protocol": protocol, "placebo": placebo}
    return end(run, of=f"{name}0", **about)


def single(
    home: Path,
    strategy: str = "sgd",
    *,
    arch: str = "dsa",
    fall: float = 0.01,
    trajectories: Sequence[Sequence[float]] = TRAJECTORIES,
    placebo: bool = False,
) -> Run:
    """A finished arm of single tasks; `fall` is how much base NLL rises with each step, nats.

    A placebo has no measurement of discrimination.
    """
    name = f"finetune-{arch}-{strategy}-smoke-s0-1000000"
    run = Run(home / f"{name}{int(placebo)}")
    begin(run, undoes=None, experiment="single", placebo=placebo)
    for record in records("independent"):
        run.append("records.jsonl", record)
    run.append("metrics.jsonl", {"row": 0, "base_nll": 1.0})
    run.append("timing.jsonl", {"row": 0, "elapsed_s": 1.0})
    for task, values in enumerate(trajectories):
        for number, value in enumerate(values):
            line: dict[str, Any] = {"task": task, "step": 4 * number}
            line |= {"loss": 1.0, "tokens": 500} if number else {}
            line |= {} if placebo else {"validation": parts(value)}
            run.append("metrics.jsonl", line)
        for number in sorted(damage.brackets(values, damage.LEVELS)):
            details = {"stop": parts(values[number] / 2), "transfer": parts(values[number] / 4)}
            at = {"task": task, "at": 4 * number, "base_nll": 1.0 + fall * 4 * number}
            run.append("metrics.jsonl", at | details)
        last = {"row": task + 1, "base_nll": 2.0, "steps": 4 * (len(values) - 1)}
        run.append("metrics.jsonl", last | {"learned": max(values) >= 0.95, "capped": False})
        run.append("timing.jsonl", {"row": task + 1, "elapsed_s": 2.0 + task})
    return end(
        run, of=f"{name}0", arch=arch, strategy=strategy, experiment="single", placebo=placebo
    )
