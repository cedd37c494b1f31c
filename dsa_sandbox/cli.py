"""The command line: parse, call the command, print. Heavy imports wait until they are needed."""

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from dsa_sandbox.errors import Interrupted, RunFailed, UserError
from dsa_sandbox.options import (
    AllowMismatch,
    Arch,
    Config,
    Count,
    Data,
    Device,
    DryRun,
    Family,
    Force,
    Home,
    Include,
    Json,
    Preset,
    Quiet,
    Seed,
    Set,
    Strategy,
    TasksFrom,
    answer_plan,
    answer_run,
    load_includes,
    network_plan,
    prepare,
    show_notes,
)

ClickException: Any = typer.BadParameter.__mro__[2]  # Typer's Click is its own copy

app = typer.Typer(
    name="dsa-sandbox",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Does the shape of attention protect a language model from forgetting?\n\n"
    "Builds a dense network and one with DeepSeek Sparse Attention, pre-trains both to equal "
    "quality, teaches them contradictory worlds one after another, and measures what they forget.",
    epilog="The whole study at smoke scale: dsa-sandbox run --count 8",
)


@app.command(epilog="Example: dsa-sandbox build --arch dense")
def build(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    allow_mismatch: AllowMismatch = False,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network's initial weights as a run; show both parameter tables."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    if dry_run:
        answer_plan(call, "build", network_plan(call))
        return
    from dsa_sandbox import commands
    from dsa_sandbox.report import table

    result = commands.build(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.parameters(result.figures))
    answer_run(call, "build", result)


@app.command(epilog="Example: dsa-sandbox pretrain --arch dsa --set train.steps=500")
def pretrain(
    arch: Arch = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    allow_mismatch: AllowMismatch = False,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a language model from scratch; the same command again resumes or returns it."""
    call = prepare(
        options={
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    if dry_run:
        answer_plan(call, "pretrain", network_plan(call))
        return
    from dsa_sandbox import commands
    from dsa_sandbox.report import table

    result = commands.pretrain(
        call.settings,
        call.home,
        force=force,
        allow_mismatch=allow_mismatch,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.base(result.run.name, result.figures))
    answer_run(call, "pretrain", result)


@app.command("make-tasks", epilog="Example: dsa-sandbox make-tasks --count 8")
def make_tasks(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BASE]...", help="Pre-trained runs (default: the newest of each arch)."
        ),
    ] = None,
    count: Count = None,
    family: Family = None,
    tasks: TasksFrom = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the stream of tasks from facts that the bases know; or check rows of yours (--tasks)."""
    from dsa_sandbox import bases, commands, console, store
    from dsa_sandbox.report import table

    place, listener = store.home_folder(home), console.Terminal(quiet)
    load_includes(include or [])
    if runs:
        chosen = [store.find_run(place, name) for name in runs]
    else:
        newest = bases.default_base(place, None, preset, listener)
        chosen = bases.block_of(place, newest)
    call = prepare(
        options={
            "tasks.count": (count, "--count"),
            "tasks.family": (family, "--family"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset or chosen[0].manifest.get("preset"),
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    resolved = bases.for_base(call.settings, chosen[0], call.resolved.sources)
    resolved = bases.with_seed_of(resolved, chosen[0], call.resolved.sources)
    if dry_run:
        names = ", ".join(base.name for base in chosen)
        plan = {"bases": names, "count": resolved.tasks.count, "stream": resolved.tasks.stream}
        answer_plan(call, "make-tasks", plan)
        return
    result = commands.make_tasks(
        resolved, call.home, chosen, force=force, listener=call.listener, rows=tasks
    )
    show_notes(call, table.stream(result.run.name, result.figures))
    answer_run(call, "make-tasks", result)


@app.command(epilog="Example: dsa-sandbox finetune --strategy ewc --set ewc.strength=0.1")
def finetune(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[BASE]", help="A pre-trained run (default: the newest)."),
    ] = None,
    strategy: Strategy = None,
    arch: Arch = None,
    tasks: TasksFrom = None,
    count: Count = None,
    seed: Seed = None,
    device: Device = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn the tasks one after another with a strategy, and record what is forgotten."""
    from dsa_sandbox import console, store

    listener = console.Terminal(quiet)
    place = store.home_folder(home)
    if run is not None:
        base = store.find_run(place, run)
    else:
        from dsa_sandbox import bases

        base = bases.default_base(place, arch, preset, listener)
    manifest = base.manifest
    call = prepare(
        options={
            "strategy": (strategy, "--strategy"),
            "arch": (arch, "--arch"),
            "tasks.count": (count, "--count"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset or manifest.get("preset"),
        config=config,
        sets=set_,
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
        with_strategy=True,
    )
    from dsa_sandbox import bases, commands
    from dsa_sandbox.report import table

    bases.pretrained(base)
    resolved = bases.for_base(call.settings, base, call.resolved.sources)
    resolved = bases.with_seed_of(resolved, base, call.resolved.sources)
    rows, name, sha = commands.tasks_for(
        resolved, call.home, base, tasks, dry_run=dry_run, listener=call.listener, asked=count
    )
    if dry_run:
        plan = {
            "base": base.name,
            "strategy": resolved.strategy,
            "tasks": len(rows) or "made first",
        }
        plan |= {"max_steps": (len(rows) or resolved.tasks.count) * resolved.finetune.max_steps}
        answer_plan(call, "finetune", plan)
        return
    result = commands.finetune(
        resolved,
        call.home,
        base,
        rows,
        name,
        sha,
        force=force,
        includes=call.includes,
        listener=call.listener,
    )
    show_notes(call, table.arm(result.run.name, result.figures))
    answer_run(call, "finetune", result)


@app.command("eval", epilog="Example: dsa-sandbox eval --json")
def evaluate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...", help="Arms or bases (default: all arms of the newest stream)."
        ),
    ] = None,
    tasks: TasksFrom = None,
    selection: Annotated[
        str | None,
        typer.Option(
            "--selection",
            help="Of bases: who chooses the keys (learned, random, window, oracle, all).",
            metavar="NAME",
        ),
    ] = None,
    formulas: Annotated[
        bool, typer.Option("--formulas", help="Show how each figure is computed.")
    ] = False,
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Figures of arms from their records, or of bases by measuring them (on --tasks, if named)."""
    call = prepare(home=home, include=include, as_json=as_json, quiet=quiet)
    from dsa_sandbox import commands, console, store
    from dsa_sandbox.report import table

    chosen = store.chosen_runs(call.home, runs or [], finished=True)
    results = {
        run.name: commands.evaluate(
            run, call.home, tasks=tasks, selection=selection, listener=call.listener
        )
        for run in chosen
    }
    if as_json:
        console.emit_json(
            {
                "command": "eval",
                "runs": results,
                "formulas": table.formulas(),
                **table.contrasts(results),
            }
        )
        return
    width = console.width_of(sys.stdout)
    console.emit(table.results(results, width=width, with_formulas=formulas))


@app.command(epilog="Example: dsa-sandbox plot --kind retention --save curves.csv")
def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Arms (default: all of the newest stream)."),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="forgetting, retention or front.", metavar="NAME")
    ] = "forgetting",
    save: Annotated[
        Path | None, typer.Option("--save", help="Also write the points to a .csv file.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw arms: forgetting curves, the retention matrix, or learning against forgetting."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console, store
    from dsa_sandbox.report import figures

    figures.check(kind, save)
    chosen = store.chosen_runs(call.home, runs or [])
    drawn = figures.draw(
        kind,
        chosen,
        width=min(console.width_of(sys.stdout), 160),
        colour=console.has_colour(sys.stdout),
        unicode=console.has_unicode(sys.stdout),
    )
    if save is not None:
        figures.save_csv(save, drawn.points)
        call.listener.note(f"points written to {save}")
    if as_json:
        console.emit_json({"command": "plot", "kind": kind, "points": drawn.points})
    else:
        console.emit(drawn.text)


@app.command(epilog="Example: dsa-sandbox run --preset smoke --count 8")
def run(
    count: Count = None,
    data: Data = None,
    seed: Seed = None,
    device: Device = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Cells side by side (default: cores / threads).", metavar="N"
        ),
    ] = None,
    strategies: Annotated[
        str, typer.Option("--strategies", help="Strategies of the grid.", metavar="A,B,..")
    ] = "sgd,ewc,acft",
    archs: Annotated[
        str, typer.Option("--archs", help="Architectures of the grid.", metavar="A,B,..")
    ] = "dense,dsa",
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    home: Home = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole study: build, pretrain, make-tasks, all arms, eval, plot; skips what is there."""
    call = prepare(
        options={
            "tasks.count": (count, "--count"),
            "data.source": (data, "--data"),
            "seed": (seed, "--seed"),
            "machine.device": (device, "--device"),
        },
        preset=preset,
        config=config,
        sets=[s for s in set_ or [] if not is_strategy_key(s, strategies)],
        include=include,
        home=home,
        as_json=as_json,
        quiet=quiet,
    )
    from dsa_sandbox import console, study
    from dsa_sandbox.report import figures, table

    plan = study.plan(
        call.settings,
        call.home,
        archs=study.names(archs, "archs"),
        strategies=study.names(strategies, "strategies"),
        preset=preset,
        config=config,
        sets=set_ or [],
        include=include or [],
        data=data,
        device=device,
        count=count,
        seed=seed,
        jobs=jobs,
    )
    if dry_run:
        answer_plan(call, "run", {**network_plan(call), **plan.described()})
        return
    outcome = study.run(plan, call.listener)
    results = study.evaluate(outcome)
    if as_json:
        console.emit_json(
            {"command": "run", **outcome.paths(), "runs": results, **table.contrasts(results)}
        )
        return
    style: dict[str, Any] = {
        "width": min(console.width_of(sys.stdout), 160),
        "colour": console.has_colour(sys.stdout),
        "unicode": console.has_unicode(sys.stdout),
    }
    for kind in ("forgetting", "front"):
        console.emit(figures.draw(kind, outcome.arms, **style).text + "\n")
    width = console.width_of(sys.stdout)
    stream = table.stream(outcome.stream.name, outcome.stream.manifest["figures"])
    console.emit(table.folded(stream, max(width, 80)) + "\n")
    console.emit(table.results(results, width=width))


def is_strategy_key(text: str, strategies: str) -> bool:
    """Whether a --set belongs to one of the strategies of the grid: its cells get it."""
    return text.partition(".")[0] in [name.strip() for name in strategies.split(",")]


@app.command(epilog='Example: dsa-sandbox generate --prompt "Tom had a red ball." --count 3')
def generate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run with a network (default: the newest base)."),
    ] = None,
    prompt: Annotated[
        str, typer.Option("--prompt", help="How the stories begin.", metavar="TEXT")
    ] = "Once upon a time",
    count: Annotated[int, typer.Option("--count", min=1, help="Stories.", metavar="N")] = 1,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest continuation.", metavar="N")
    ] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0: always the likeliest.", metavar="X")
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option("--top-p", min=0, max=1, help="Leave out the unlikeliest.", metavar="X"),
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draws.", metavar="N")] = 0,
    device: Device = None,
    home: Home = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a network tell stories; the text appears as it is told."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import bases, commands, console, store

    if run is not None:
        teller = store.find_run(call.home, run)
    else:
        teller = bases.default_base(call.home, None, None, call.listener)

    def say(text: str) -> None:
        if count == 1 and not as_json:
            console.emit(text, end="")

    drawing: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }
    stories = commands.generate(
        teller, prompt=prompt, count=count, device=device, say=say, **drawing
    )
    if as_json:
        console.emit_json(
            {"command": "generate", "run": teller.name, **drawing, "stories": stories}
        )
    elif count == 1:
        console.emit("")
    else:
        console.emit("\n\n".join(stories))


@app.command(epilog="Example: dsa-sandbox export pretrain-dense --to my-model")
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run with a network.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write.", metavar="FOLDER")],
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also into a folder that is not empty.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a network as a folder that transformers loads: dense as Llama, dsa-v32 as DeepSeek."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import commands, console, store

    made = commands.export(store.find_run(call.home, run), to, force=force)
    if as_json:
        console.emit_json({"command": "export", **made})
    else:
        call.listener.note(f"{made['architecture']}, {made['parameters']:,} parameters")
        console.emit(made["folder"])


@app.command("ls", epilog="Example: dsa-sandbox ls runs")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="runs, presets, strategies, archs or tasks.")
    ] = "runs",
    include: Include = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List runs (with how far unfinished ones are), presets, strategies, archs or task families."""
    call = prepare(home=home, include=include, as_json=as_json)
    from dsa_sandbox import console
    from dsa_sandbox.report import listing

    rows = listing.rows(kind, call.home)
    if as_json:
        console.emit_json({"command": "ls", "kind": kind, "rows": rows})
    elif rows:
        console.emit(listing.table(rows))
    else:
        call.listener.note(f"no {kind} in {call.home}")


@app.command("settings", epilog="Example: dsa-sandbox settings --preset mini > mini.toml")
def settings_(
    strategy: Strategy = None,
    arch: Arch = None,
    data: Data = None,
    count: Count = None,
    seed: Seed = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    include: Include = None,
    as_json: Json = False,
) -> None:
    """Print every resolved setting and who set it, as TOML that --config accepts."""
    touches_strategy = strategy is not None or any("." in (s or "") for s in set_ or []) or config
    call = prepare(
        options={
            "strategy": (strategy, "--strategy"),
            "arch": (arch, "--arch"),
            "data.source": (data, "--data"),
            "tasks.count": (count, "--count"),
            "seed": (seed, "--seed"),
        },
        preset=preset,
        config=config,
        sets=set_,
        include=include,
        as_json=as_json,
        with_strategy=bool(touches_strategy),
    )
    from dsa_sandbox import console, settings

    if as_json:
        values = settings.as_flat(call.settings)
        sources = {key: call.resolved.sources.get(key, "default") for key in values}
        console.emit_json({"command": "settings", "settings": values, "sources": sources})
    else:
        console.emit(settings.as_toml(call.settings, call.resolved.sources).rstrip())


@app.command("rm", epilog="Example: dsa-sandbox rm pretrain-dsa-smoke-s0-1234abcd")
def remove(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs to remove.")],
    home: Home = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also where other runs stand on it.")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove runs; one that others stand on, or that is being written, is refused."""
    call = prepare(home=home, as_json=as_json, quiet=quiet)
    from dsa_sandbox import console, store

    chosen = [store.find_run(call.home, name) for name in runs]
    removed = store.remove(chosen, call.home, force=force, dry_run=dry_run)
    if as_json:
        console.emit_json({"command": "rm", "removed": removed, "dry_run": dry_run})
    else:
        for path in removed:
            call.listener.note(f"{'would remove' if dry_run else 'removed'} {path}")


def show_version(value: bool) -> None:
    """Print the version and leave."""
    if value:
        from importlib.metadata import version

        typer.echo(f"dsa-sandbox {version('dsa-sandbox')}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Options before the command."""


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """The exit code of a command; problems go to stderr in one line each."""
    from dsa_sandbox import console

    as_json = "--json" in arguments
    try:
        code = app(arguments, prog_name="dsa-sandbox", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ClickException as error:
        console.report_error([usage_line(error)], 2, as_json)
        return 2
    except (UserError, RunFailed) as error:
        console.report_error(str(error).splitlines(), error.exit_code, as_json)
        return error.exit_code
    except typer.Abort:
        console.report_error(["aborted"], 130, as_json)
        return 130
    except Interrupted as error:
        again = " ".join(["dsa-sandbox", *map(quoted, arguments)])
        console.report_error([f"{error}; resume with: {again}"], error.exit_code, as_json)
        return error.exit_code
    except (BrokenPipeError, console.ClosedPipe):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def usage_line(error: Any) -> str:
    """Click's message in one line, with the command it belongs to."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    where = f"  (see {context.command_path} --help)" if context else ""
    return f"{message}{setting_hint(message)}{where}"


def setting_hint(message: str) -> str:
    """How to set what somebody took for an option of its own: --steps is train.steps."""
    from dsa_sandbox import settings

    taken = re.match(r"No such option: --([\w-]+)", message)
    fields = {key: key.partition(".")[2] for key in settings.known_keys()}
    close = (
        difflib.get_close_matches(taken[1].replace("-", "_"), fields.values(), 1) if taken else []
    )
    keys = [f"--set {key}=VALUE" for key, field in fields.items() if field in close]
    return f"; did you mean {' or '.join(keys)}?" if keys else ""


def quoted(argument: str) -> str:
    """The argument as a shell wants it."""
    import shlex

    return shlex.quote(argument)
