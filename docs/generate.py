"""Write docs/settings.md and docs/commands.md from the code: `make docs`.

tests/test_docs.py holds them to what this writes.
"""

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, get_args, get_origin

from dsa_sandbox.cli.main import app, run_app
from dsa_sandbox.config.settings import SECTIONS
from dsa_sandbox.registry import strategies

HERE = Path(__file__).parent
COLUMNS = 80


def commands() -> list[str]:
    """The names of all commands, as the help lists them."""
    from typer.main import get_command

    return list(get_command(app).commands)  # type: ignore[attr-defined]


def help_of(*arguments: str) -> str:
    """What `--help` says at 80 columns."""
    out = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "TERMINAL_WIDTH", "NO_COLOR")}
    os.environ |= {"COLUMNS": str(COLUMNS), "TERMINAL_WIDTH": str(COLUMNS), "NO_COLOR": "1"}
    try:
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            run_app([*arguments, "--help"])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").split("\n"))


def commands_page() -> str:
    """docs/commands.md."""
    pages = ["# Commands", "", "Every command, as `--help` shows it at 80 columns.", ""]
    for name in ("", *commands()):
        title = f"dsa-sandbox {name}".strip()
        pages += [f"## {title}", "", "```", help_of(*([name] if name else [])), "```", ""]
    return "\n".join(pages)


def kind_of(annotation: Any) -> str:
    """What may be written as the value of a setting."""
    if get_origin(annotation) is not None and type(get_args(annotation)[0]) is str:
        return " \\| ".join(map(str, get_args(annotation)))
    names = {int: "whole number", float: "number", bool: "true \\| false", str: "text"}
    return names.get(annotation, "list of whole numbers")


def table(section: str, cls: Any) -> list[str]:
    """The settings of a section, a row each."""
    rows = [f"## {section}", "", " ".join((cls.__doc__ or "").split()), ""]
    rows += ["| setting | values | default | what it is |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        limits = [text for one in field.metadata if (text := limit_of(one))]
        values = ", ".join([kind_of(field.annotation), *limits])
        default = "" if field.default == () else field.default
        text = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{section}.{name}` | {values} | `{default}` | {text} |")
    return [*rows, ""]


def limit_of(rule: Any) -> str:
    """A bound of a number in words."""
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    for key, words in signs.items():
        if getattr(rule, key, None) is not None:
            return f"{words} {getattr(rule, key):g}"
    return ""


def settings_page() -> str:
    """docs/settings.md."""
    page = [
        "# Settings",
        "",
        "Every setting is `--set section.key=value`, or a line of a TOML file for `--config`.",
        "`dsa-sandbox settings` prints what a command would use, and where each value comes from;",
        "with `--describe` also what each is. Defaults below are those without a preset; a default",
        "in brackets follows from other settings.",
        "",
    ]
    for section, cls in SECTIONS.items():
        page += table(section, cls)
    page += ["# Settings of strategies", ""]
    for name in strategies:
        cls = strategies[name].Settings
        if cls.model_fields:
            page += table(name, cls)
    return "\n".join(page)


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
