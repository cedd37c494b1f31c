"""The command line as a whole: all commands, and what becomes of their problems."""

import difflib
import os
import re
import sys
from typing import Annotated, Any, NoReturn

import typer

from dsa_sandbox import looking, making, measuring
from dsa_sandbox.errors import Interrupted, RunFailed, UserError

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
app.add_typer(making.app)
app.add_typer(looking.app)
app.add_typer(measuring.app)


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
        makes_runs = arguments[0] in ("build", "pretrain", "make-tasks", "finetune", "run")
        advice = "resume with" if makes_runs else "it starts anew with"
        console.report_error([f"{error}; {advice}: {again}"], error.exit_code, as_json)
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
    from dsa_sandbox import resolving

    taken = re.match(r"No such option: --([\w-]+)", message)
    fields = {key: key.partition(".")[2] for key in resolving.known_keys()}
    close = (
        difflib.get_close_matches(taken[1].replace("-", "_"), fields.values(), 1) if taken else []
    )
    keys = [f"--set {key}=VALUE" for key, field in fields.items() if field in close]
    return f"; did you mean {' or '.join(keys)}?" if keys else ""


def quoted(argument: str) -> str:
    """The argument as a shell wants it."""
    import shlex

    return shlex.quote(argument)
