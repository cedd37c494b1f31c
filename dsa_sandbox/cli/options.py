"""The options that commands share, how a command begins with them, and how it answers."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from dsa_sandbox.registry import archs
from dsa_sandbox.runs.session import Session

if TYPE_CHECKING:  # pydantic takes time that help does not need
    from dsa_sandbox.config.resolve import Resolved
    from dsa_sandbox.config.settings import Settings
    from dsa_sandbox.runs.job import Result


def path(text: str) -> Path:
    """The path of an argument; Typer's own parser reads "" as the working directory."""
    if not text:
        raise typer.BadParameter("an empty name; leave it out, or name a path.")
    return Path(text)


SETTINGS, OUTPUT = "Settings", "Output"
Arch = Annotated[
    str | None,
    typer.Option("--arch", help=f"Architecture: {', '.join(archs)}.", metavar="NAME"),
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
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Maximum sequence length (default: the model's, at most 2048).",
        metavar="N",
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
        help="Python file that registers strategies, architectures, task families, plots, "
        "statistics, claims or falsifiers.",
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
Study = Annotated[
    Path | None,
    typer.Option(
        "--study",
        help="Folder of the study that the run belongs to: its rates are used.",
        rich_help_panel=OUTPUT,
        metavar="FOLDER",
        parser=path,
        hidden=True,  # of a study's cells
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
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Parallel jobs (default: cores / threads).", metavar="N"),
]
Strategies = Annotated[
    str, typer.Option("--strategies", help="Strategies, separated by commas.", metavar="A,B,..")
]
Archs = Annotated[
    str, typer.Option("--archs", help="Architectures, separated by commas.", metavar="A,B,..")
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
    """A command whose help shows metavars instead of Python types such as <list[Path]>."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [without_type(parameter) for parameter in super().get_params(ctx)]


class Verbs(TyperGroup):
    """The group of all commands, with the same kind of help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [without_type(parameter) for parameter in super().get_params(ctx)]


def without_type(parameter: Any) -> Any:
    """The parameter, shown without a type where it is an argument or a flag."""
    if isinstance(parameter, TyperArgument):
        parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
    elif parameter.metavar is None and parameter.is_flag:
        parameter.metavar = ""
    return parameter


# options that set one setting: the parameter's name, its annotation and the setting
SETTING_OPTIONS: dict[str, tuple[Any, str]] = {
    "strategy": (Strategy, "strategy"),
    "arch": (Arch, "arch"),
    "data": (Data, "data.source"),
    "count": (Count, "tasks.count"),
    "family": (Family, "tasks.family"),
    "context": (Context, "model.context"),
    "seed": (Seed, "seed"),
    "device": (Device, "machine.device"),
}
# options that `Call` takes care of: the parameter's name, its annotation and its default
CALL_OPTIONS: dict[str, tuple[Any, Any]] = {
    "preset": (Preset, None),
    "config": (Config, None),
    "set_": (Set, None),
    "include": (Include, None),
    "home": (Home, None),
    "force": (Force, False),
    "study": (Study, None),
    "dry_run": (DryRun, False),
    "as_json": (Json, False),
    "quiet": (Quiet, False),
}
MAKES_A_RUN = "preset config set_ include home force dry_run as_json quiet"
IS_A_CELL = f"{MAKES_A_RUN} study"  # of a study, too


@dataclass
class Call:
    """A command as it was typed."""

    session: Session
    as_json: bool
    dry_run: bool
    preset: str | None
    config: Path | None
    sets: list[str]
    options: dict[str, tuple[Any, str]]  # value and spelling of options, by the setting they set
    with_strategy: bool
    resolved: "Resolved" = field(init=False)  # by `resolve`

    @property
    def settings(self) -> "Settings":
        return self.resolved.settings

    def resolve(self, *, preset: str | None = None, **more: Any) -> "Resolved":
        """The settings and their sources; `preset` is used where the user named none."""
        from dsa_sandbox.config import rates, resolve

        self.resolved = resolve.resolve(
            preset=preset if self.preset is None else self.preset,
            config=self.config,
            sets=self.sets,
            options=self.options,
            with_strategy=self.with_strategy,
            tuning=rates.of_home(self.session.study or self.session.home),
            **more,
        )
        return self.resolved


def verb(
    app: typer.Typer,
    example: str,
    *,
    options: str = "",
    shared: str,
    later: bool = False,
    with_strategy: bool = False,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: make a function that takes a `Call` a command of `app`.

    The first word of `example` is the command's name. Its help lists the setting options named in
    `options`, the function's own parameters, then the options of `shared`, which fill the `Call`.
    A parameter of the function that one of the lists names as well is shown in its place there.
    Included files run first, then settings are resolved, unless the function does that `later`.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        _, *parameters = inspect.signature(function, eval_str=True).parameters.values()
        own = {one.name: one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters}
        first, last = options.split(), shared.split()
        names = [*first, *(name for name in own if name not in (*first, *last)), *last]
        shown = [own.get(name) or shared_option(name) for name in names]

        def command(**values: Any) -> None:
            call = begin(values, first, with_strategy)
            if not later:
                call.resolve()
            function(call, **{name: values[name] for name in own})

        command.__doc__ = function.__doc__
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in shown}
        name = example.split()[0]
        app.command(name, cls=Verb, epilog=f"Example: dsa-sandbox {example}")(command)
        return function

    return add


def shared_option(name: str) -> Parameter:
    """The parameter of an option that commands share."""
    annotation, default = CALL_OPTIONS.get(name) or (SETTING_OPTIONS[name][0], None)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def begin(values: dict[str, Any], options: list[str], with_strategy: bool) -> Call:
    """The call of a command, from the values of its parameters; signals are caught from here on."""
    from dsa_sandbox.cli import console
    from dsa_sandbox.runs import home as store
    from dsa_sandbox.runs import saved

    terminal = console.Terminal(values.get("quiet", False))
    console.catch_signals(terminal)
    includes = saved.include(values.get("include") or [])
    home = store.home_folder(values.get("home"))
    typed = [name for name in options if name in SETTING_OPTIONS]
    return Call(
        Session(home, includes, terminal, bool(values.get("force")), study_folder(values)),
        as_json=values.get("as_json", False),
        dry_run=values.get("dry_run", False),
        preset=values.get("preset"),
        config=values.get("config"),
        sets=values.get("set_") or [],
        options={SETTING_OPTIONS[name][1]: (values[name], f"--{name}") for name in typed},
        with_strategy=with_strategy,
    )


def study_folder(values: dict[str, Any]) -> Path | None:
    """The folder of --study, if it was given; UserError where there is none."""
    from dsa_sandbox.config import paths
    from dsa_sandbox.errors import UserError

    given: Path | None = values.get("study")
    if given is not None and not paths.named(given, "--study").is_dir():
        raise UserError(f"--study {given}: no such folder")
    return given


def answer_run(call: Call, result: "Result") -> None:
    """Print the run's path, or one object."""
    from dsa_sandbox.cli import console

    if call.as_json:
        console.emit_json(result.as_object())
    else:
        console.emit(str(result.run.path))


def answer_plan(call: Call, command: str, plan: dict[str, Any]) -> None:
    """Print the plan of a dry run: a line for each value, or one object."""
    from dsa_sandbox.cli import console

    plan = {"command": command, "dry_run": True, "home": str(call.session.home), **plan}
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
        call.session.listener.note(line)


def network_plan(call: Call) -> dict[str, Any]:
    """The plan of a pre-training, without building it; checks the device and the data."""
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
