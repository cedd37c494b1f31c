"""Names of arms in tables and legends: architecture and strategy, no two alike."""

import re
from collections import Counter
from typing import Any


def arm_name(about: dict[str, Any]) -> str:
    """Architecture and strategy of an arm, from its figures or its manifest.

    `overwriting`: the arm saw no contrast stories. The optimiser is named where it is not AdamW.
    A placebo is named as one.
    """
    name = f"{about['arch']} {about['strategy']}"
    if about["overwriting"]:
        name += " overwriting"
    if about["optimizer"] != "adamw":
        name += f" optimizer={about['optimizer']}"
    if about.get("placebo"):
        name += " placebo"
    return name


def with_remarks(name: str, remarks: list[str]) -> str:
    """The name of an arm with remarks on its state in brackets."""
    return f"{name} ({', '.join(remarks)})" if remarks else name


def diverged_remark(tasks: int) -> str:
    """The remark on an arm whose held-out perplexity exceeded all bounds after so many tasks."""
    return f"diverged after task {tasks}"


def distinct(names: list[str], runs: list[str], seeds: list[int]) -> list[str]:
    """The names, with seeds where those differ, and ends of the runs' names where names are alike.

    The end is the start of the run's identity, and the number that --force has added to it.
    """
    if len(set(seeds)) > 1:
        names = [f"{name} s{seed}" for name, seed in zip(names, seeds)]
    times = Counter(names)
    for length in (4, 8):
        identity = rf"^.*-s\d+-([0-9a-f]{{{length}}})[0-9a-f]*"
        found = []
        for name, run in zip(names, runs):
            end = re.sub(identity, r"\1", run)
            found.append(f"{name} {end}" if times[name] > 1 else name)
        if len(set(found)) == len(found):
            break
    return found
