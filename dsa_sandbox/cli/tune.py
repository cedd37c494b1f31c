"""tune: rates, strengths and level, found on development tasks."""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsa_sandbox.cli.options import (
    Archs,
    Call,
    Data,
    Device,
    Include,
    Jobs,
    Strategies,
    answer_plan,
    network_plan,
    verb,
)
from dsa_sandbox.errors import UserError

if TYPE_CHECKING:
    from dsa_sandbox.config.resolve import Resolved
    from dsa_sandbox.tuning.tune import Request

app = typer.Typer()


@verb(
    app,
    "tune --archs dense,dsa --strategies sgd,acft",
    options="tasks data seed device",
    shared="preset config set_ include home dry_run as_json quiet",
    later=True,
)
def tune(
    call: Call,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Development tasks of your own: a make-tasks run or a .jsonl file.",
            metavar="WHERE",
        ),
    ] = None,
    data: Data = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", help="Seed of bases and tasks (default: 10, for development).", metavar="N"
        ),
    ] = None,
    device: Device = None,
    jobs: Jobs = None,
    strategies: Strategies = "sgd,ewc,acft",
    archs: Archs = "dense,dsa,dsa-full",
    only: Annotated[
        str | None,
        typer.Option("--only", help="single or stream (default: both).", metavar="EXPERIMENT"),
    ] = None,
    count: Annotated[
        int, typer.Option("--count", min=2, help="Development tasks (at most).", metavar="N")
    ] = 12,
    first: Annotated[
        int | None,
        typer.Option(
            "--first",
            min=2,
            help="Tasks that all configurations learn; the best ones learn all (default: 4).",
            metavar="N",
        ),
    ] = None,
    stream_arms: Annotated[
        str | None,
        typer.Option(
            "--stream-arms",
            help="Arms tuned on the stream, as dense sgd,dsa acft (default: all).",
            metavar="A,B,..",
        ),
    ] = None,
    include: Include = None,
) -> None:
    """Find each strategy's learning rate and strength, and the level, on development tasks.

    Writes tuning.json into the home, which finetune and run use. The same command resumes.
    """
    from dsa_sandbox.cli import console
    from dsa_sandbox.runs.home import make_home
    from dsa_sandbox.tuning import tune as tuning
    from dsa_sandbox.tuning.screen import screen

    if first is not None and first > count:
        raise UserError(f"--first={first}: is more than --count={count}")
    request = requested(
        call,
        {"archs": archs, "strategies": strategies, "only": only, "tasks": tasks}
        | {"stream_arms": stream_arms},
        counts=(min(4, count) if first is None else first, count),
        include=include or [],
        data=data,
        device=device,
        seed=seed,
        jobs=jobs,
    )
    if call.dry_run:
        answer_plan(call, "tune", {**network_plan(call), **tuning.described(request)})
        return
    make_home(call.session.home)
    found = tuning.tune(request, call.session.listener)
    path = tuning.keep(call.session.home, request, found)
    report = tuning.report(request, found)
    if call.as_json:
        table = tuning.table_of(found)
        console.emit_json({"command": "tune", "file": str(path), "rates": table, **report})
        return
    style = {
        "width": min(console.width_of(sys.stdout), 160),
        "colour": console.has_colour(sys.stdout),
        "unicode": console.has_unicode(sys.stdout),
    }
    console.emit(screen(report, style))
    call.session.listener.note(f"rates: {path}")


def requested(
    call: Call, names: dict[str, Any], *, counts: tuple[int, int], include: list[Path], **more: Any
) -> "Request":
    """What is tuned, checked before any training."""
    from dsa_sandbox.cli.grid import arm_settings, is_strategy_key
    from dsa_sandbox.commands import arm_checks
    from dsa_sandbox.config import rates, training_checks
    from dsa_sandbox.study import grid
    from dsa_sandbox.tuning import tune as tuning

    sets, home, only = call.sets, call.session.home, names["only"]
    if only not in (None, *rates.EXPERIMENTS):
        raise UserError(f"--only {only}: choose single or stream, or leave it out for both")
    rows = grid.read_rows(home, names["tasks"])
    if rows is not None:
        refuse_test_stream(home, rows.where)
        counts = counts[0], min(counts[1], len(rows.tasks))
    counts = min(counts), counts[1]
    seed = tuning.SEED if more["seed"] is None else more["seed"]
    call.options["seed"] = seed, "--seed"
    call.sets = [text for text in sets if not is_strategy_key(text, names["strategies"])]
    development = ["tasks.stream=development", f"tasks.count={counts[1]}"] if rows is None else []
    call.sets = [*call.sets, *development]
    refuse_test_tasks(sets)
    resolved = call.resolve()
    check_settings(resolved)
    archs = arm_checks.chosen_names(names["archs"], "archs")
    training_checks.check_training(resolved, archs)
    strategies = arm_checks.chosen_names(names["strategies"], "strategies")
    arm_checks.check_strategies(strategies, call.preset, call.config, sets)
    grid.check_study(resolved, archs, home, rows)
    plan = grid.plan(
        call.settings,
        home,
        archs=archs,
        strategies=strategies,
        preset=call.preset,
        config=call.config,
        sets=[*sets, *development],
        include=include,
        count=None,
        rows=rows,
        **{**more, "seed": seed},
    )
    source = resolved.sources.get(rates.LEVEL, "default")
    return tuning.Request(
        plan,
        resolved.settings.preset,
        counts,
        rates.EXPERIMENTS if only is None else (only,),
        resolved.settings.finetune.level,
        max_steps=resolved.settings.finetune.max_steps,
        level_is_asked=source != "default" and not rates.is_row(source),
        resolve=partial(arm_settings, call, sets),
        stream_arms=chosen_arms(names["stream_arms"], archs, strategies),
    )


def chosen_arms(
    text: str | None, archs: list[str], strategies: list[str]
) -> list[tuple[str, str]] | None:
    """The arms of --stream-arms; None for all. UserError for one that is not among the others."""
    if text is None:
        return None
    known = [f"{arch} {strategy}" for arch in archs for strategy in strategies]
    found = []
    for name in (" ".join(part.split()) for part in text.split(",") if part.strip()):
        if name not in known:
            raise UserError(
                f"--stream-arms: {name}: no architecture of --archs with a strategy of --strategies"
            )
        arch, _, strategy = name.partition(" ")
        found.append((arch, strategy))
    if not found:
        raise UserError("--stream-arms: an empty list; name arms such as `dense ewc`")
    return found


def refuse_test_tasks(sets: list[str]) -> None:
    """UserError where --set asks for other tasks than those of development."""
    from dsa_sandbox.config.resolve import parse_set

    for key, value in map(parse_set, sets):
        if key == "tasks.stream" and value != "development":
            raise UserError(
                f"tasks.stream={value}: rates are tuned on development tasks only; leave it out  "
                "[from --set]"
            )
        if key == "tasks.count":
            raise UserError("tasks.count: tune takes --count and --first  [from --set]")


def refuse_test_stream(home: Path, where: str) -> None:
    """UserError where --tasks names a stream that make-tasks has made of the test families."""
    from dsa_sandbox.config import paths
    from dsa_sandbox.runs.home import find_run
    from dsa_sandbox.runs.saved import run_settings

    if paths.named(where, "--tasks").is_file():
        return
    run = find_run(home, where)
    made = "family" in run.manifest.get("figures", {})  # not given by the user
    if made and run_settings(run).tasks.stream == "test":
        raise UserError(
            f"--tasks {where}: a test stream; rates are tuned on development tasks only; leave it "
            "out, or name a stream of tasks.stream=development"
        )


def check_settings(resolved: "Resolved") -> None:
    """UserError for settings that tuning decides itself, or that its table cannot hold."""
    plan = resolved.settings.finetune
    for key, value, wanted, why in (
        ("experiment", plan.experiment, "stream", "choose by --only"),
        ("placebo", plan.placebo, False, "placebos are not tuned"),
        ("optimizer", plan.optimizer, "adamw", "tuning.json holds rates of adamw"),
        ("stop", plan.stop, "level", "tasks have to end at a level"),
    ):
        if value != wanted:
            source = resolved.sources.get(f"finetune.{key}", "default")
            raise UserError(f"finetune.{key}={value}: {why}; leave it out  [from {source}]")
