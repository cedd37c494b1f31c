"""From a study file to a study that can be run here: every refusal, before anything starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from dsa_sandbox import machine
from dsa_sandbox.commands import arm_checks, make_tasks
from dsa_sandbox.config import paths, rates, resolve, training_checks
from dsa_sandbox.config.resolve import CALL, Resolved
from dsa_sandbox.config.settings import Settings
from dsa_sandbox.config.study_file import TABLES, Arm, StudyFile
from dsa_sandbox.errors import UserError
from dsa_sandbox.registry import nearest, strategies
from dsa_sandbox.runs import files
from dsa_sandbox.study import grid
from dsa_sandbox.study.cells import Order
from dsa_sandbox.study.folder import content_of, path_of
from dsa_sandbox.study.needs import check_claims
from dsa_sandbox.tasks import checking

FREE = ("machine.threads", "machine.save_every_s", "machine.device", "machine.micro_tokens")


class Asked(NamedTuple):
    """A study, and how it is to be run: the options of the command line."""

    study: StudyFile
    text: str  # of its file
    source: str  # of its values, in messages
    place: Path  # relative paths of the file begin here
    home: Path
    includes: Mapping[str, str]  # sha256 by path
    include: Sequence[Path] = ()
    sets: Sequence[str] = ()
    device: str | None = None
    jobs: int | None = None
    seeds: tuple[int, ...] | None = None  # blocks that are run now; None: all

    @property
    def folder(self) -> Path:
        """The study's folder in the home."""
        return path_of(self.home, self.study.name)

    def path(self, text: str) -> Path | None:
        """A file that the study names; None where it names none."""
        return self.place / text if text else None


def check(asked: Asked) -> None:
    """UserError, in one line each, for whatever would stop the study later."""
    study, source = asked.study, asked.source
    check_settings(study, source)
    check_claims(study, source)
    check_sets(asked.sets)
    if asked.seeds is not None and (other := [s for s in asked.seeds if s not in study.seeds]):
        raise UserError(f"--seeds: {other[0]} is not one of the study's seeds  [from {source}]")
    for key in ("rows", "development_rows"):
        if path := asked.path(getattr(study, key)):
            paths.file(path, key)
    if study.rates not in (*TABLES, ""):
        paths.file(asked.place / study.rates, "rates")
    if study.confirmatory and "finetune.learning_rate" in study.settings:
        raise UserError(
            "settings: finetune.learning_rate: one rate for all arms makes straw men of some; a "
            f"confirmatory study takes tuned rates; leave it out  [from {source}]"
        )


def check_settings(study: StudyFile, source: str) -> None:
    """UserError for a setting that there is not."""
    known = resolve.known_keys()
    for key in study.settings:
        if key.partition(".")[0] not in list(strategies) and key not in known:
            raise UserError(
                f"settings: {key}: no such setting{nearest(key, known)}  [from {source}]"
            )


def check_sets(sets: Sequence[str]) -> None:
    """UserError where --set changes what the study file decides."""
    for key, value in map(resolve.parse_set, sets):
        if key not in FREE:
            raise UserError(
                f"--set {key}={value}: a study decides all but the machine; write it into the "
                f"study file under [settings] (--set takes {', '.join(FREE)})"
            )


def order_of(asked: Asked, table: rates.Table | None) -> Order:
    """The study with a table of rates, its arms checked; UserError for what a cell would refuse."""
    study = asked.study
    first = Arm(study.bases_at(study.seeds[0])[0].arch, "")
    rows = asked.path(study.rows)
    order = Order(
        study=study,
        source=asked.source,
        home=asked.home,
        folder=asked.folder,
        table=table,
        include=asked.include,
        includes=asked.includes,
        rows=rows,
        rows_sha256=files.file_digest(rows) if rows else "",
        sets=asked.sets,
        device=asked.device,
        jobs=1,
        threads=1,
        precision="",
        processor={},
        seeds=study.seeds if asked.seeds is None else asked.seeds,
    )
    settings = order.resolved(first).settings
    here = dict(map(resolve.parse_set, asked.sets))
    if asked.device:
        here["machine.device"] = asked.device
    own = settings.machine.model_copy(update={k.partition(".")[2]: v for k, v in here.items()})
    settings = settings.model_copy(update={"machine": own})
    engine = machine.resolve(own, settings.preset)
    num_arms = len(study.stream) * len(study.orders) + len(study.single)
    jobs, threads = machine.jobs_and_threads(own, settings.preset, asked.jobs, max(1, num_arms))
    order = order._replace(
        jobs=jobs,
        threads=threads,
        precision=engine.precision,
        processor=machine.processor(engine.device),
    )
    check_arms(order, asked)
    return order


def check_arms(order: Order, asked: Asked) -> None:
    """UserError for a base, an arm or rows that its command would refuse."""
    study = order.study
    problems: list[str] = []
    bases = [base for seed in study.seeds[:1] for base in study.bases_at(seed)]
    bases += [base for base in named_bases(study) if base not in bases]
    for base in bases:
        with_problems(problems, asked, lambda b=base: training_checks.check_training(
            order.resolved(b), [b.arch]))  # fmt: skip
    for experiment, arms in (("stream", study.stream_arms), ("single", study.single_arms)):
        for arm in arms:
            with_problems(problems, asked, lambda a=arm, e=experiment: check_arm(order, a, e))
    if order.rows is not None:
        with_problems(problems, asked, lambda: check_rows(order, order.resolved(bases[0]).settings))
    if problems:
        raise UserError(*dict.fromkeys(problems))


def named_bases(study: StudyFile) -> list[Arm]:
    """The bases of the seed that has most of them."""
    return max((study.bases_at(seed) for seed in study.seeds), key=len)


def with_problems(problems: list[str], asked: Asked, call: Any) -> None:
    """Add the problems that a check finds, with the study as their source."""
    try:
        call()
    except UserError as error:
        problems += [
            line.replace(f"[from {CALL}]", f"[from {asked.source}]") for line in error.problems
        ]


def check_arm(order: Order, arm: Arm, experiment: str) -> None:
    """UserError for the settings of an arm that `finetune` would refuse."""
    resolved = order.resolved(arm, experiment)
    settings = resolved.settings
    if "finetune.indexer" not in arm.sets:
        settings = arm_checks.without_vain_rewarming(settings)
    if experiment == "single":
        plan = settings.eval.model_copy(update={"dense_tasks": ()})
        settings = settings.model_copy(update={"eval": plan})
    if experiment == "single" and not grid.learns_one_by_one(arm.strategy):
        raise UserError(
            f"single: {arm.arch} {arm.strategy}: a bound does not learn one task after another; "
            f"list it under `stream` alone  [from {order.source}]"
        )
    arm_checks.check_settings(settings, order.home)
    arm_checks.check_dense(settings, order.study.tasks)
    check_optimizer(arm, resolved, order)


def check_optimizer(arm: Arm, resolved: Resolved, order: Order) -> None:
    """UserError for an arm of an optimiser that no table of rates is about, without a rate."""
    optimizer = resolved.settings.finetune.optimizer
    if optimizer != "adamw" and rates.RATE not in arm.sets:
        raise UserError(
            f"{arm.arch} {arm.strategy}, finetune.optimizer={optimizer}: tables hold rates of "
            f"adamw; add {rates.RATE}=...  [from {order.source}]"
        )


def check_rows(order: Order, settings: Settings) -> None:
    """UserError for rows of the user that cannot be learned, or are not as many as `tasks`."""
    rows = grid.read_rows(order.home, str(order.rows))
    assert rows is not None
    if len(rows.tasks) != order.study.tasks:
        raise UserError(
            f"tasks={order.study.tasks}: {rows.name} has {len(rows.tasks)} tasks, and a study "
            f"learns all of them  [from {order.source}]"
        )
    if settings.data.tokenizer == "words":
        from dsa_sandbox.data import tokens

        checking.check(rows.tasks, tokens.word_tokenizer(), settings.model.context, rows.name)
    development = order.study.development_rows
    if development:
        other = make_tasks.read_tasks(order.home, str(order.rows.parent / development))  # type: ignore[union-attr]
        ours, theirs = ({(t.world, t.subject) for t in one.tasks} for one in (rows, other))
        shared = ours & theirs
        if shared:
            world, subject = sorted(shared)[0]
            raise UserError(
                f"development_rows={development}: holds a task of the study ({subject} in "
                f"{world}); rates are tuned on other tasks  [from {order.source}]"
            )


# --- rates ----------------------------------------------------------------------------------------


def given_table(asked: Asked) -> rates.Table | None:
    """The table that the study keeps, or that it names; None where it has to be made, or shipped.

    UserError for a table that was tuned on a test stream.
    """
    kept = rates.of_home(asked.folder) if asked.folder.is_dir() else None
    if asked.study.rates == "shipped":
        return None
    if asked.study.rates not in TABLES:
        named = rates.of_file(asked.place / asked.study.rates)
        check_tuned_on(named, asked)
        return named
    if kept is not None:
        return kept
    table = rates.of_home(asked.home)
    if table is not None and (asked.study.rates == "home" or not missing_rows(asked, table)):
        check_tuned_on(table, asked)
        return table
    return None


def check_tuned_on(table: rates.Table, asked: Asked) -> None:
    """UserError where a report of the table says that rates were tuned on test tasks."""
    for experiment, report in rates.reports_of(table).get(asked.study.preset, {}).items():
        name = str(report.get("tasks", {}).get("name", ""))
        if name.startswith("make-tasks-") and "-test-" in name:
            raise UserError(
                f"rates={asked.study.rates}: its rates of {experiment} were tuned on {name}, a "
                f"test stream; tune on development tasks  [from {asked.source}]"
            )


def missing_rows(asked: Asked, table: rates.Table | None) -> list[str]:
    """The arms that a table has no tuned row for, as `dsa acft (stream)`."""
    study, found = asked.study, []
    rows = {} if table is None else table.presets.get(study.preset, {})
    for experiment, arms in (("stream", study.stream_arms), ("single", study.single_arms)):
        for arm in arms:
            if rates.RATE in arm.sets or not is_tunable(arm.strategy):
                continue
            row = rates.row_for(rows.get(experiment, {}), arm.arch, arm.strategy)
            if row is None or row.how != rates.TUNED:
                found.append(f"{arm.arch} {arm.strategy} ({experiment})")
    return list(dict.fromkeys(found))


def is_tunable(strategy: str) -> bool:
    """Whether `tune` finds a rate: bounds learn all tasks at once, apart, or none."""
    return grid.learns_one_by_one(strategy)


def check_rates(asked: Asked, table: rates.Table | None) -> None:
    """UserError where a confirmatory study has an arm whose learning rate was not tuned."""
    study = asked.study
    if not study.confirmatory:
        return
    missing = missing_rows(asked, table if table is not None else rates.shipped())
    if missing:
        raise UserError(
            f"rates={study.rates}: no tuned rate for {', '.join(missing)}: an untuned arm is a "
            f"straw man; a confirmatory study needs rates = 'tune'  [from {asked.source}]"
        )


# --- what children read ---------------------------------------------------------------------------


def settings_toml(study: StudyFile) -> str:
    """The settings that all cells share, for --config."""
    nested: dict[str, Any] = {"preset": study.preset}
    for key, value in sorted(study.settings.items()):
        section, dot, name = key.partition(".")
        if dot:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return tomli_w.dumps(nested)


def content(asked: Asked, table: rates.Table | None) -> dict[str, Any]:
    """All that the study's hash is about: its values, and the sha256 of what they name."""
    named = {f"include {Path(path).name}": sha256 for path, sha256 in asked.includes.items()}
    for key in ("rows", "development_rows"):
        if path := asked.path(getattr(asked.study, key)):
            named[key] = files.file_digest(path)
    named["rates"] = "" if table is None else table.sha256
    return content_of(asked.study, named)
