"""The command line as a whole: all commands, and how errors become one line and an exit code."""

import difflib
import functools
import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from dsa_sandbox.cli import (
    bench,
    evaluate,
    exchange,
    finetune,
    generate,
    make_tasks,
    power,
    pretrain,
    runs,
    study,
    tune,
)
from dsa_sandbox.cli.options import Verbs
from dsa_sandbox.errors import Interrupted, RunFailed, UserError, reason

ClickException: Any = typer.BadParameter.__mro__[2]  # Typer carries its own copy of Click

app = typer.Typer(
    name="dsa-sandbox",
    cls=Verbs,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Does the shape of attention protect a language model from forgetting?\n\n"
    "Builds a dense network and one with DeepSeek Sparse Attention, pre-trains both to equal "
    "quality, teaches them contradictory worlds one after another, and measures what they forget.",
    epilog="The whole study at smoke scale: dsa-sandbox run --count 4 --singles 1",
)
for module in (
    pretrain,
    make_tasks,
    finetune,
    study,
    tune,
    power,
    evaluate,
    generate,
    exchange,
    runs,
    bench,
):
    app.add_typer(module.app)


def show_version(value: bool) -> None:
    """Print the versions of this package, torch and Python, and leave."""
    if value:
        python = ".".join(map(str, sys.version_info[:3]))
        own, torch = installed_version("dsa-sandbox"), installed_version("torch")
        typer.echo(f"dsa-sandbox {own} (torch {torch}, Python {python})")
        raise typer.Exit


def installed_version(package: str) -> str:
    """The version that an installed package states about itself; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is on the path and not installed
        return "not installed"


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=show_version,
            is_eager=True,
            help="Show the versions of dsa-sandbox, torch and Python.",
        ),
    ] = False,
) -> None:
    """Options before the command."""


@functools.cache
def click_group() -> Any:
    """All commands as Click knows them: `app(...)` would make them anew for each line."""
    return typer.main.get_command(app)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    from dsa_sandbox.cli import console

    console.prepare_streams()
    sys.exit(run_app(sys.argv[1:]))


def run_app(arguments: list[str]) -> int:
    """The exit code of a command; problems go to stderr in one line each."""
    from dsa_sandbox.cli import console

    as_json = "--json" in arguments
    try:
        check_text(arguments)
        code = click_group()(
            arguments or ["--help"], prog_name="dsa-sandbox", standalone_mode=False
        )
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
        makes_runs = arguments[0] in ("build", "pretrain", "make-tasks", "finetune", "run", "tune")
        advice = "resume with" if makes_runs else "it starts anew with"
        console.report_error([f"{error}; {advice}: {again}"], error.exit_code, as_json)
        return error.exit_code
    except (BrokenPipeError, console.ClosedPipe):
        console.silence(sys.stdout)
        return 141
    except OSError as error:
        if error.errno not in console.REFUSALS:
            raise
        console.report_error([f"{error.filename or 'output'}: {reason(error)}"], 3, as_json)
        return 3
    finally:
        console.forget_unwritten()


def check_text(arguments: list[str]) -> None:
    """UserError where an argument is not UTF-8: neither a terminal nor a manifest could show it.

    The bytes are checked: under some locales Python does not decode UTF-8.
    """
    for argument in arguments:
        try:
            os.fsencode(argument).decode("utf-8")
        except UnicodeError:
            raise UserError(
                f"{argument!a}: not UTF-8; give files and folders names that are"
            ) from None


def usage_line(error: Any) -> str:
    """Click's message in one line, with the command that it belongs to."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    where = f"  (see {context.command_path} --help)" if context else ""
    if context and hasattr(error, "possibilities"):  # of NoSuchOption alone
        options = [name for option in context.command.params for name in option.opts]
        known = [name for name in options if name.startswith("--")]
        message = error.message + suggestion(error.option_name, known)
    return " ".join(message.split()) + where


def suggestion(unknown: str, options: list[str]) -> str:
    """`; did you mean ...?` with the nearest option or setting (--steps, --lr), or nothing."""
    from dsa_sandbox.config import resolve

    if not unknown.startswith("--"):
        return ""
    wanted = unknown[2:].replace("-", "_")
    keys = resolve.known_keys() if "--set" in options else []
    fields = {key: key.partition(".")[2] for key in keys}
    names = {option: option[2:].replace("-", "_") for option in options}
    known = [*names.values(), *fields.values()]
    initials = {"".join(word[:1] for word in name.split("_")): name for name in known}
    close = [name for name in known if wanted.startswith(f"{name}_")]  # --batch-size
    close += [initials[wanted]] if wanted in initials else []
    close = close or difflib.get_close_matches(wanted, known, 1, cutoff=0.7)
    found = [option for option, name in names.items() if name in close]
    found = found or [f"--set {key}=VALUE" for key, field in fields.items() if field in close]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def quoted(argument: str) -> str:
    """The argument as a shell wants it."""
    import shlex

    return shlex.quote(argument)
