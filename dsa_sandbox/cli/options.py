"""The options that commands share, and what each command begins and ends with."""

import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup


def path(text: str) -> Path:
    """What a user names on the command line as a path; Typer's own takes "" for this folder."""
    if not text:
        raise typer.BadParameter("an empty name; leave it out, or name a path.")
    return Path(text)


SETTINGS, OUTPUT = "Settings", "Output"
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Architecture: dense, dsa, dsa-full or dsa-v32.", metavar="NAME"),
]
Strategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        help="Fine-tuning strategy (ls strategies), or several: acft+ewc.",
        metavar="NAME",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="Seed of weights, data order and tasks (default: 0).", metavar="N"),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Text: grammar, a file or folder of stories, or owner/name on the Hub.",
        metavar="WHERE",
    ),
]
Count = Annotated[
    int | None,
    typer.Option("--count", help="Number of tasks (default: 50; reversal: 100).", metavar="N"),
]
Family = Annotated[
    str | None,
    typer.Option(
        "--family",
        help="contradiction, novel, style, reversal or roleplay, or one of yours.",
        metavar="NAME",
    ),
]
TasksFrom = Annotated[
    str | None,
    typer.Option(
        "--tasks", help="Task stream: a make-tasks run or a .jsonl file.", metavar="WHERE"
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        help="Size: smoke, mini, small or base.",
        rich_help_panel=SETTINGS,
        metavar="NAME",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of settings.",
        rich_help_panel=SETTINGS,
        metavar="FILE",
        parser=path,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="One setting, as section.key=value; repeatable.",
        rich_help_panel=SETTINGS,
        metavar="KEY=VALUE",
    ),
]
Include = Annotated[
    list[Path] | None,
    typer.Option(
        "--include",
        help="Python file that registers a strategy, architecture or task family.",
        rich_help_panel=SETTINGS,
        metavar="FILE",
        parser=path,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Device: auto, cpu, cuda or mps.", rich_help_panel=SETTINGS, metavar="NAME"
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder of all runs (default: ./runs).",
        rich_help_panel=OUTPUT,
        metavar="FOLDER",
        parser=path,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Run again under a new name even if this run exists.",
        rich_help_panel=OUTPUT,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Validate and print the plan without running.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=OUTPUT)
]
Everything = Annotated[
    bool,
    typer.Option(
        "--all",
        help="Also print contrasts, all other figures and their formulas.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print no notes and no progress.", rich_help_panel=OUTPUT),
]
AllowMismatch = Annotated[
    bool,
    typer.Option(
        "--allow-mismatch", help="Allow dense and dsa parameter counts to differ by more than 1 %."
    ),
]


class Verb(TyperCommand):
    """A command whose help says in our words what an option takes, not Python's: <list[Path]>."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [without_type(parameter) for parameter in super().get_params(ctx)]


class Verbs(TyperGroup):
    """All commands together; their help is as that of one."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [without_type(parameter) for parameter in super().get_params(ctx)]


def without_type(parameter: Any) -> Any:
    """The parameter; a flag, or an argument by its name alone, is shown without a type."""
    if isinstance(parameter, TyperArgument):
        parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    elif parameter.metavar is None and parameter.is_flag:
        parameter.metavar = ""
    return parameter


class Call(NamedTuple):
    """What every command needs: settings, home, listener, and how to answer."""

    resolved: Any  # resolving.Resolved
    home: Path
    listener: Any
    as_json: bool
    includes: dict[str, str]

    @property
    def settings(self) -> Any:
        return self.resolved.settings


def prepare(
    *,
    options: dict[str, tuple[Any, str]] | None = None,
    preset: str | None = None,
    config: Path | None = None,
    sets: list[str] | None = None,
    include: list[Path] | None = None,
    home: Path | None = None,
    as_json: bool = False,
    quiet: bool = False,
    with_strategy: bool = False,
    network: tuple[str, dict[str, Any]] | None = None,
) -> Call:
    """Includes first, then settings; signals are caught from here on."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.config import resolve
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.runs import saved

    terminal = console.Terminal(quiet)
    console.catch_signals(terminal)
    includes = saved.include(include or [])
    resolved = resolve.resolve(
        preset=preset,
        config=config,
        sets=sets,
        options=options,
        with_strategy=with_strategy,
        network=network,
    )
    return Call(resolved, store.home_folder(home), terminal, as_json, includes)


def answer_run(call: Call, command: str, result: Any) -> None:
    """Print the run's path, or one object."""
    from dsa_sandbox.cli import console

    if call.as_json:
        console.emit_json({"command": command, "run": str(result.run.path), **result.figures})
    else:
        console.emit(str(result.run.path))


def answer_plan(call: Call, command: str, plan: dict[str, Any]) -> None:
    """Print what would be done."""
    from dsa_sandbox.cli import console

    plan = {"command": command, "dry_run": True, "home": str(call.home), **plan}
    if call.as_json:
        console.emit_json(plan)
    else:
        from dsa_sandbox.report.wrapping import wrapped

        width = console.width_of(sys.stdout)
        for key, value in plan.items():
            console.emit("\n".join(wrapped(f"{key:<20} {value}", width, " " * 21)))


def show_notes(call: Call, text: str) -> None:
    """A summary on stderr, line by line."""
    for line in text.splitlines():
        call.listener.note(line)


def network_plan(call: Call) -> dict[str, Any]:
    """Sizes and lengths, by arithmetic alone; checks the device and the data."""
    from dsa_sandbox import machine, sizes
    from dsa_sandbox.data import corpus

    settings = call.settings
    machine.resolve(settings.machine, settings.preset)
    source = corpus.resolve(settings.data)
    vocabulary = corpus.nominal_vocabulary(settings.data)
    return {
        "arch": settings.arch,
        "preset": settings.preset,
        "seed": settings.seed,
        "data": source.location,
        **({"stories": corpus.count(source, settings.data)} if source.kind == "local" else {}),
        "vocabulary": vocabulary,
        "parameters": sizes.table(settings.arch, settings.model, vocabulary)["total"],
        "mismatch": round(sizes.mismatch(settings.model, vocabulary), 5),
        "steps": settings.train.steps,
        "tokens": settings.train.steps * settings.train.tokens_per_step,
    }
