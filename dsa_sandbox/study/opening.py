"""Begin or continue a study in its home: rates, folder, and records that were made elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dsa_sandbox import children, locks
from dsa_sandbox.config import rates
from dsa_sandbox.config.study_file import Arm
from dsa_sandbox.errors import UserError
from dsa_sandbox.listener import Listener
from dsa_sandbox.runs import files
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.home import make_home
from dsa_sandbox.study import prepare, records, runner
from dsa_sandbox.study.board import Board
from dsa_sandbox.study.cells import Cells, Order, blocks
from dsa_sandbox.study.folder import STATE, StudyFolder
from dsa_sandbox.study.prepare import Asked
from dsa_sandbox.study.records import Record
from dsa_sandbox.workers import Cell, run_cells

TOKENIZER = "tokenizer.json"


class Opened(NamedTuple):
    """A study that is being run, and its folder, which no other process writes."""

    order: Order
    folder: StudyFolder


def checked(asked: Asked) -> Order:
    """The study with the rates that are known before tuning; UserError for all that is wrong."""
    prepare.check(asked)
    table = prepare.given_table(asked)
    order = prepare.order_of(asked, table)
    if asked.study.rates != "tune":
        prepare.check_rates(asked, table)
    check_level(order, StudyFolder(asked.folder))
    return order


def check_level(order: Order, folder: StudyFolder) -> None:
    """UserError where a confirmatory study has results at another level."""
    folder.check(order.study, level_of(order))


def level_of(order: Order) -> float:
    """The level at which arms are compared: the study's, else that of the table of rates."""
    study = order.study
    for experiment, arms in (("single", study.single_arms), ("stream", study.stream_arms)):
        for arm in arms:
            return order.resolved(arm, experiment).settings.finetune.level
    return order.resolved(Arm("dsa", "sgd"), "stream").settings.finetune.level


@contextmanager
def opened(asked: Asked, listener: Listener, brought: Sequence[Path] = ()) -> Iterator[Opened]:
    """The study, tuned and with the records of other folders; its folder is locked meanwhile."""
    checked(asked)
    make_home(asked.folder)
    with locks.only_writer(asked.folder):
        settings = prepare.settings_toml(asked.study)
        files.write_atomic(asked.folder / "settings.toml", settings)
        for name in (rates.TUNING, TOKENIZER):
            bring(name, brought, asked.folder)
        table = table_for(asked, listener)
        prepare.check_rates(asked, table)
        order = prepare.order_of(asked, table)
        folder = StudyFolder(asked.folder)
        content = prepare.content(asked, table)
        check_level(order, folder)
        for change in folder.open(asked.study, asked.text, content, level_of(order)):
            listener.warn(f"changed after a first result: {change}; the report lists it")
        share_tokenizer(order, listener)
        bring_records(order, folder, brought, listener)
        yield Opened(order, folder)


def bring(name: str, brought: Sequence[Path], folder: Path) -> None:
    """Copy a file of a folder that was brought along, where the study lacks it."""
    for other in brought:
        if (other / name).is_file() and not (folder / name).exists():
            files.write_atomic(folder / name, (other / name).read_bytes())


def table_for(asked: Asked, listener: Listener) -> rates.Table | None:
    """The table of rates, tuned now where none is given; the study keeps a copy."""
    own = asked.folder / rates.TUNING
    if asked.study.rates == "shipped":
        own.unlink(missing_ok=True)
        return None
    table = prepare.given_table(asked)
    if table is None and asked.study.rates == "tune":
        tune(asked, listener)
        table = rates.of_home(asked.home)
    if table is not None:
        files.write_atomic(own, table.content)
    return table


def tune(asked: Asked, listener: Listener) -> None:
    """Find rates and level on development tasks, as `dsa-sandbox tune` does, into the home."""
    study = asked.study
    order = prepare.order_of(asked, None)
    arms = [*study.stream_arms, *study.single_arms]
    arms = [arm for arm in arms if prepare.is_tunable(arm.strategy)]
    archs = dict.fromkeys(arm.arch for arm in arms)
    names = dict.fromkeys(arm.strategy for arm in arms)
    streams = [arm for arm in study.stream_arms if prepare.is_tunable(arm.strategy)]
    pairs = dict.fromkeys(f"{arm.arch} {arm.strategy}" for arm in streams)
    options = ["tune", "--archs", ",".join(archs), "--strategies", ",".join(names), "--json"]
    options += ["--home", str(asked.home), "--config", str(asked.folder / "settings.toml")]
    few = min(study.tune_first, study.tune_tasks)
    options += ["--count", str(study.tune_tasks), "--first", str(few)]
    options += ["--jobs", str(order.jobs)]
    if not (pairs and study.single):
        options += ["--only", "stream" if pairs else "single"]
    if pairs:
        options += ["--stream-arms", ",".join(pairs)]
    if rows := asked.path(study.development_rows):
        options += ["--tasks", str(rows)]
    if asked.device:
        options += ["--device", asked.device]
    options += [part for path in asked.include for part in ("--include", str(path))]
    options += [part for text in asked.sets for part in ("--set", text)]
    if study.level is not None:
        options += ["--set", f"{rates.LEVEL}={study.level}"]
    listener.note("tuning first: this study has no table of rates yet")
    board = Board(listener, 1)
    board.began("tune")
    try:
        run_cells([Cell("tune", options)], 1, lambda cell: children.start(cell.arguments), board)
    finally:
        board.close()


def share_tokenizer(order: Order, listener: Listener) -> None:
    """On text: let the first seed's build make the tokenizer that all seeds share."""
    path = order.folder / TOKENIZER
    first = order.study.bases_at(order.study.seeds[0])[0]
    if path.exists() or order.resolved(first).settings.data.tokenizer != "bpe":
        return
    options = ["build", "--arch", first.arch, "--home", str(order.home), "--quiet"]
    options += ["--config", str(order.folder / "settings.toml")]
    options += ["--seed", str(order.study.seeds[0])]
    options += [part for file in order.include for part in ("--include", str(file))]

    def keep(cell: Cell, run: Path) -> None:
        files.write_atomic(path, Run(run).content(TOKENIZER))

    cells = [Cell("tokenizer", options)]
    run_cells(cells, 1, lambda c: children.start(c.arguments, order.threads), listener, keep)


# --- records that were made elsewhere -------------------------------------------------------------


def bring_records(
    order: Order, folder: StudyFolder, brought: Sequence[Path], listener: Listener
) -> None:
    """Take over records of this study's cells; a block's are of one kind of processor.

    UserError where a block has cells of two kinds.
    """
    seeds = order.study.seeds if brought else ()
    all_cells = dict(zip(seeds, blocks(order, seeds)))
    for other in brought:
        taken = others = 0
        by_seed: dict[int, list[Record]] = {}
        for record in records.all_in(other):
            cells = all_cells.get(record.cell.seed)
            if cells and cells.asked.get(record.cell.label) == record.asked:
                by_seed.setdefault(record.cell.seed, []).append(record)
            else:
                others += 1
        failed = failures_of(other)
        for seed, found in by_seed.items():
            taken += bring_block(order, folder, all_cells[seed], found, other, failed)
        listener.note(f"{other}: {taken} finished cells of this study")
        if others:
            listener.warn(f"{other}: {others} records are of other cells or settings: left out")


def failures_of(other: Path) -> dict[str, Any]:
    """The cells that have failed, by label, in the folder of a study."""
    if not (other / STATE).is_file():
        return {}
    cells = StudyFolder(other).cells
    return {label: one for label, one in cells.items() if one["state"] == "failed"}


def bring_block(
    order: Order,
    folder: StudyFolder,
    cells: Cells,
    found: list[Record],
    other: Path,
    failed: dict[str, Any],
) -> int:
    """Take over the records of one block; the number of cells that are done by it."""
    seed = cells.all[0].seed
    theirs = next((r.made_on for r in found if r.cell.verb != "make-tasks"), None)
    known = folder.blocks.get(str(seed))
    have = [cell for cell in cells.all if cell.label in folder.cells]
    if have and known and theirs and any(known[key] != theirs[key] for key in theirs):
        if all(folder.is_done(cell, cells.asked[cell.label]) for cell in cells.all):
            return 0  # the block is finished here
        was, now = (runner.shown(one["processor"]) for one in (known, theirs))
        raise UserError(
            f"{other}: its records of block {seed} were made on {now}, those of {order.folder} on "
            f"{was}: a block is of one kind of processor; remove the one or the other"
        )
    if theirs is not None:
        folder.blocks[str(seed)] = {**theirs, "anew": bool(known and known["anew"])}
    for record in found:
        if record.cell.label not in folder.cells:
            records.write(order.folder, record)
            folder.finished(
                record.cell, record.asked, record.run, cached=False, elapsed_s=None,
                made_in=other.name,
            )  # fmt: skip
    for cell in cells.all:
        one = failed.get(cell.label)
        if one and cell.label not in folder.cells and one["asked"] == cells.asked[cell.label]:
            folder.cells[cell.label] = one
    folder.save()
    return len(found)
