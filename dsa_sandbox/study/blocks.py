"""The results of a study by seed, from the records of its finished cells."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dsa_sandbox.metrics import arm as arms
from dsa_sandbox.study import records
from dsa_sandbox.study.records import Record
from dsa_sandbox.verdict.blocks import ArmKey, Block


def blocks_of(*folders: Path) -> list[Block]:
    """A block for each seed with a finished cell, in the order of seeds.

    The folders are those of a study, or of its records alone; of two records of one cell, that of
    the first folder counts.
    """
    by_seed: dict[int, dict[str, Record]] = {}
    for record in (one for folder in folders for one in records.all_in(folder)):
        by_seed.setdefault(record.cell.seed, {}).setdefault(record.cell.kind, record)
    return [block_of(seed, by_seed[seed].values()) for seed in sorted(by_seed)]


def block_of(seed: int, found: Iterable[Record]) -> Block:
    """The block of one seed; arms have the figures that they have only beside their placebo."""
    bases, names = {}, {}
    results: dict[str, dict[str, Any]] = {}
    for record in found:
        if record.cell.verb == "pretrain":
            bases[record.cell.base] = record.figures
        elif record.cell.verb == "finetune":
            results[record.run] = record.figures
            names[record.run] = record.cell.key
    figures = arms.together(results)
    by_key: dict[ArmKey, dict[str, Any]] = {names[run]: figures[run] for run in results}
    return Block(seed, bases, by_key)
