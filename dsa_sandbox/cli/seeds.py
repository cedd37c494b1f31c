"""run STUDY, and run --seeds: several seeds, block by block, in the folder of a study."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsa_sandbox.cli.options import Call, answer_plan
from dsa_sandbox.errors import RunFailed, UserError

if TYPE_CHECKING:
    from dsa_sandbox.study.opening import Opened
    from dsa_sandbox.study.prepare import Asked

GRID = {"strategies": "sgd,ewc,acft", "archs": "dense,dsa"}  # defaults of `run`
UNNAMED = "seeds"  # a study from options: its name, before a hash of what was asked for


@dataclass(frozen=True)
class Options:
    """The options of `run`."""

    name: str | None
    seeds: str | None
    records: list[Path]
    include: list[Path]
    count: int | None
    family: str | None
    tasks: str | None
    data: str | None
    seed: int | None
    device: str | None
    jobs: int | None
    strategies: str
    archs: str
    singles: int | None


def run(call: Call, options: Options) -> None:
    """Run a study, or say what it costs; exit 3 at the end where cells have failed."""
    from dsa_sandbox.study import opening, runner
    from dsa_sandbox.study.board import Board

    asked = asked_of(call, options)
    if call.dry_run:
        answer_plan(call, "run", dry_run(asked))
        return
    listener = call.session.listener
    with opening.opened(asked, listener, options.records) as study:
        board = Board(listener, study.order.jobs)
        runner.run(study.order, study.folder, board)
    answer(call, study)


def asked_of(call: Call, options: Options) -> "Asked":
    """The study that is asked for, by its file or by options, checked as far as its file goes."""
    from dsa_sandbox.config import study_file
    from dsa_sandbox.runs import saved
    from dsa_sandbox.study.prepare import Asked

    include, includes = list(options.include), dict(call.session.includes)
    seeds = None if options.seeds is None else seeds_of(options.seeds, options.name)
    if options.name is None:
        values = from_options(call, options, seeds)
        text, place, source = study_file_text(values), Path(), "the command line"
        seeds = None
    else:
        refuse_grid(call, options)
        text, file, values = study_file.read(options.name)
        place, source = (file.parent, str(file)) if file else (Path(), options.name)
        files = values.get("include", [])
        if isinstance(files, list) and all(isinstance(one, str) for one in files):
            named = [place / one for one in files]
            include += named
            includes |= saved.include(named)
    study = study_file.validated(values, source)
    return Asked(
        study, text, source, place, call.session.home, includes, include,
        sets=call.sets if options.name else [text for text in call.sets if is_machine(text)],
        device=options.device, jobs=options.jobs, seeds=seeds,
    )  # fmt: skip


def seeds_of(text: str, study: str | None) -> tuple[int, ...]:
    """The seeds of --seeds; UserError where it is no range.

    A number alone is a seed of the study; of a grid it is how many seeds, from 0 on.
    """
    from dsa_sandbox.config import study_file
    from dsa_sandbox.config.terms import MOST_SEEDS

    if study is None and text.strip().isdecimal():
        if not 0 < int(text) <= MOST_SEEDS:
            raise UserError(f"--seeds: {text}: a number alone is how many seeds, 1 to {MOST_SEEDS}")
        return tuple(range(int(text)))
    try:
        return tuple(study_file.seeds_of(text))
    except ValueError as error:
        raise UserError(f"--seeds: {error}") from None


def is_machine(text: str) -> bool:
    """Whether a --set is about the machine alone."""
    from dsa_sandbox.study.prepare import FREE

    return text.partition("=")[0].strip() in FREE


def refuse_grid(call: Call, options: Options) -> None:
    """UserError for options that a study file decides."""
    decided = ("count", "family", "tasks", "data", "seed", "singles")
    given = {f"--{key}": getattr(options, key) for key in decided}
    given |= {"--preset": call.preset, "--config": call.config}
    given |= {f"--{k}": v if (v := getattr(options, k)) != GRID[k] else None for k in GRID}
    for option, value in given.items():
        if value is not None:
            raise UserError(
                f"{option}={value}: the study {options.name} decides it; leave it out, or write it "
                "into a study file"
            )
    if call.session.force:
        raise UserError(
            f"--force: the study {options.name} keeps what it has; remove its folder in the home, "
            "or use another --home"
        )


def from_options(call: Call, options: Options, seeds: tuple[int, ...] | None) -> dict[str, Any]:
    """The values of an exploratory study of a grid, as `run` without --seeds would run it."""
    from dsa_sandbox.cli.grid import asked_experiment
    from dsa_sandbox.commands import arm_checks
    from dsa_sandbox.config import resolve
    from dsa_sandbox.runs.files import digest_of
    from dsa_sandbox.study import grid

    if seeds is None:
        raise UserError("--records: name the study that they belong to, or give --seeds")
    if options.seed is not None:
        raise UserError(f"--seed={options.seed}: --seeds names several; leave one of them out")
    if call.session.force:
        raise UserError("--force: with --seeds, use another --home to make every run again")
    archs = arm_checks.chosen_names(options.archs, "archs")
    chosen = arm_checks.chosen_names(options.strategies, "strategies")
    sets = dict(resolve.parse_set(text) for text in call.sets if not is_machine(text))
    file = resolve.flat(resolve.read_toml(call.config)) if call.config else {}
    settings = {**file, **sets}
    preset = call.preset or settings.pop("preset", "smoke")
    settings.pop("preset", None)
    for key, value in (("data.source", options.data), ("tasks.family", options.family)):
        if value is not None:
            settings[key] = value
    rows = grid.read_rows(call.session.home, options.tasks)
    call.sets = [
        text for text in call.sets if text.partition(".")[0] not in "+".join(chosen).split("+")
    ]
    experiment = asked_experiment(call.resolve(), options.singles)
    settings.pop("tasks.count", None)
    count = len(rows.tasks) if rows else call.settings.tasks.count
    settings.pop("finetune.experiment", None)
    level = settings.pop("finetune.level", None)
    arms = [f"{arch} {name}" for arch in archs for name in chosen]
    lone = [arm for arm in arms if grid.learns_one_by_one(arm.partition(" ")[2])]
    singles = 0 if experiment == "stream" else grid.num_singles(count, options.singles)
    values: dict[str, Any] = {
        "preset": preset,
        "settings": settings,
        "seeds": list(seeds),
        "confirmatory": False,
        "tasks": count,
        "stream": [] if experiment == "single" else arms,
        "single": lone if singles else [],
        "single_tasks": singles,
        "placebo_tasks": singles,
        "rates": "home",
        **({"level": level} if level is not None else {}),
        **({"rows": str(Path(options.tasks).absolute())} if rows and options.tasks else {}),
    }
    return {"name": f"{UNNAMED}-{digest_of(values)[:8]}", **values}


def study_file_text(values: dict[str, Any]) -> str:
    """The text of a study file (TOML) that holds these values."""
    import tomli_w

    return tomli_w.dumps(values)


def dry_run(asked: "Asked") -> dict[str, Any]:
    """Cells, tokens, memory, disk and hours of a study; nothing is written."""
    from dsa_sandbox.study import opening, price, runner
    from dsa_sandbox.study.cells import blocks
    from dsa_sandbox.study.folder import StudyFolder

    order = opening.checked(asked)
    folder = StudyFolder(asked.folder)
    listed = blocks(order, order.seeds)
    todo = runner.left_to_do(order, folder, listed)
    every = [cell for cells in listed for cell in cells.all]
    study = asked.study
    tuned = study.rates != "tune" or order.table is not None
    return {
        "study": study.name,
        "claims": ", ".join(study.claims) or "none",
        "confirmatory": study.confirmatory,
        "seeds": ", ".join(map(str, order.seeds)),
        "arms": ", ".join(
            [*(f"{a}, stream" for a in study.stream), *(f"{a}, single" for a in study.single)]
        ),
        "tuning": "done" if tuned else "first, not in the hours below (tune --dry-run)",
        **price.price(order, every, todo),
    }


def answer(call: Call, study: "Opened") -> None:
    """What was run and where; RunFailed where cells have failed."""
    from dsa_sandbox.cli import console

    folder, order = study.folder, study.order
    failures = folder.failures
    states = [one["state"] for one in folder.cells.values()]
    if call.as_json:
        console.emit_json(
            {
                "command": "run",
                "study": order.study.name,
                "folder": str(folder.path),
                "hash": folder.state["hash"],
                "level": folder.state["level"],
                "finished": states.count("finished"),
                "cells": folder.cells,
                "blocks": folder.blocks,
                "failures": failures,
                "deviations": folder.state["deviations"],
            }
        )
    else:
        console.emit(str(folder.path))
    for label, why in failures.items():
        call.session.listener.warn(f"{label}: {why}")
    if failures:
        raise RunFailed(
            f"{len(failures)} of {len(states)} cells have failed and count as not reached; the "
            f"rest is in {folder.path}"
        )
