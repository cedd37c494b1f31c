"""Runs a study block by block: each cell a child process, finished ones skipped, failures kept."""

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dsa_sandbox import children
from dsa_sandbox.errors import RunFailed, UserError
from dsa_sandbox.listener import SILENT
from dsa_sandbox.runs import provenance
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.study import price, records
from dsa_sandbox.study.board import Board
from dsa_sandbox.study.cells import Cells, Order, StudyCell, blocks, command
from dsa_sandbox.study.folder import StudyFolder
from dsa_sandbox.study.grid import is_finished
from dsa_sandbox.study.records import Record
from dsa_sandbox.workers import Cell, run_cells

# in messages of runs that failed for good: by their own result, not by this machine
DIVERGED = ("the loss is not finite", "has no finite loss", "the bases know")


class Block(NamedTuple):
    """A block that is being run."""

    order: Order
    folder: StudyFolder
    cells: Cells
    made_on: dict[str, object]
    board: Board

    def asked(self, cell: StudyCell) -> str:
        """The hash of what decides a cell's results."""
        return self.cells.asked[cell.label]

    def is_done(self, cell: StudyCell) -> bool:
        """Whether a cell has failed for good, or is finished and has its record."""
        if not self.folder.is_done(cell, self.asked(cell)):
            return False
        has_record = records.path_of(self.folder.path, cell).exists()
        return has_record or self.folder.cells[cell.label]["state"] == "failed"

    def has_failed(self, cell: StudyCell) -> bool:
        """Whether a cell has failed."""
        return self.is_done(cell) and self.folder.cells[cell.label]["state"] == "failed"

    def path(self, cell: StudyCell) -> Path:
        """The run of a finished cell; it may be missing where only its record is here."""
        return self.order.home / str(self.folder.cells[cell.label]["run"])


def made_on(order: Order) -> dict[str, object]:
    """What all cells of a block share: processor, precision and numerics."""
    return {
        "processor": dict(order.processor),
        "precision": order.precision,
        "numerics": provenance.NUMERICS,
    }


def run(order: Order, folder: StudyFolder, board: Board) -> None:
    """Run all blocks, one after another; what fails for good is noted, and the study goes on."""
    listed = blocks(order, order.seeds)
    left = left_to_do(order, folder, listed)
    every = [cell for cells in listed for cell in cells.all]
    ended = {cell.label: "done" for cell in every if cell.label not in left}
    ended |= {label: "failed" for label in folder.failures if label in ended}
    board.plan(
        every, ended, expected_s(order, folder, board, [c for c in every if c.label in left])
    )
    board.note(f"study {order.study.name}: {board.summary()}")
    try:
        for cells in listed:
            run_block(Block(order, folder, cells, made_on(order), board))
    finally:
        board.close()


def expected_s(
    order: Order, folder: StudyFolder, board: Board, cells: Sequence[StudyCell]
) -> dict[str, float]:
    """Seconds by kind of cell: as others of its kind took, else by a calibration."""
    taken: dict[str, list[float]] = {}
    for label, one in folder.cells.items():
        if one.get("elapsed_s"):
            taken.setdefault(label.partition(" ")[2], []).append(one["elapsed_s"])
    found = {kind: sum(times) / len(times) for kind, times in taken.items()}
    unknown = [cell for cell in cells if cell.kind not in found]
    if unknown and board.inner.live:
        found |= price.expected_s(price.costs_of(order, unknown))
    return found


def run_block(block: Block) -> None:
    """Run what is missing of one seed; on another kind of processor than it was begun on, anew."""
    folder, cells = block.folder, block.cells
    refresh(block)
    if all(map(block.is_done, cells.all)):
        return
    seed = cells.all[0].seed
    forgotten = folder.begin_block(seed, block.made_on, cells)
    if forgotten:
        folder.forget_records([records.path_of(folder.path, cell) for cell in cells.all])
        block.board.note(
            f"block {seed} was begun on another processor, precision or version, and starts anew"
        )
    for stage in cells.stages:
        run_stage(block, to_run(block, stage))


def refresh(block: Block) -> None:
    """Compute the figures of finished arms again where another version has done that before."""
    for cell in block.cells.stages[2] + block.cells.stages[3]:
        if not block.is_done(cell) or block.has_failed(cell):
            continue
        known, path = block.folder.cells[cell.label], block.path(cell)
        if known["source"] != provenance.source_digest() and is_finished(path):
            record = records.record_of(cell, block.asked(cell), Run(path))
            records.write(block.folder.path, record)
            known["source"] = record.source
            block.folder.save()


def to_run(block: Block, stage: Sequence[StudyCell]) -> list[StudyCell]:
    """The cells of a stage that are not done, or whose run is gone and needed by one that is not.

    A cell whose base or stream has failed is noted as failed.
    """
    chosen = []
    for cell in stage:
        broken = [one for one in block.cells.needed_by(cell) if block.has_failed(one)]
        if block.is_done(cell):
            wanted = is_needed(block, cell) and not block.has_failed(cell)
            if wanted and not is_finished(block.path(cell)):
                chosen.append(cell)
        elif broken:
            why = f"not begun: {broken[0].kind} has failed"
            block.folder.failed(cell, block.asked(cell), why)
            block.board.ended(cell.label, "failed")
        else:
            chosen.append(cell)
    return chosen


def is_needed(block: Block, cell: StudyCell) -> bool:
    """Whether a cell that is not done starts, at once or later, from this cell's run."""
    later = [one for one in block.cells.all if cell in block.cells.needed_by(one)]
    return any(not block.is_done(one) or is_needed(block, one) for one in later)


def run_stage(block: Block, stage: Sequence[StudyCell]) -> None:
    """Run cells at once, as many as there are jobs; note each as it ends."""
    order, board = block.order, block.board
    by_label = {cell.label: cell for cell in stage}
    begun_s: dict[str, float] = {}
    cells = [Cell(cell.label, arguments(block, cell)) for cell in stage]

    def start(cell: Cell) -> "subprocess.Popen[bytes]":
        begun_s[cell.label] = time.monotonic()
        board.began(cell.label)
        return children.start(cell.arguments, order.threads)

    def finished(cell: Cell, path: Path) -> None:
        keep(block, by_label[cell.label], Run(path), time.monotonic() - begun_s[cell.label])
        board.ended(cell.label, "done")

    def tolerated(cell: Cell, error: Exception) -> bool:
        if not isinstance(error, RunFailed) or not any(text in str(error) for text in DIVERGED):
            return False
        one = by_label[cell.label]
        why = str(error).removeprefix(f"{cell.label}: ")
        block.folder.failed(one, block.asked(one), why)
        board.ended(cell.label, "failed")
        return True

    run_cells(cells, order.jobs, start, board, finished, tolerated)


def arguments(block: Block, cell: StudyCell) -> list[str]:
    """The command line of a cell; a block that starts anew takes no run that was there before."""
    parents = [block.path(one) for one in block.cells.needed_by(cell)]
    anew = block.folder.blocks[str(cell.seed)]["anew"]
    return command(block.order, cell, parents) + (["--force"] if anew else [])


def keep(block: Block, cell: StudyCell, run: Run, elapsed_s: float) -> None:
    """Write the record of a finished cell, and note it.

    UserError where the run was made on another kind of processor, or its record, made elsewhere,
    has other weights.
    """
    record = records.record_of(cell, block.asked(cell), run)
    check_kind(block, record)
    check_same(block, cell, record)
    cached = run.manifest.get("study") != block.folder.state["hash"]
    records.write(block.folder.path, record)
    block.folder.finished(
        cell, block.asked(cell), run.name, cached=cached, elapsed_s=None if cached else elapsed_s
    )


def check_kind(block: Block, record: Record) -> None:
    """UserError where a run differs from its block in processor, precision or numerics."""
    if record.cell.verb == "make-tasks":
        return  # it measures what bases know, and trains nothing
    for key, here in block.made_on.items():
        found = record.made_on[key]
        if found is not None and found != here:
            raise UserError(
                f"{record.run}: {key} is {shown(found)}, and block {record.cell.seed} is run with "
                f"{shown(here)}: one block, one kind; remove the run (dsa-sandbox rm "
                f"{record.run} --force), or use another --home"
            )


def check_same(block: Block, cell: StudyCell, record: Record) -> None:
    """UserError where a run that is made again, for arms that lack it, is not the one recorded."""
    path = records.path_of(block.folder.path, cell)
    if not block.is_done(cell) or not path.exists():
        return
    for name in ("model.safetensors", "tasks.jsonl"):
        before, now = (one.manifest["files"].get(name) for one in (records.read(path), record))
        if before != now:
            raise UserError(
                f"{record.run}: its {name} differs from that of its record, which other cells of "
                f"block {cell.seed} started from; remove {path.parent}, and the block starts anew"
            )


def shown(value: object) -> str:
    """A processor in words; anything else as it is."""
    return provenance.named(value) if isinstance(value, dict) else str(value)


def left_to_do(order: Order, folder: StudyFolder, listed: Sequence[Cells]) -> set[str]:
    """Labels of the cells that are neither finished nor failed; nothing is written."""
    if not folder.state:
        return {cell.label for cells in listed for cell in cells.all}
    board = Board(SILENT, order.jobs)
    found = set()
    for cells in listed:
        block = Block(order, folder, cells, made_on(order), board)
        found |= {cell.label for cell in cells.all if not block.is_done(cell)}
    return found
